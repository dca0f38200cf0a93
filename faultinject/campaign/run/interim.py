"""Interim results: what the rows show so far, for people who wait.

Nothing may be decided by them, because repeated analyses of growing data are not one test.  The
verdict comes from the planned number of missions (``faultinject.report``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from faultinject.campaign.store.tally import Tally

if TYPE_CHECKING:
    from faultinject.campaign.planning.plan import Cell
    from faultinject.campaign.planning.spec import Spec
    from faultinject.campaign.store.store import Store
    from faultinject.estimate.intervals import Interval

__all__ = ["CellResult", "InterimResults", "interim_results", "results_of"]


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


class InterimResults(msgspec.Struct, frozen=True, kw_only=True):
    """The results of all cells.  ``estimates``: of the quantities that the campaign is about."""

    cells: tuple[CellResult, ...]
    estimates: tuple[str, ...] = ()


def interim_results(store: Store) -> InterimResults:
    """Return what the rows of a campaign show so far."""
    return results_of(store.spec, store.plan.cells, store.by_stratum())


def results_of(spec: Spec, cells: Sequence[Cell], tallies: Mapping[str, Tally]) -> InterimResults:
    """Return what ``tallies`` (by stratum) show.  Raises EstimateError if scipy is missing."""
    views = tuple(_view(cell, tallies.get(cell.name), spec.alpha) for cell in cells)
    return InterimResults(cells=views, estimates=(*_systems(spec, tallies), *_doses(cells, views)))


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


def _systems(spec: Spec, tallies: Mapping[str, Tally]) -> list[str]:
    """Return R_sys at the middle operating point, for each measured setting of repair."""
    from faultinject.estimate.strata import Strata, band  # noqa: PLC0415

    grid = spec.points.grid()
    estimates = []
    for suffix, repair in (("", "off"), ("-repair", "on")):
        found = [tallies.get(f"f{k}{suffix}") for k in range(spec.station.guests + 1)]
        if not grid or any(tally is None or not tally.trials for tally in found):
            continue
        hit = [tallies.get(f"g{k}{suffix}") for k in range(spec.station.guests + 1)]

        strata = Strata(
            guests=tuple(tally.counts() for tally in found if tally is not None),
            voter=tuple(tally.counts() if tally and tally.trials else None for tally in hit),
            repair=repair == "on",
        )
        rm, rv, rh = grid[len(grid) // 2]
        system = band(strata, spec.alpha).system(rm, rv, rh)
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
