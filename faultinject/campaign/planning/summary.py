"""A summary of a plan: missions by stratum, precision and power to expect, the duration.

Pure.  Precision and power need scipy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from faultinject.campaign.planning.detectable import Detectable, detectable, share_of
from faultinject.campaign.planning.durations import MissionDurations
from faultinject.campaign.planning.plan import CampaignPlan, Cell
from voter.core.vote import Policy

__all__ = ["CellSummary", "PlanSummary", "summarize"]

SAMPLED = 100
"""Missions of a cell that are sampled to estimate its duration."""
SHARE = 0.10
"""Largest share of U that f_0 or f_1 may hide for the data to count as precise enough."""


class CellSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A cell with its description and its missions' seconds of one worker (None: not known).

    ``detectable``: the smallest proportion of missions against the paper's 0 or 1 that shows at
    least once with 80 % probability; None where the paper assumes neither.
    """

    name: str
    description: str
    missions: int
    seconds: float | None
    detectable: float | None = None


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A plan before it runs.

    ``reach``: the precision to expect, one statement each.  ``power``: the smallest departures from
    the paper's model that are detected with 80 % probability.  ``seconds``: of wall clock; None if
    no durations are known.
    """

    title: str
    question: str
    seed: int
    missions: int
    workers: int
    cells: tuple[CellSummary, ...]
    reach: tuple[str, ...]
    power: tuple[Detectable, ...]
    seconds: float | None

    def lines(self) -> Iterator[str]:
        """Yield the lines of text that show it."""
        yield f"{self.title} ({self.question}), seed {self.seed}: {self.missions:,} missions"
        wide = max((len(cell.name) for cell in self.cells), default=0)
        for cell in self.cells:
            shown = "" if cell.detectable is None else f" [{cell.detectable:.2g}]"
            yield f"  {cell.name:<{wide}}  {cell.missions:>9,}  {cell.description}{shown}"
        if any(cell.detectable is not None for cell in self.cells):
            yield (
                "[x]: a failure rate that differs from the paper's 0 or 1 by x shows in at least "
                "one mission with 80 % probability"
            )
        yield from self.reach
        yield from _power_lines(self.power)
        if self.seconds is None:
            yield "duration not known: no such mission has run yet"
        else:
            workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
            yield f"about {_duration(self.seconds)} with {workers}"


def summarize(
    plan: CampaignPlan, durations: MissionDurations | None = None, *, workers: int = 1
) -> PlanSummary:
    """Return the summary of a plan.

    ``durations``: of former missions (``Store.durations``).  Raises EstimateError without scipy.
    """
    cells = [
        CellSummary(
            name=cell.name,
            description=_description(cell),
            missions=cell.missions,
            seconds=_seconds(plan, cell, block, durations),
            detectable=share_of(cell),
        )
        for cell, block in zip(plan.cells, plan.blocks(), strict=True)
    ]
    known = [cell.seconds for cell in cells if cell.seconds is not None]
    return PlanSummary(
        title=plan.spec.title,
        question=plan.spec.question,
        seed=plan.seed,
        missions=plan.total,
        workers=workers,
        cells=tuple(cells),
        reach=(*_strata_reach(plan), *_designs_reach(plan), *_model_reach(plan)),
        power=detectable(plan),
        seconds=sum(known) / workers if len(known) == len(cells) else None,
    )


def _power_lines(power: Sequence[Detectable]) -> Iterator[str]:
    """Yield one line for each subject and quantity, with its operating points."""
    if not power:
        return
    yield "smallest departures from the paper's model that are detected with 80 % probability:"
    lines: dict[tuple[str, str], list[Detectable]] = {}
    for each in power:
        lines.setdefault((each.subject, each.quantity), []).append(each)
    for (subject, quantity), found in lines.items():
        parts = [f"{_least(each)} at {each.where}" for each in found if each.least is not None]
        none = [each.where for each in found if each.least is None]
        parts += [f"no possible one at {', '.join(none)}"] if none else []
        yield f"  {subject}, {quantity}: {'; '.join(parts)}"


def _least(each: Detectable) -> str:
    share = each.least / each.of if each.of and each.least is not None else 1.0
    return f"{each.least:.2g}" + (f" ({share:.1%} of {each.quantity})" if share < 1.0 else "")


def _description(cell: Cell) -> str:
    """Return a description of a cell's missions."""
    who = "plain" if cell.design == "nv" else f"voted {cell.vote}".strip()
    if cell.common_cause:
        what = f"{cell.kind} hits everything at once"
        what += f", {cell.dose:,} flips" if "flip" in cell.kind else ""
    elif cell.kind:
        what = f"{cell.dose:,} x {cell.kind} in each guest" if cell.dose else "no flip at all"
    else:
        guests = f"{cell.k} guest{'s' if cell.k > 1 else ''}" if cell.k else ""
        f = f"f in {cell.function_k} guest{'s' if cell.function_k > 1 else ''}"
        parts = [guests, f if cell.function_k else "", "the voter" if cell.voter_hit else ""]
        parts.append("F" if cell.host_function_hit else "")
        what = f"{' and '.join(filter(None, parts)) or 'nothing'} hit"
    return f"{who}: {what}{', repair on' if cell.repair else ''}"


def _seconds(
    plan: CampaignPlan, cell: Cell, block: range, durations: MissionDurations | None
) -> float | None:
    if durations is None or not block:
        return None
    sample = [plan.mission(index) for index in block[:: max(1, len(block) // SAMPLED)]]
    return sum(map(durations.mission, sample)) / len(sample) * cell.missions


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _strata_reach(plan: CampaignPlan) -> Iterator[str]:
    """Yield from which q on the clean strata are large enough, and the width of U's interval."""
    from faultinject.estimate.precision import (  # noqa: PLC0415 - scipy is slow
        expected,
        lowest_q,
        precision_at,
    )
    from faultinject.estimate.strata import band  # noqa: PLC0415

    spec, alpha = plan.spec, plan.spec.alpha_per_analysis
    m = Policy.parse(spec.station.vote).need
    for repair in (False, True):
        trials = {
            cell.k: cell.missions
            for cell in plan.cells
            if cell.forced and cell.design == "voted" and not cell.host_target_hit
            and not cell.function_k and not cell.vote
            and cell.repair == repair
        }  # fmt: skip
        if sorted(trials) != list(range(spec.station.guests + 1)):
            continue
        by_k = [trials[k] for k in sorted(trials)]
        setting = "repair on" if repair else "repair off"
        planned = expected(by_k, m=m)
        lowest = lowest_q(planned, alpha, SHARE, m)
        low, high = spec.margins.q
        if lowest <= high:
            yield (
                f"{setting}: for q >= {lowest:.3f} (R_M <= {1 - lowest:.3f}), failures of the "
                f"voter alone can hide at most {SHARE:.0%} of U each, if none is observed"
            )
        else:
            yield (
                f"{setting}: for no q from {low:g} to {high:g} will failures of the voter alone be "
                f"bounded within {SHARE:.0%} of U: every result assumes that there are none"
            )
        measured = band(planned, alpha)
        for q in sorted({low, 0.1, 0.25}):
            interval = measured.failure(q)
            if interval.value > 0:
                below = 1 - interval.low / interval.value
                above = interval.high / interval.value - 1
                yield (
                    f"  at q = {q:g}, the interval of U = {interval.value:.4g} would be "
                    f"-{below:.1%} +{above:.1%}"
                )
        if lowest > low:
            found = precision_at(planned, low, alpha, SHARE, m)
            short = [k for k in range(len(by_k) - m) if found.shares[k] > SHARE]
            limits = "; ".join(
                f"f_{k} up to {found.shares[k]:.0%} of U with {by_k[k]:,} missions "
                f"({found.needed[k]:,} without a failure bound it to {SHARE:.0%})"
                for k in short
            )
            yield f"  at q = {low:g} the precision is not enough: {limits}"


def _designs_reach(plan: CampaignPlan) -> Iterator[str]:
    """Yield, for each policy that is not the node's, the precision of its R_sys."""
    from faultinject.estimate.precision import expected  # noqa: PLC0415 - scipy is slow
    from faultinject.estimate.strata import band  # noqa: PLC0415

    found: dict[tuple[str, bool], tuple[dict[int, int], dict[int, int]]] = {}
    for cell in plan.cells:
        if cell.forced and cell.vote and cell.design == "voted":
            by_k = found.setdefault((cell.vote, cell.repair), ({}, {}))[cell.host_target_hit]
            by_k[cell.failing_guests] = by_k.get(cell.failing_guests, 0) + cell.missions
    for (vote, repair), (trials, layer) in sorted(found.items()):
        m = Policy.parse(vote).need
        measured = band(
            expected(
                [trials.get(k, 0) for k in range(Policy.parse(vote).of + 1)],
                [layer.get(k, 0) for k in range(max(layer) + 1)] if layer else (),
                m,
            ),
            plan.spec.alpha_per_analysis,
        )
        widths = {
            (rm, rv): measured.system(rm, rv, rh).width / 2
            for rm, rv, rh in plan.spec.points.grid()
        }
        worst = max(widths, key=lambda each: widths[each])
        yield (
            f"{vote}{', repair on' if repair else ''}: R_sys would be known to within "
            f"+-{widths[worst]:.3f} or better (worst at R_M = {worst[0]:g}, R_V = {worst[1]:g})"
        )


def _model_reach(plan: CampaignPlan) -> Iterator[str]:
    """Yield the width of the intervals of R at R = .5, where they are widest."""
    from faultinject.estimate.intervals import clopper_pearson  # noqa: PLC0415 - scipy is slow

    sizes: dict[tuple[str, str], set[int]] = {}
    for cell in plan.cells:
        if cell.kind:
            what = "common causes" if cell.common_cause else "doses"
            sizes.setdefault((what, cell.design), set()).add(cell.missions)
    for (what, design), missions in sizes.items():
        fewest = min(missions)
        half = clopper_pearson(fewest // 2, fewest, plan.spec.alpha_per_analysis).width / 2
        name = "R_M of the plain design" if design == "nv" else "R_sys of the voted design"
        yield f"{what}: {name} to within +-{half:.3f} each ({fewest:,} missions or more)"
