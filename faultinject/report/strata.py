"""Of the strata: f_k and g_k, Figure 7's band, operating points, reach, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.store.tally import Tally
from faultinject.estimate import (
    Band,
    Choice,
    Counts,
    EquivalenceMargins,
    EstimateError,
    Strata,
    band,
    compare_at_points,
    compare_designs,
    paper_failure,
    reach,
)
from faultinject.model.bounds import breakeven_rv
from faultinject.report.counting import (
    Source,
    counts_of,
    finite,
    outcomes_of,
    share_of,
    triple,
)
from faultinject.results.findings import CurveFinding, Point, PowerFinding, StratumFinding, Width
from voter.core.vote import Policy

__all__ = ["Side", "find_sides", "find_strata", "strata_of"]

CERTAIN = 10**9
"""Missions without a failure that stand for "given f_0 = 0": the interval then ends below 1e-8."""
MOST_WIDTHS = 3  # the smallest q, where it matters most: each takes seconds


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """The strata with repair off, or on: never mixed.  ``given``: with f_0 = 0 taken for granted;
    None where f_0 was seen not to be 0.
    """

    repair: bool
    strata: Strata
    given: Strata | None
    source: Source

    def margins(self) -> EquivalenceMargins:
        """The spec's margins of equivalence."""
        asked = self.source.store.spec.margins
        return EquivalenceMargins(
            failure=asked.u, bound=asked.rv, q_low=asked.q[0], q_high=asked.q[1]
        )

    def curve(self) -> CurveFinding:
        """Figure 7's band, and how far U is from the paper's."""
        margins, m, n = self.margins(), self.source.m, self.source.n
        low, high = 1 - margins.q_high, 1 - margins.q_low
        inner = [low + (high - low) * i / 60 for i in range(61)]
        grid = sorted({round(x, 9) for x in [*inner, *(i / 200 for i in range(60, 200))]})
        known = band(self.strata, self.source.alpha)
        granted = band(self.given, self.source.alpha) if self.given else None
        return CurveFinding(
            repair=self.repair,
            rm=tuple(grid),
            paper=tuple(float(breakeven_rv(x, m, n)) for x in grid),
            breakeven=tuple(triple(each) for each in known.curve(grid)),
            relative=_relative(known, grid, m, n),
            breakeven_given=tuple(triple(each) for each in granted.curve(grid)) if granted else (),
            relative_given=_relative(granted, grid, m, n) if granted else (),
            relative_margin=margins.failure,
            breakeven_margin=margins.bound,
            margin_from=low,
            margin_to=high,
        )

    def points(self) -> tuple[Point, ...]:
        """Each operating point of the spec judged."""
        asked, alpha, m = self.source.store.spec.points.grid(), self.source.alpha, self.source.m
        judged = compare_at_points(self.strata, asked, alpha, m)
        known = band(self.strata, alpha)
        granted = compare_at_points(self.given, asked, alpha, m) if self.given else judged
        return tuple(
            Point(
                rm=each.rm, rv=each.rv, rh=each.rh, repair=self.repair, plain=each.plain,
                voted=triple(each.voted), verdict=each.choice.value,
                paper="voted better" if each.paper is Choice.VOTED else "plain better",
                words=each.words, given=_given(each.choice, other.choice),
                breakeven=finite(known.bound(each.rm)),
            )
            for each, other in zip(judged, granted, strict=True)
        )  # fmt: skip

    def _asked(self) -> list[float]:
        """q of the operating points."""
        return sorted({1 - rm for rm in self.source.store.spec.points.axis("rm") if 0 < rm < 1})

    def reach(self, target: float = 0.10) -> tuple[PowerFinding, ...]:
        """How far the data reach at each operating point's q."""
        trials = [each.trials for each in self.strata.guests]
        failures = [each.failures for each in self.strata.guests]
        found = []
        for q in self._asked():
            each = reach(trials, q, self.source.alpha, target, self.source.m, failures)
            found.append(
                PowerFinding(q=q, shares=each.shares, needed=each.needed, trials=tuple(trials),
                      target=target, repair=self.repair)
            )  # fmt: skip
        return tuple(found)

    def widths(self) -> tuple[Width, ...]:
        """Interval widths beside naive sampling, at q of the operating points."""
        found = []
        for q in self._asked()[:MOST_WIDTHS]:
            try:
                each = compare_designs(self.strata, q, self.source.alpha)
            except EstimateError:  # no failure anywhere: no relative width
                continue
            found.append(
                Width(q=q, missions=each.missions, stratified=each.stratified,
                      given_f0=each.given_f0, skipping=each.skipping, natural=each.natural,
                      needed=each.missions_natural)
            )  # fmt: skip
        return tuple(found)


def _relative(
    known: Band, grid: Sequence[float], m: int, n: int
) -> tuple[tuple[float, float, float], ...]:
    rows = []
    for rm in grid:
        paper, found = paper_failure(1 - rm, m, n), known.failure(1 - rm)
        rows.append((found.low / paper, found.value / paper, found.high / paper))
    return tuple(rows)


def _given(choice: Choice, granted: Choice) -> str:
    if choice is not Choice.UNDECIDED or granted is Choice.UNDECIDED:
        return ""
    return f"{granted} given f_0 = 0"


def strata_of(source: Source, cells: Mapping[tuple[bool, int], Sequence[Cell]], n: int) -> Strata:
    """Count a node's missions, ``n`` guests; ``cells``: by whether the voter is hit, and k."""
    tallies = {
        key: source.tally(stratum=[each.name for each in alike]) for key, alike in cells.items()
    }
    return Strata(
        guests=tuple(counts_of(tallies.get((False, k))) for k in range(n + 1)),
        voter=tuple(
            counts_of(tally) if (tally := tallies.get((True, k))) and tally.trials else None
            for k in range(n + 1)
        ),
        repaired=any(each.repair for alike in cells.values() for each in alike),
    )


def find_sides(source: Source) -> tuple[Side, ...]:
    """The strata to be recombined, repair off first.  Empty where the campaign has none."""
    sides = []
    for repair in (False, True):
        cells = {
            (each.voter_hit, each.k): [each]
            for each in source.cells()
            if each.forced and each.design == "voted" and each.repair == repair and not each.vote
            and not each.function_k and not each.host_function_hit
        }  # fmt: skip
        if not any(not voter_hit for voter_hit, _ in cells):
            continue
        strata = strata_of(source, cells, source.n)
        if strata.trials:
            sides.append(Side(repair=repair, strata=strata, given=_granted(strata), source=source))
    return tuple(sides)


def _granted(strata: Strata) -> Strata | None:
    if strata.guests[0].failures:
        return None
    certain = Counts(trials=CERTAIN, failures=0)
    return msgspec.structs.replace(strata, guests=(certain, *strata.guests[1:]))


def find_strata(source: Source) -> tuple[StratumFinding, ...]:
    """Every stratum of the plan, and of those with liars the two parts that lie alike and apart."""
    found = []
    for cell in source.cells():
        if not cell.forced:
            continue
        found.append(_stratum(source, cell, source.tally(stratum=cell.name), None))
        parts = source.several("alike", stratum=cell.name)
        found += [
            _stratum(source, cell, parts[key], alike)
            for alike in (True, False) if (key := (alike,)) in parts
        ]  # fmt: skip
    return tuple(sorted(found, key=lambda each: each.repair))


def _stratum(source: Source, cell: Cell, tally: Tally, alike: bool | None) -> StratumFinding:
    policy = Policy.parse(cell.vote) if cell.vote else Policy(source.m, source.n)
    fails = cell.layer_hit or cell.failing_guests > (
        0 if cell.design == "nv" else policy.of - policy.need
    )
    letter = "g" if cell.layer_hit else "f"
    return StratumFinding(
        name=cell.name,
        label="NV"
        if cell.design == "nv"
        else f"{letter}_{cell.failing_guests}{cell.vote and ' ' + cell.vote}",
        design=cell.design,
        k=cell.k,
        vote=cell.vote,
        voter_hit=cell.voter_hit,
        function_k=cell.function_k,
        host_function_hit=cell.host_function_hit,
        repair=cell.repair,
        alike=alike,
        void=tally.void,
        outcomes=outcomes_of(tally),
        failed=share_of(tally.failures, tally.trials, source.alpha),
        silent=share_of(tally.silent, tally.trials, source.alpha),
        paper=None if alike is not None else float(fails),
    )
