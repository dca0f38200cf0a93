"""What the rows written so far show, for those who wait.

Looking again and again is no test: these figures decide nothing.  The verdict comes from the
planned number of missions (``faultinject.report``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from faultinject.campaign.store.tally import Tally

if TYPE_CHECKING:
    from faultinject.campaign.planning.plan import Cell
    from faultinject.campaign.planning.spec import Spec
    from faultinject.estimate.intervals import Interval

__all__ = ["CellView", "InterimResults", "look_at"]


class CellView(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the plan so far.

    ``voted``: not the plain design, whose one guest nobody watches.  ``rate``: failures over
    trials (None: no trial yet), ``low`` and ``high`` its Clopper-Pearson interval by itself.
    """

    name: str
    voted: bool
    planned: int
    trials: int
    failures: int
    silent: int
    void: int
    rate: float | None
    low: float
    high: float


class InterimResults(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.  ``words``: the question's own figure with its interval, or why there is none."""

    cells: tuple[CellView, ...]
    words: tuple[str, ...] = ()

    @property
    def silent(self) -> int:
        """Missions in which the voter released a wrong reply."""
        return sum(cell.silent for cell in self.cells if cell.voted)


def look_at(spec: Spec, cells: Sequence[Cell], tallies: Mapping[str, Tally]) -> InterimResults:
    """Return what ``tallies`` (by counted stratum) show of the plan's ``cells``.

    Raises EstimateError where scipy is missing.
    """
    views = tuple(_view(cell, tallies.get(cell.name), spec.alpha) for cell in cells)
    return InterimResults(cells=views, words=(*_systems(spec, tallies), *_doses(cells, views)))


def _view(cell: Cell, tally: Tally | None, alpha: float) -> CellView:
    from faultinject.estimate.intervals import clopper_pearson  # noqa: PLC0415 - scipy is slow to import

    known = tally or Tally()
    interval = clopper_pearson(known.failures, known.trials, alpha)
    return CellView(
        name=cell.name,
        voted=cell.design == "voted",
        planned=cell.missions,
        trials=known.trials,
        failures=known.failures,
        silent=known.silent,
        void=known.void,
        rate=interval.value if known.trials else None,
        low=interval.low,
        high=interval.high,
    )


def _systems(spec: Spec, tallies: Mapping[str, Tally]) -> list[str]:
    """R_sys at the middle operating point, for each of repair off and on that is measured."""
    from faultinject.estimate.strata import Strata, band  # noqa: PLC0415

    grid = spec.points.grid()
    words = []
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
        words.append(
            f"R_sys {_interval(system)} at R_M {rm:g}, R_V {rv:g}, R_H {rh:g}; plain {rh * rm:.4f}"
            + (f" (repair {repair})" if repair == "on" else "")
        )
    return words


def _doses(cells: Sequence[Cell], views: Sequence[CellView]) -> list[str]:
    """Measured R_sys beside measured R_M, dose by dose."""
    by_name = {view.name: view for view in views}
    words = []
    for cell in cells:
        if not cell.dose or cell.shot or cell.design != "voted":
            continue
        voted, plain = by_name[cell.name], by_name.get(f"{cell.name}-nv")
        if plain is not None and plain.rate is not None and voted.rate is not None:
            words.append(
                f"{cell.dose} x {cell.kind}: R_M {_success(plain)}, R_sys {_success(voted)}"
            )
    return words


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _success(view: CellView) -> str:
    rate = 0.0 if view.rate is None else view.rate
    return f"{1 - rate:.3f} [{1 - view.high:.3f}, {1 - view.low:.3f}]"
