"""Interim results: what the rows show so far, for people who wait.

Nothing may be decided by them, because repeated analyses of growing data are not one test.  The
verdict comes from the planned number of missions (``faultinject.report``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from deploy.dashboard.campaigns import Curve, Estimate
from faultinject.campaign.store.tally import Tally
from voter.core import Policy

if TYPE_CHECKING:
    from faultinject.campaign.planning.plan import Cell
    from faultinject.campaign.planning.spec import Spec
    from faultinject.campaign.store.store import Store
    from faultinject.estimate.intervals import Interval
    from faultinject.estimate.strata import Strata

__all__ = ["CellResult", "InterimResults", "LiveFigure", "interim_results", "results_of"]

GRID = [0.5 + at / 100 for at in range(50)]
"""The R_M at which curves are computed."""
BEYOND = 2.0
"""What a break-even without limit is drawn as: no R_V reaches 1."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the plan so far.

    ``voted``: False for the plain design, where nobody watches the guest.  ``rate``: failures over
    trials (None: no trial yet); ``low``, ``high``: its Clopper-Pearson interval.
    """

    name: str
    voted: bool
    planned: int
    trials: int
    failures: int
    wrong: int
    excluded: int
    rate: float | None
    low: float
    high: float


class LiveFigure(msgspec.Struct, frozen=True, kw_only=True):
    """Measured points and curves, and what the axes mean."""

    x_label: str = "reliability of a guest, R_M"
    y_label: str = "reliability of the node, R_sys"
    points: tuple[Estimate, ...] = ()
    curves: tuple[Curve, ...] = ()


class InterimResults(msgspec.Struct, frozen=True, kw_only=True):
    """The results of all cells.  ``estimates``: of the quantities that the campaign is about."""

    cells: tuple[CellResult, ...]
    estimates: tuple[str, ...] = ()
    figure: LiveFigure = LiveFigure()


def interim_results(store: Store) -> InterimResults:
    """Return what the rows of a campaign show so far."""
    return results_of(store.spec, store.plan.cells, store.by_stratum())


def results_of(spec: Spec, cells: Sequence[Cell], tallies: Mapping[str, Tally]) -> InterimResults:
    """Return what ``tallies`` (by stratum) show.  Raises EstimateError if scipy is missing."""
    views = tuple(_view(cell, tallies.get(cell.name), spec.alpha) for cell in cells)
    strata = _strata(spec, tallies)
    return InterimResults(
        cells=views,
        estimates=(*_systems(spec, strata), *_doses(cells, views)),
        figure=_figure(spec, strata, cells, views),
    )


def _view(cell: Cell, tally: Tally | None, alpha: float) -> CellResult:
    from faultinject.estimate.intervals import clopper_pearson  # noqa: PLC0415 - scipy is slow to import

    known = tally or Tally()
    interval = clopper_pearson(known.failures, known.trials, alpha)
    return CellResult(
        name=cell.name,
        voted=cell.design == "voted",
        planned=cell.missions,
        trials=known.trials,
        failures=known.failures,
        wrong=known.wrong_replies,
        excluded=known.excluded,
        rate=interval.value if known.trials else None,
        low=interval.low,
        high=interval.high,
    )


def _strata(spec: Spec, tallies: Mapping[str, Tally]) -> dict[str, Strata]:
    """Return the counts of the strata by setting of repair, where each has a trial."""
    from faultinject.estimate.strata import Strata  # noqa: PLC0415

    strata = {}
    for suffix, repair in (("", "off"), ("-repair", "on")):
        found = [tallies.get(f"f{k}{suffix}") for k in range(spec.station.guests + 1)]
        if any(tally is None or not tally.trials for tally in found):
            continue
        hit = [tallies.get(f"g{k}{suffix}") for k in range(spec.station.guests + 1)]
        strata[repair] = Strata(
            guests=tuple(tally.counts() for tally in found if tally is not None),
            voter=tuple(tally.counts() if tally and tally.trials else None for tally in hit),
            repair=repair == "on",
        )
    return strata


def _systems(spec: Spec, strata: Mapping[str, Strata]) -> list[str]:
    """Return R_sys at the middle operating point, for each measured setting of repair."""
    from faultinject.estimate.strata import band  # noqa: PLC0415

    grid = spec.points.grid()
    estimates = []
    for repair, counts in strata.items() if grid else ():
        rm, rv, rh = grid[len(grid) // 2]
        system = band(counts, spec.alpha).system(rm, rv, rh)
        estimates.append(
            f"R_sys {_interval(system)} at R_M {rm:g}, R_V {rv:g}, R_H {rh:g}; plain {rh * rm:.4f}"
            + (f" (repair {repair})" if repair == "on" else "")
        )
    return estimates


def _doses(cells: Sequence[Cell], views: Sequence[CellResult]) -> list[str]:
    """Return measured R_sys and measured R_M of each dose."""
    by_name = {view.name: view for view in views}
    estimates = []
    for cell in cells:
        if not cell.dose or cell.common_cause or cell.design != "voted":
            continue
        voted, plain = by_name[cell.name], by_name.get(f"{cell.name}-nv")
        if plain is not None and plain.rate is not None and voted.rate is not None:
            estimates.append(
                f"{cell.dose} x {cell.kind}: R_M {_success(plain)}, R_sys {_success(voted)}"
            )
    return estimates


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _success(view: CellResult) -> str:
    rate = 0.0 if view.rate is None else view.rate
    return f"{1 - rate:.3f} [{1 - view.high:.3f}, {1 - view.low:.3f}]"


def _figure(
    spec: Spec,
    strata: Mapping[str, Strata],
    cells: Sequence[Cell],
    views: Sequence[CellResult],
) -> LiveFigure:
    """Return the figure of a campaign: doses as R_sys over R_M, strata as break-even R_V.

    ``strata``: the counts of the strata by setting of repair, once each has a trial.
    """
    node = Policy(spec.station.guests // 2 + 1, spec.station.guests)
    points = tuple(_dose_points(cells, views))
    if points:
        from faultinject.model.reliability import m_of_n  # noqa: PLC0415 - rarely needed

        at = [*GRID, 1.0] if min(each.x for each in points) >= 0.5 else [n / 50 for n in range(51)]
        line = [(rm, float(m_of_n(1.0, 1.0, rm, node.need, node.of))) for rm in at]
        return LiveFigure(points=points, curves=(_paper(line, "independent failures"),))
    if not strata:
        return LiveFigure()
    from faultinject.estimate.strata import band  # noqa: PLC0415 - scipy is slow to import
    from faultinject.model.bounds import breakeven_rv  # noqa: PLC0415

    curves = [_paper([(rm, float(breakeven_rv(rm, node.need, node.of))) for rm in GRID],
                     "Inequality (4)")]  # fmt: skip
    for repair, counts in strata.items():
        box = band(counts, spec.alpha)
        found = [(rm, box.bound(rm)) for rm in GRID]
        curves.append(
            Curve(
                kind="measured",
                label=f"measured break-even R_V (repair {repair})",
                points=tuple(
                    Estimate(x=rm, y=_shown(each.value), low=_shown(each.low),
                             high=_shown(each.high))
                    for rm, each in found if not math.isnan(each.value)
                ),
            )
        )  # fmt: skip
    return LiveFigure(y_label="reliability of the voting layer, R_V", curves=tuple(curves))


def _shown(value: float) -> float:
    return min(BEYOND, max(0.0, value))


def _paper(line: Sequence[tuple[float, float]], what: str) -> Curve:
    points = [(x, _shown(y)) for x, y in line]
    return Curve(
        kind="paper",
        label=f"the paper: {what}",
        points=tuple(Estimate(x=x, y=y, low=y, high=y) for x, y in points),
    )


def _dose_points(cells: Sequence[Cell], views: Sequence[CellResult]) -> Iterator[Estimate]:
    """Yield measured R_sys over measured R_M of each dose with trials of both designs."""
    by_name = {view.name: view for view in views}
    for cell in cells:
        if not cell.dose or cell.common_cause or cell.design != "voted":
            continue
        voted, plain = by_name[cell.name], by_name.get(f"{cell.name}-nv")
        if plain is not None and plain.rate is not None and voted.rate is not None:
            yield Estimate(
                x=1 - plain.rate, x_low=1 - plain.high, x_high=1 - plain.low,
                y=1 - voted.rate, low=1 - voted.high, high=1 - voted.low,
                label=f"{cell.dose} x {cell.kind}: {voted.trials} and {plain.trials} missions",
            )  # fmt: skip
