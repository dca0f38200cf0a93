"""Findings from single missions: kinds of faults, latencies, speed, effects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from faultinject.campaign.assessment import AssessedMission
from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import HOST_TARGETS, MissionPlan
from faultinject.campaign.store.tally import Tally
from faultinject.estimate.power import POWER, detectable_difference
from faultinject.faults import CATALOGUE
from faultinject.report.bar_figures import describe
from faultinject.report.data import Effect, FaultKindResult, Latencies, MissionTimes
from faultinject.report.formatting import TIMES, percent
from faultinject.report.source import Source, outcomes_of
from faultinject.report.wrong_replies import is_covered, wrong_reply_of
from faultinject.results.findings import StratumFinding, WrongReply

__all__ = ["Observations", "find_effects", "find_kinds", "find_latencies", "find_times",
           "observe"]  # fmt: skip

MOST_ROWS = 60_000
"""Rows that are read one by one; counts always come from all rows.  The order of the plan is
random, so the first rows are an unbiased sample."""
MOST_DRAWN = 6
SIGNIFICANT = 0.05
TARGET_ONE = 10_000.0  # missions per hour on two cores under TCG, one guest hit, its QEMU not ended
TARGET_MIXED = 4_000.0

Part = tuple[str, bool, bool]  # kind, whether alone, repair


class Observations:
    """What one pass over the rows collected."""

    def __init__(self) -> None:
        self.rows = 0
        self.sampled = False
        self.wrong: list[WrongReply] = []
        self.unused: Counter[Part] = Counter()
        self.unapplied: Counter[Part] = Counter()
        self.masked: Counter[Part] = Counter()
        self.latencies: dict[str, list[float]] = {}  # by stratum
        self.by_kind: dict[str, list[float]] = {}  # of missions with one guest hit and repair off
        self.times: list[tuple[str, float, tuple[float, float, float, float]]] = []


def observe(source: Source) -> Observations:
    """Read rows one by one, at most MOST_ROWS of them."""
    found, plan = Observations(), source.store.plan
    cells = {cell.name: cell for cell in plan.cells}
    for mission, row in source.store.missions():
        if found.rows >= MOST_ROWS:
            found.sampled = True
            break
        found.rows += 1
        cell = plan.cell_of(row.index)
        forced = cell.forced and cell.design == "voted"  # neither a dose nor a common cause
        outcome = row.requests_outcome
        if outcome is not None and outcome.is_wrong_reply and mission.design == "voted":
            covered = is_covered(source, cells[row.stratum])
            if row.outcome is not None or covered:
                found.wrong.append(wrong_reply_of(mission, row, outcome, covered=covered))
        if forced:
            _count_kinds(found, mission, row)
        if row.outcome is not None:
            _collect_times(found, mission, row, forced=forced)
    return found


def _count_kinds(found: Observations, mission: MissionPlan, row: AssessedMission) -> None:
    """Count a mission once for each kind of fault in it, however many guests it hit."""
    alone = len({hit.target for hit in mission.injections}) == 1
    host_target_hit = mission.voter_hit or mission.host_function_hit
    targets: dict[str, set[str]] = {}
    for hit in mission.injections:
        if not host_target_hit or hit.target in HOST_TARGETS:
            targets.setdefault(hit.kind, set()).add(hit.target)
    for kind, hit_targets in targets.items():
        results = [each for each in row.injections if each.target in hit_targets]
        applied = {each.target for each in results if each.applied}
        part = (kind, alone, mission.repair)
        found.unapplied[part] += applied != hit_targets
        if row.outcome is not None:
            found.unused[part] += any(each.used is False for each in results)
            found.masked[part] += row.masked > 0


def _collect_times(
    found: Observations, mission: MissionPlan, row: AssessedMission, *, forced: bool
) -> None:
    answered = [each for each in row.latencies if each >= 0]
    found.latencies.setdefault(mission.stratum, []).extend(answered)
    hits = mission.injections
    if forced and len(hits) == 1 and not mission.repair and mission.k == 1:
        found.by_kind.setdefault(hits[0].kind, []).extend(answered)
    if row.timings:
        times = row.timings
        parts = (times.reset, times.inject, times.workload, times.settle)
        found.times.append((_class_of(mission), row.began, parts))


def _class_of(mission: MissionPlan) -> str:
    """The class of a mission in the table of speed."""
    if mission.design == "nv":
        return "nv"
    if not mission.injections:
        return "clean"
    kinds = {hit.kind for hit in mission.injections}
    stays = all(
        CATALOGUE[kind].leaves_qemu and "ssh" not in CATALOGUE[kind].needs for kind in kinds
    )
    one = mission.k + mission.function_k == 1
    one = one and not (mission.voter_hit or mission.host_function_hit)
    return "one" if one and stays else "other"


def find_kinds(source: Source, found: Observations) -> tuple[FaultKindResult, ...]:
    """Return outcomes by kind of fault over the voted strata, by layer and name."""
    by = source.grouped("kinds", "voter_kind", "host_target_hit", "repair", kind="", design="voted")
    sums: dict[tuple[Part, str], Tally] = {}
    for (kinds, voter_kind, host_hit, repair), tally in by.items():
        guest_kinds = [kind for kind in str(kinds).split("+") if kind]
        alone = len(guest_kinds) + bool(host_hit) == 1
        if host_hit:  # the outcome is due to the hit on the host, not to those on the guests
            parts, hit = {str(voter_kind)}, "voter" if alone else "voter and guests"
        else:
            parts, hit = set(guest_kinds), "1 guest" if alone else "2 guests or more"
        for kind in parts:
            key = ((kind, alone, bool(repair)), hit)
            sums[key] = sums.get(key, Tally()) + tally
    layers = list(CATALOGUE)
    return tuple(
        FaultKindResult(
            kind=kind, hit=hit, layer=str(CATALOGUE[kind].layer), alone=alone, repair=repair,
            outcomes=outcomes_of(tally),
            failed=source.proportion(tally.failures, tally.trials),
            unused=found.unused[kind, alone, repair],
            not_applied=found.unapplied[kind, alone, repair],
            masked=found.masked[kind, alone, repair],
        )
        for ((kind, alone, repair), hit), tally in sorted(
            sums.items(),
            key=lambda item: (item[0][0][2], not item[0][0][1], layers.index(item[0][0][0])),
        )
    )  # fmt: skip


def find_latencies(
    source: Source, found: Observations, strata: Sequence[StratumFinding]
) -> tuple[Latencies, ...]:
    """Return latencies by stratum, dose or common cause, then by kind where one guest was hit."""
    both = len({each.repair for each in strata}) > 1
    names = {each.name: describe(each, both) for each in strata if each.alike is None}
    cells = [cell for cell in source.cells() if found.latencies.get(cell.name)]
    drawn = _drawn(cells)
    groups = [
        (names.get(cell.name) or _name(cell), found.latencies[cell.name], cell.name in drawn)
        for cell in cells
    ]
    groups += [
        (f"1 guest hit by {kind}", found.by_kind[kind], False)
        for kind in CATALOGUE if found.by_kind.get(kind)
    ]  # fmt: skip
    return tuple(_latencies(*group) for group in groups)


def _drawn(cells: list[Cell]) -> set[str]:
    """Return at most MOST_DRAWN cells for the figure: no voter hit, no repair; evenly spread."""
    plain = [cell for cell in cells if not cell.host_target_hit and not cell.repair]
    voted = [cell.name for cell in plain if cell.design == "voted"]
    alone = [cell.name for cell in plain if cell.design == "nv"]
    most = MOST_DRAWN - min(2, len(alone))
    return {*_spread(voted, most), *_spread(alone, MOST_DRAWN - min(most, len(voted)))}


def _spread(names: list[str], most: int) -> list[str]:
    """Return the first, the last, and names evenly spread between."""
    if len(names) <= most or most < 2:
        return names[:most]
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _name(cell: Cell) -> str:
    what = cell.kind + (f" {TIMES} {cell.dose:,}" if cell.dose > 1 or not cell.common_cause else "")
    voted = f"voted {cell.vote}" if cell.vote else "voted"
    return f"{what}, {'one guest alone (NV)' if cell.design == 'nv' else voted}"


def _latencies(label: str, times: list[float], drawn: bool) -> Latencies:
    ranked = sorted(times)
    count = len(ranked)
    p50, p95, p99 = (ranked[-(-count * percent // 100) - 1] for percent in (50, 95, 99))
    return Latencies(
        label=label, requests=count, p50=p50, p95=p95, p99=p99, worst=ranked[-1],
        tail=tuple(_tail(ranked)), drawn=drawn,
    )  # fmt: skip


def _tail(ranked: list[float]) -> Iterator[tuple[float, float]]:
    """Yield (seconds, proportion of requests at least as slow), finer towards the slowest."""
    count, seen = len(ranked), -1
    for step in range(121):
        longer = count ** (1 - step / 120)  # from all down to one
        place = min(count - 1, count - math.ceil(longer))
        if place != seen:
            seen = place
            yield ranked[place], (count - place) / count


def find_times(found: Observations) -> tuple[MissionTimes, ...]:
    """Return missions per hour by class, and the seconds of their phases.

    Several missions may run at once: on average, the sum of all missions' seconds over the seconds
    in which any ran.  The rate of a class is that number over the class's mean duration.
    """
    if not found.times:
        return ()
    wall = _union((began, began + sum(parts)) for _, began, parts in found.times)
    busy = sum(sum(parts) for _, _, parts in found.times) / wall if wall else 1.0
    classes: tuple[tuple[str, frozenset[str], float | None], ...] = (
        ("one guest hit, its QEMU not ended", frozenset({"one"}), TARGET_ONE),
        ("hits of all kinds", frozenset({"one", "other"}), TARGET_MIXED),
        ("nothing hit", frozenset({"clean"}), None),
        ("one guest alone (NV)", frozenset({"nv"}), None),
        ("all missions", frozenset({"one", "other", "clean", "nv"}), None),
    )
    rows = []
    for label, members, target in classes:
        times = [parts for kind, _, parts in found.times if kind in members]
        if times:
            means = [math.fsum(column) / len(times) for column in zip(*times, strict=True)]
            rows.append(
                MissionTimes(
                    label=label, missions=len(times), per_hour=3600 * busy / sum(means),
                    reset=means[0], inject=means[1], workload=means[2], settle=means[3],
                    target=target,
                )
            )  # fmt: skip
    return tuple(rows)


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds covered by any of the spans."""
    covered, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def find_effects(source: Source) -> tuple[Effect, ...]:
    """Test whether missions of a stratum failed more often early than late, or by worker."""
    end = source.prefix if source.prefix is not None else source.store.total
    early = source.store.tallies("stratum", prefix=end // 2)
    every = source.store.tallies("stratum", prefix=end)
    halves: dict[str, list[Tally]] = {}
    for (name,), tally in every.items():
        first = early.get((name,), Tally())
        halves[name] = [first, _less(tally, first)]
    workers: dict[str, list[Tally]] = {}
    for (name, _), tally in source.grouped("stratum", "worker").items():
        workers.setdefault(str(name), []).append(tally)
    return (
        _effect("Order", "between the two halves of the mission order", halves),
        _effect("Workers", "between workers", workers),
    )


def _less(whole: Tally, part: Tally) -> Tally:
    return Tally(
        **{each: getattr(whole, each) - getattr(part, each) for each in whole.__struct_fields__}
    )


def _effect(factor: str, between: str, groups: dict[str, list[Tally]]) -> Effect:
    tables = {
        name: [(each.failures, each.successes) for each in tallies if each.trials]
        for name, tallies in groups.items()
    }
    found = {
        name: _p_value(table)
        for name, table in tables.items()
        if len(table) > 1 and all(map(sum, zip(*table, strict=True)))
    }
    if not found:
        conclusion = "Not testable: no stratum has both failures and successes in two groups."
        return Effect(factor=factor, conclusion=conclusion, p_value=None)
    name = min(found, key=lambda each: found[each])
    p = min(1.0, found[name] * len(found))
    tested = f"{len(found)} {'stratum' if len(found) == 1 else 'strata'} tested"
    if p < SIGNIFICANT:
        conclusion = (
            f"The failure rate of {name} differs {between} (p = {p:.2g}, the smallest of {tested}, "
            "Bonferroni-corrected). This should not occur."
        )
    else:
        conclusion = (
            f"No difference {between} was detected (p = {p:.2g}, the smallest of {tested}, "
            f"Bonferroni-corrected). {_power([tables[name] for name in found])}"
        )
    return Effect(factor=factor, conclusion=conclusion, p_value=p)


def _power(tables: Sequence[Sequence[tuple[int, int]]]) -> str:
    """Say what differences between the two largest groups the tests of these strata detect."""
    least = []
    for table in tables:
        one, other = sorted(map(sum, table))[-2:]
        rate = sum(failures for failures, _ in table) / sum(map(sum, table))
        least.append(detectable_difference(rate, one, other, SIGNIFICANT / len(tables)))
    ends = dict.fromkeys((percent(min(least)), percent(max(least))))
    return (
        f"Differences of at least {' to '.join(ends)} of missions, depending on the stratum, are "
        f"detected with {POWER:.0%} probability; smaller ones are not excluded."
    )


def _p_value(table: list[tuple[int, int]]) -> float:
    """Test independence of rows and columns: exactly for two rows, by chi square for more."""
    import numpy as np  # noqa: PLC0415 - comes with scipy
    from scipy.stats import chi2_contingency, fisher_exact  # noqa: PLC0415 - slow to load

    counts = np.array(table)
    exact = len(table) == 2
    return float(fisher_exact(counts).pvalue if exact else chi2_contingency(counts).pvalue)
