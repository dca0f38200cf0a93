"""What single missions tell: kinds of faults, wrong replies, latencies, speed, other effects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from faultinject.campaign.assessment import AssessedMission
from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import LAYER, MissionPlan, Outcome
from faultinject.campaign.store.tally import Tally
from faultinject.faults import CATALOGUE
from faultinject.report.bar_figures import describe
from faultinject.report.counting import Source, outcomes_of, share_of
from faultinject.report.formatting import TIMES
from faultinject.results.findings import (
    EffectFinding,
    FaultKindFinding,
    LatencyFinding,
    SilentFinding,
    SpeedFinding,
    StratumFinding,
)

__all__ = [
    "CHORUS",
    "Observation",
    "find_effects",
    "find_kinds",
    "find_latencies",
    "find_speeds",
    "look",
]

CHORUS = frozenset({"poison"})
"""Shared causes that have all guests say the same: the injector's choice of words."""
MOST_ROWS = 60_000
"""Rows that are read one by one; counts always come from all.  The order of the plan is random, so
the first so many are a fair sample."""
MOST_DRAWN = 6
SUSPECT = 0.05
WANTED_ONE = 10_000.0  # missions an hour on two cores under TCG, one guest hit, its QEMU lives on
WANTED_MIXED = 4_000.0


class Observation:
    """What one pass over the rows gathered."""

    def __init__(self) -> None:
        self.rows = 0
        self.sampled = False
        self.silent: list[SilentFinding] = []
        self.unused: Counter[tuple[str, bool, bool]] = Counter()
        self.unapplied: Counter[tuple[str, bool, bool]] = Counter()
        self.masked: Counter[tuple[str, bool, bool]] = Counter()
        self.latencies: dict[str, list[float]] = {}  # by stratum
        self.by_kind: dict[str, list[float]] = {}  # of missions with one guest hit and repair off
        self.times: list[tuple[str, float, tuple[float, float, float, float]]] = []


Part = tuple[str, bool, bool]  # kind, whether alone, repair


def look(source: Source) -> Observation:
    """Read rows one by one, at most MOST_ROWS of them."""
    found, plan = Observation(), source.store.plan
    for mission, row in source.store.missions():
        if found.rows >= MOST_ROWS:
            found.sampled = True
            break
        found.rows += 1
        cell = plan.cell_of(row.index)
        plain = cell.forced and cell.design == "voted"  # not a dose or a shot
        if row.outcome is Outcome.SILENT and mission.design == "voted":
            hits = ", ".join(f"{hit.target} {hit.kind}" for hit in mission.hits) or "nothing"
            lie = {True: " (lies alike)", False: " (lies apart)", None: ""}[mission.alike]
            arranged = bool(mission.alike) or any(hit.kind in CHORUS for hit in mission.hits)
            found.silent.append(
                SilentFinding(mission=row.index, stratum=mission.stratum, hits=hits + lie,
                words=row.problem,
                       arranged=arranged)
            )  # fmt: skip
        if plain:
            _note_kinds(found, mission, row)
        if row.outcome is not None:
            _note_times(found, mission, row, plain=plain)
    return found


def _note_kinds(found: Observation, mission: MissionPlan, row: AssessedMission) -> None:
    """Count a mission once for each kind of fault in it, however many guests that hit."""
    alone = len({hit.target for hit in mission.hits}) == 1
    layer_hit = mission.voter_hit or mission.host_function_hit
    targets: dict[str, set[str]] = {}
    for hit in mission.hits:
        if not layer_hit or hit.target in LAYER:
            targets.setdefault(hit.kind, set()).add(hit.target)
    for kind, struck in targets.items():
        results = [each for each in row.hits if each.target in struck]
        took = {each.target for each in results if each.applied}
        part = (kind, alone, mission.repair)
        found.unapplied[part] += took != struck
        if row.outcome is not None:
            found.unused[part] += any(each.used is False for each in results)
            found.masked[part] += row.masked > 0


def _note_times(
    found: Observation, mission: MissionPlan, row: AssessedMission, *, plain: bool
) -> None:
    answered = [each for each in row.latencies if each >= 0]
    found.latencies.setdefault(mission.stratum, []).extend(answered)
    hits = mission.hits
    if plain and len(hits) == 1 and not mission.repair and mission.k == 1:
        found.by_kind.setdefault(hits[0].kind, []).extend(answered)
    if row.timings:
        times = row.timings
        parts = (times.reset, times.inject, times.workload, times.settle)
        found.times.append((_class_of(mission), row.began, parts))


def _class_of(mission: MissionPlan) -> str:
    """What kind of work a mission was, for the table of speed."""
    if mission.design == "nv":
        return "nv"
    if not mission.hits:
        return "clean"
    kinds = {hit.kind for hit in mission.hits}
    stays = all(
        CATALOGUE[kind].leaves_qemu and "ssh" not in CATALOGUE[kind].needs for kind in kinds
    )
    one = mission.k + mission.function_k == 1
    one = one and not (mission.voter_hit or mission.host_function_hit)
    return "one" if one and stays else "other"


def find_kinds(source: Source, found: Observation) -> tuple[FaultKindFinding, ...]:
    """Outcomes by kind of fault over the voted strata, by layer and name."""
    by = source.several("kinds", "voter_kind", "voter_hit", "repair", kind="", design="voted")
    sums: dict[tuple[Part, str], Tally] = {}
    for (kinds, voter_kind, voter_hit, repair), tally in by.items():
        struck = [kind for kind in str(kinds).split("+") if kind]
        alone = len(struck) + bool(voter_hit) == 1
        if voter_hit:  # what became of it is the voter's hit's doing, not the guests'
            hit = "voter" if alone else "voter and guests"
            _add(sums, ((str(voter_kind), alone, bool(repair)), hit), tally)
            continue
        for kind in set(struck):
            hit = "1 guest" if alone else "2 guests or more"
            _add(sums, ((kind, alone, bool(repair)), hit), tally)
    layers = list(CATALOGUE)
    return tuple(
        FaultKindFinding(
            kind=kind, hit=hit, layer=str(CATALOGUE[kind].layer), alone=alone, repair=repair,
            outcomes=outcomes_of(tally),
            failed=share_of(tally.failures, tally.trials, source.alpha),
            unused=found.unused[kind, alone, repair],
            not_applied=found.unapplied[kind, alone, repair],
            masked=found.masked[kind, alone, repair],
        )
        for ((kind, alone, repair), hit), tally in sorted(
            sums.items(),
            key=lambda item: (item[0][0][2], not item[0][0][1], layers.index(item[0][0][0])),
        )
    )  # fmt: skip


def _add(sums: dict[tuple[Part, str], Tally], key: tuple[Part, str], tally: Tally) -> None:
    sums[key] = sums.get(key, Tally()) + tally


def find_latencies(
    source: Source, found: Observation, strata: Sequence[StratumFinding]
) -> tuple[LatencyFinding, ...]:
    """By stratum, dose or shot (drawn: the first few), then by kind where one guest was hit."""
    both = len({each.repair for each in strata}) > 1
    names = {each.name: describe(each, both) for each in strata if each.alike is None}
    cells = [cell for cell in source.cells() if found.latencies.get(cell.name)]
    drawn = _chosen(cells)
    groups = [
        (names.get(cell.name) or _name(cell), found.latencies[cell.name], cell.name in drawn)
        for cell in cells
    ]
    groups += [
        (f"1 guest hit by {kind}", found.by_kind[kind], False)
        for kind in CATALOGUE if found.by_kind.get(kind)
    ]  # fmt: skip
    return tuple(_latency(*group) for group in groups)


def _chosen(cells: list[Cell]) -> set[str]:
    """At most MOST_DRAWN cells for the figure: no voter hit, no repair; voted first, evenly."""
    plain = [cell for cell in cells if not cell.layer_hit and not cell.repair]
    voted = [cell.name for cell in plain if cell.design == "voted"]
    alone = [cell.name for cell in plain if cell.design == "nv"]
    most = MOST_DRAWN - min(2, len(alone))
    return {*_spread(voted, most), *_spread(alone, MOST_DRAWN - min(most, len(voted)))}


def _spread(names: list[str], most: int) -> list[str]:
    """The first, the last, and evenly between."""
    if len(names) <= most or most < 2:
        return names[:most]
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _name(cell: Cell) -> str:
    what = cell.kind + (f" {TIMES} {cell.dose:,}" if cell.dose > 1 or not cell.shot else "")
    voted = f"voted {cell.vote}" if cell.vote else "voted"
    return f"{what}, {'one guest alone (NV)' if cell.design == 'nv' else voted}"


def _latency(label: str, times: list[float], drawn: bool) -> LatencyFinding:
    ranked = sorted(times)
    count = len(ranked)
    p50, p95, p99 = (ranked[-(-count * percent // 100) - 1] for percent in (50, 95, 99))
    return LatencyFinding(
        label=label, requests=count, p50=p50, p95=p95, p99=p99, worst=ranked[-1],
        tail=tuple(_tail(ranked)), drawn=drawn,
    )  # fmt: skip


def _tail(ranked: list[float]) -> Iterator[tuple[float, float]]:
    """(seconds, share of requests that took as long or longer), finer towards the slowest."""
    count, seen = len(ranked), -1
    for step in range(121):
        longer = count ** (1 - step / 120)  # from all down to one
        place = min(count - 1, count - math.ceil(longer))
        if place != seen:
            seen = place
            yield ranked[place], (count - place) / count


def find_speeds(found: Observation) -> tuple[SpeedFinding, ...]:
    """Missions an hour by what they were, and where their time went.

    Several missions may be under way at once.  How many were, on average, is the sum of all
    missions' seconds over the seconds in which any was; a class's rate is that over its own mean.
    """
    if not found.times:
        return ()
    wall = _union((began, began + sum(parts)) for _, began, parts in found.times)
    busy = sum(sum(parts) for _, _, parts in found.times) / wall if wall else 1.0
    wanted: tuple[tuple[str, frozenset[str], float | None], ...] = (
        ("one guest hit, its QEMU stays", frozenset({"one"}), WANTED_ONE),
        ("hits of all kinds", frozenset({"one", "other"}), WANTED_MIXED),
        ("nothing hit", frozenset({"clean"}), None),
        ("one guest alone (NV)", frozenset({"nv"}), None),
        ("all missions", frozenset({"one", "other", "clean", "nv"}), None),
    )
    speeds = []
    for label, classes, target in wanted:
        times = [parts for kind, _, parts in found.times if kind in classes]
        if times:
            means = [math.fsum(column) / len(times) for column in zip(*times, strict=True)]
            speeds.append(
                SpeedFinding(label=label, missions=len(times), an_hour=3600 * busy / sum(means),
                      reset=means[0], inject=means[1], workload=means[2], settle=means[3],
                      target=target)
            )  # fmt: skip
    return tuple(speeds)


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by any of the spans."""
    covered, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def find_effects(source: Source) -> tuple[EffectFinding, ...]:
    """Whether missions of a stratum failed otherwise early than late, or on another worker."""
    end = source.prefix if source.prefix is not None else source.store.total
    early = source.store.tallies("stratum", prefix=end // 2)
    every = source.store.tallies("stratum", prefix=end)
    halves: dict[str, list[Tally]] = {}
    for (name,), tally in every.items():
        first = early.get((name,), Tally())
        halves[name] = [first, _less(tally, first)]
    workers: dict[str, list[Tally]] = {}
    for (name, _), tally in source.several("stratum", "worker").items():
        workers.setdefault(str(name), []).append(tally)
    return (
        _effect("Order", "in the first half of the order than in the second", halves),
        _effect("Workers", "on one worker than on another", workers),
    )


def _less(whole: Tally, part: Tally) -> Tally:
    return Tally(
        **{each: getattr(whole, each) - getattr(part, each) for each in whole.__struct_fields__}
    )


def _effect(what: str, words: str, groups: dict[str, list[Tally]]) -> EffectFinding:
    found = {}
    for name, tallies in groups.items():
        table = [(each.failures, each.successes) for each in tallies if each.trials]
        if len(table) > 1 and all(map(sum, zip(*table, strict=True))):
            found[name] = _p_value(table)
    if not found:
        return EffectFinding(
            what=what, words="Nothing to test: no stratum has both outcomes in two groups.", p=None
        )
    name = min(found, key=lambda each: found[each])
    p = min(1.0, found[name] * len(found))
    looked = f"{len(found)} {'stratum' if len(found) == 1 else 'strata'} with both outcomes"
    said = f"p = {p:.2g}, the least of {looked}, corrected for their number"
    if p < SUSPECT:
        return EffectFinding(
            what=what, words=f"{name} failed more often {words} ({said}). This should not be.", p=p
        )
    return EffectFinding(
        what=what,
        words=f"No stratum is seen to fail more often {words} ({said}). That shows no effect; it "
        "does not show that there is none.",
        p=p,
    )


def _p_value(table: list[tuple[int, int]]) -> float:
    """Of independence of rows and columns: exact for two rows, chi square for more."""
    import numpy as np  # noqa: PLC0415 - comes with scipy
    from scipy.stats import chi2_contingency, fisher_exact  # noqa: PLC0415 - an extra

    counts = np.array(table)
    exact = len(table) == 2
    return float(fisher_exact(counts).pvalue if exact else chi2_contingency(counts).pvalue)
