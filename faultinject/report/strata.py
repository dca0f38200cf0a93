"""The strata with forced failures: f_k and g_k, Figure 7's band, operating points, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.store.tally import Tally
from faultinject.estimate.counts import EstimateError
from faultinject.estimate.equivalence import (
    EquivalenceMargins,
    PointComparison,
    compare_at_points,
    paper_failure,
)
from faultinject.estimate.intervals import Interval
from faultinject.estimate.precision import Precision, precision_at
from faultinject.estimate.sampling import SamplingComparison, compare_sampling
from faultinject.estimate.strata import Band, Strata, band
from faultinject.model.bounds import breakeven_rv
from faultinject.report.data import Curve
from faultinject.report.source import Source, counts_of, outcomes_of
from faultinject.results.findings import StratumFinding

__all__ = ["StrataGroup", "find_strata", "group_strata", "strata_of"]

MOST_COMPARED = 3  # the smallest q, where sampling matters most; each takes seconds


class StrataGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The strata with repair off, or with repair on; these are never mixed.

    ``given``: the strata given f_0 = 0; None where a failure with nothing hit was observed.
    """

    strata: Strata
    given: Strata | None
    source: Source

    @property
    def repair(self) -> bool:
        """Whether repair was on."""
        return self.strata.repair

    def margins(self) -> EquivalenceMargins:
        """Return the spec's equivalence margins."""
        margins = self.source.store.spec.margins
        return EquivalenceMargins(
            failure=margins.u, bound=margins.rv, q_low=margins.q[0], q_high=margins.q[1]
        )

    def curve(self) -> Curve:
        """Return Figure 7's band, and U relative to the paper's."""
        margins, m, n = self.margins(), self.source.m, self.source.n
        low, high = 1 - margins.q_high, 1 - margins.q_low
        inner = [low + (high - low) * i / 60 for i in range(61)]
        grid = sorted({round(x, 9) for x in [*inner, *(i / 200 for i in range(60, 200))]})
        known = band(self.strata, self.source.alpha)
        given = band(self.given, self.source.alpha) if self.given else None
        return Curve(
            repair=self.repair,
            rm=tuple(grid),
            paper=tuple(float(breakeven_rv(x, m, n)) for x in grid),
            breakeven=tuple(map(known.bound, grid)),
            relative=_relative(known, grid, m, n),
            breakeven_given=tuple(map(given.bound, grid)) if given else (),
            relative_given=_relative(given, grid, m, n) if given else (),
            relative_margin=margins.failure,
            breakeven_margin=margins.bound,
            margin_from=low,
            margin_to=high,
        )

    def points(self) -> tuple[PointComparison, ...]:
        """Compare the nodes at each operating point of the spec."""
        grid = self.source.store.spec.points.grid()
        return compare_at_points(self.strata, grid, self.source.alpha, self.source.m)

    def _qs(self) -> list[float]:
        """q of the operating points."""
        return sorted({1 - rm for rm in self.source.store.spec.points.axis("rm") if 0 < rm < 1})

    def precision(self) -> tuple[Precision, ...]:
        """Return the precision at each operating point's q."""
        alpha, m = self.source.alpha, self.source.m
        return tuple(precision_at(self.strata, q, alpha, m=m) for q in self._qs())

    def sampling(self) -> tuple[SamplingComparison, ...]:
        """Compare the interval widths with natural sampling, at q of the operating points."""
        found = []
        for q in self._qs()[:MOST_COMPARED]:
            try:
                found.append(compare_sampling(self.strata, q, self.source.alpha))
            except EstimateError:  # no failure anywhere: no relative width
                continue
        return tuple(found)


def _relative(known: Band, grid: Sequence[float], m: int, n: int) -> tuple[Interval, ...]:
    rows = []
    for rm in grid:
        paper, found = paper_failure(1 - rm, m, n), known.failure(1 - rm)
        rows.append(
            Interval(value=found.value / paper, low=found.low / paper, high=found.high / paper)
        )
    return tuple(rows)


def strata_of(source: Source, cells: Mapping[tuple[bool, int], Sequence[Cell]], n: int) -> Strata:
    """Count the missions of a node of ``n`` guests; ``cells``: by whether the voter is hit, k."""
    tallies = {
        key: source.tally(stratum=[each.name for each in group]) for key, group in cells.items()
    }
    return Strata(
        guests=tuple(counts_of(tallies.get((False, k))) for k in range(n + 1)),
        voter=tuple(
            counts_of(tally) if (tally := tallies.get((True, k))) and tally.trials else None
            for k in range(n + 1)
        ),
        repair=any(each.repair for group in cells.values() for each in group),
    )


def group_strata(source: Source) -> tuple[StrataGroup, ...]:
    """Return the strata to be recombined, repair off first; empty where the campaign has none."""
    groups = []
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
            groups.append(StrataGroup(strata=strata, given=strata.given_f0(), source=source))
    return tuple(groups)


def find_strata(source: Source) -> tuple[StratumFinding, ...]:
    """Return every stratum of the plan; those with lying guests also in two parts, by whether the
    guests return the same bytes.
    """
    found = []
    for cell in source.cells():
        if not cell.forced:
            continue
        found.append(_stratum(source, cell, source.tally(stratum=cell.name), None))
        parts = source.grouped("alike", stratum=cell.name)
        found += [
            _stratum(source, cell, parts[key], alike)
            for alike in (True, False) if (key := (alike,)) in parts
        ]  # fmt: skip
    return tuple(sorted(found, key=lambda each: each.repair))


def _stratum(source: Source, cell: Cell, tally: Tally, alike: bool | None) -> StratumFinding:
    part: dict[str, object] = {"stratum": cell.name}
    if alike is not None:
        part["alike"] = alike
    met, slow = source.tally(unmet=False, **part), source.tally(slow=True, **part)
    policy = source.policy(cell.vote)
    fails = cell.host_target_hit or cell.failing_guests > (
        0 if cell.design == "nv" else policy.of - policy.need
    )
    symbol = "g" if cell.host_target_hit else "f"
    label = f"{symbol}_{cell.failing_guests}{cell.vote and ' ' + cell.vote}"
    return StratumFinding(
        name=cell.name, label="NV" if cell.design == "nv" else label, design=cell.design,
        k=cell.k, vote=cell.vote, voter_hit=cell.voter_hit, function_k=cell.function_k,
        host_function_hit=cell.host_function_hit, repair=cell.repair, alike=alike,
        excluded=tally.excluded, outcomes=outcomes_of(tally),
        failed=source.proportion(tally.failures, tally.trials),
        silent=source.proportion(tally.silent_corruption, tally.trials, tally.unclear),
        met=source.proportion(met.failures, met.trials),
        slow=source.proportion(slow.trials, tally.trials),
        paper=None if alike is not None else float(fails),
    )  # fmt: skip
