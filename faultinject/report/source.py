"""Access to a campaign's tallies, and proportions with their intervals."""

from __future__ import annotations

import msgspec

from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.store.store import Store
from faultinject.campaign.store.tally import Tally
from faultinject.estimate.counts import Counts
from faultinject.estimate.intervals import clopper_pearson
from faultinject.results.findings import Proportion, WrongReplyCounts
from faultinject.results.outcome import Outcome
from voter.core.vote import Policy

__all__ = ["Source", "counts_of", "outcomes_of"]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The store, how much of it is used, and the settings that every estimate needs.

    ``prefix``: how many missions of the plan's order are used; None: all.
    """

    store: Store
    prefix: int | None
    alpha: float
    m: int
    n: int

    def cells(self) -> tuple[Cell, ...]:
        """Return the plan's cells."""
        return self.store.plan.cells

    def policy(self, vote: str) -> Policy:
        """Return the policy of a cell; an empty ``vote`` is the node's."""
        return Policy.parse(vote) if vote else Policy(self.m, self.n)

    def tally(self, **where: object) -> Tally:
        """Count the missions with these values, all together."""
        return sum(self.store.tallies(prefix=self.prefix, **where).values(), Tally())

    def grouped(self, *by: str, **where: object) -> dict[tuple[object, ...], Tally]:
        """Count the missions with these values, by the values of columns."""
        return self.store.tallies(*by, prefix=self.prefix, **where)

    def proportion(self, count: int, of: int, unclear: int = 0) -> Proportion:
        """Return ``count`` of ``of`` with its Clopper-Pearson interval.

        Up to ``unclear`` more may belong to it, so the upper end is that of all of them.
        """
        found = clopper_pearson(count, of, self.alpha)
        most = clopper_pearson(count + unclear, of, self.alpha)
        return Proportion(count=count, of=of, low=found.low, high=most.high)

    def wrong_replies(
        self, tally: Tally, prefix: int | None = None, **where: object
    ) -> WrongReplyCounts:
        """Return the wrong replies in ``tally``, with the statuses of all missions ``where``."""
        statuses = {
            str(key[0]): each.wrong_replies
            for key, each in self.store.tallies("status", prefix=prefix, **where).items()
            if key[0] is not None and each.wrong_replies
        }
        return WrongReplyCounts(
            missions=tally.trials, silent=tally.silent_corruption, unclear=tally.unclear,
            declared=tally.declared_error, statuses=statuses,
        )  # fmt: skip


def outcomes_of(tally: Tally) -> dict[Outcome, int]:
    """Return the trials by outcome, all of them."""
    return {each: getattr(tally, each.value.replace("-", "_")) for each in Outcome}


def counts_of(tally: Tally | None) -> Counts:
    """Return the estimators' input; no trial where there is no tally."""
    return Counts(trials=0, failures=0) if tally is None else tally.counts()
