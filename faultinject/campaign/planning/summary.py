"""What a plan will do: missions by stratum, how far the data will reach, how long it will take.

Pure; the reach needs scipy (the extra ``campaign``).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from faultinject.campaign.planning.plan import CampaignPlan, Cell
from faultinject.campaign.planning.rates import Rates
from voter.core.vote import Policy

__all__ = ["CellSummary", "PlanSummary", "summarize"]

LOOKED_AT = 100
"""Missions of a cell that are looked at to tell how long it takes."""
SHARE = 0.10
"""What f_0 or f_1 may hide of U at most for the data to be said to reach."""


class CellSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A cell: what it is in words, its missions, their seconds of one worker (None: not known)."""

    name: str
    words: str
    missions: int
    seconds: float | None


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A plan before it is run.

    ``reach``: what the data will be able to tell, a sentence each.  ``seconds``: of wall clock,
    None if no rates are known.
    """

    title: str
    question: str
    seed: int
    missions: int
    workers: int
    cells: tuple[CellSummary, ...]
    reach: tuple[str, ...]
    seconds: float | None

    def lines(self) -> Iterator[str]:
        """Yield it as text."""
        yield f"{self.title} ({self.question}), seed {self.seed}: {self.missions:,} missions"
        wide = max((len(cell.name) for cell in self.cells), default=0)
        for cell in self.cells:
            yield f"  {cell.name:<{wide}}  {cell.missions:>9,}  {cell.words}"
        yield from self.reach
        if self.seconds is None:
            yield "how long it takes is not known yet: no mission was run that tells it"
        else:
            workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
            yield f"about {_duration(self.seconds)} with {workers}"


def summarize(plan: CampaignPlan, rates: Rates | None = None, *, workers: int = 1) -> PlanSummary:
    """Return what a plan will do.

    ``rates``: of former missions (``Store.rates``).  Raises EstimateError where scipy is missing.
    """
    cells = [
        CellSummary(
            name=cell.name,
            words=_words(cell),
            missions=cell.missions,
            seconds=_seconds(plan, cell, block, rates),
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
        seconds=sum(known) / workers if len(known) == len(cells) else None,
    )


def _words(cell: Cell) -> str:
    """Say in words what missions of a cell are."""
    who = "plain" if cell.design == "nv" else f"voted {cell.vote}".strip()
    if cell.shot:
        what = f"{cell.kind} strikes everything at once"
        what += f", {cell.dose:,} flips" if "flip" in cell.kind else ""
    elif cell.kind:
        what = f"{cell.dose:,} x {cell.kind} in each guest" if cell.dose else "no flip at all"
    else:
        struck = f"{cell.k} guest{'s' if cell.k > 1 else ''}" if cell.k else ""
        f = f"f in {cell.function_k} guest{'s' if cell.function_k > 1 else ''}"
        parts = [struck, f if cell.function_k else "", "the voter" if cell.voter_hit else ""]
        parts.append("F" if cell.host_function_hit else "")
        what = f"{' and '.join(filter(None, parts)) or 'nothing'} hit"
    return f"{who}: {what}{', repair on' if cell.repair else ''}"


def _seconds(plan: CampaignPlan, cell: Cell, block: range, rates: Rates | None) -> float | None:
    if rates is None or not block:
        return None
    looked = [plan.mission(index) for index in block[:: max(1, len(block) // LOOKED_AT)]]
    return sum(map(rates.mission, looked)) / len(looked) * cell.missions


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _strata_reach(plan: CampaignPlan) -> Iterator[str]:
    """Say from which q on the clean strata are large enough, and how wide U's interval will be."""
    from faultinject.estimate.precision import (  # noqa: PLC0415 - scipy is slow
        expected,
        lowest_q,
        precision_at,
    )
    from faultinject.estimate.strata import band  # noqa: PLC0415

    spec, alpha = plan.spec, plan.spec.alpha_look
    m = Policy.parse(spec.station.vote).need
    for repair in (False, True):
        trials = {
            cell.k: cell.missions
            for cell in plan.cells
            if cell.forced and cell.design == "voted" and not cell.layer_hit
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
                f"{setting}: from q = {lowest:.3f} on (R_M = {1 - lowest:.3f} down), what failures "
                f"of the voter by itself may hide is within {SHARE:.0%} of U each, if none is seen"
            )
        else:
            yield (
                f"{setting}: nowhere from q = {low:g} to {high:g} will failures of the voter by "
                f"itself be bounded within {SHARE:.0%} of U: every result is given that there are "
                "none"
            )
        measured = band(planned, alpha)
        for q in sorted({low, 0.1, 0.25}):
            interval = measured.failure(q)
            if interval.value > 0:
                below = 1 - interval.low / interval.value
                above = interval.high / interval.value - 1
                yield (
                    f"  at q = {q:g}, U = {interval.value:.4g} would be known to "
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
    """Say of each design that is not the station's how well its R_sys will be known."""
    from faultinject.estimate.precision import expected  # noqa: PLC0415 - scipy is slow
    from faultinject.estimate.strata import band  # noqa: PLC0415

    found: dict[tuple[str, bool], tuple[dict[int, int], dict[int, int]]] = {}
    for cell in plan.cells:
        if cell.forced and cell.vote and cell.design == "voted":
            by_k = found.setdefault((cell.vote, cell.repair), ({}, {}))[cell.layer_hit]
            by_k[cell.felled] = by_k.get(cell.felled, 0) + cell.missions
    for (vote, repair), (trials, layer) in sorted(found.items()):
        m = Policy.parse(vote).need
        measured = band(
            expected(
                [trials.get(k, 0) for k in range(Policy.parse(vote).of + 1)],
                [layer.get(k, 0) for k in range(max(layer) + 1)] if layer else (),
                m,
            ),
            plan.spec.alpha_look,
        )
        widths = {
            (rm, rv): measured.system(rm, rv, rh).width / 2
            for rm, rv, rh in plan.spec.points.grid()
        }
        worst = max(widths, key=lambda each: widths[each])
        yield (
            f"{vote}{', repair on' if repair else ''}: R_sys would be known to "
            f"+-{widths[worst]:.3f} or better (worst at R_M = {worst[0]:g}, R_V = {worst[1]:g})"
        )


def _model_reach(plan: CampaignPlan) -> Iterator[str]:
    """Say how wide the intervals of R will be at R = .5, where they are widest."""
    from faultinject.estimate.intervals import clopper_pearson  # noqa: PLC0415 - scipy is slow

    sizes: dict[tuple[str, str], set[int]] = {}
    for cell in plan.cells:
        if cell.kind:
            what = "shots" if cell.shot else "doses"
            sizes.setdefault((what, cell.design), set()).add(cell.missions)
    for (what, design), missions in sizes.items():
        fewest = min(missions)
        half = clopper_pearson(fewest // 2, fewest, plan.spec.alpha_look).width / 2
        name = "R_M of the plain design" if design == "nv" else "R_sys of the voted one"
        yield f"{what}: {name} at least to +-{half:.3f} each ({fewest:,} missions or more)"
