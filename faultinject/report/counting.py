"""From the store's tallies to shares with intervals: the ground of all gathering."""

from __future__ import annotations

import math

import msgspec

from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import Outcome
from faultinject.campaign.store.store import Store
from faultinject.campaign.store.tally import Tally
from faultinject.estimate import Counts, Interval, clopper_pearson
from faultinject.results.findings import Share

__all__ = ["Source", "finite", "outcomes_of", "share_of", "triple"]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The store, how far it is used, and the settings that every estimate needs.

    ``prefix``: of the plan's order, that many missions are used; None: all.
    """

    store: Store
    prefix: int | None
    alpha: float
    m: int
    n: int

    def cells(self) -> tuple[Cell, ...]:
        """The plan's cells."""
        return self.store.plan.cells

    def tally(self, **where: object) -> Tally:
        """Missions with these values, all together."""
        return sum(self.store.tallies(prefix=self.prefix, **where).values(), Tally())

    def several(self, *by: str, **where: object) -> dict[tuple[object, ...], Tally]:
        """The same by the values of columns."""
        return self.store.tallies(*by, prefix=self.prefix, **where)


def outcomes_of(tally: Tally) -> dict[Outcome, int]:
    """Trials by outcome, all five."""
    return {each: getattr(tally, each.value.replace("-", "_")) for each in Outcome}


def share_of(count: int, of: int, alpha: float) -> Share:
    """``count`` of ``of`` with its Clopper-Pearson interval."""
    found = clopper_pearson(count, of, alpha)
    return Share(count=count, of=of, low=found.low, high=found.high)


def triple(interval: Interval) -> tuple[float, float, float]:
    """(low, value, high)."""
    return interval.low, interval.value, interval.high


def finite(interval: Interval) -> tuple[float, float, float] | None:
    """(low, value, high), or None where one of them is not finite."""
    found = triple(interval)
    return found if all(map(math.isfinite, found)) else None


def counts_of(tally: Tally | None) -> Counts:
    """What the estimators take; no trial where there is no tally."""
    return Counts(trials=0, failures=0) if tally is None else tally.counts()
