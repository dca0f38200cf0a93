"""Counts of rows by outcome, as the store gives them.  Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from faultinject.campaign.records import Outcome

if TYPE_CHECKING:
    from faultinject.estimate.counts import Counts

__all__ = ["LatencyTally", "Tally", "latency_of"]


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Missions of some set by what they came to; ``void`` ones are no trials."""

    silent: int = 0
    voter_lost: int = 0
    detected: int = 0
    timeout: int = 0
    correct: int = 0
    void: int = 0

    @classmethod
    def of(cls, counts: dict[str | None, int]) -> Tally:
        """Return the tally of missions by the words of their outcomes; None: void."""
        known = {str(outcome).replace("-", "_"): counts.get(outcome, 0) for outcome in Outcome}
        return cls(**known, void=counts.get(None, 0))

    @property
    def trials(self) -> int:
        """Missions with an outcome."""
        return self.failures + self.correct

    @property
    def failures(self) -> int:
        """The paper's: any outcome but correct."""
        return self.silent + self.voter_lost + self.detected + self.timeout

    @property
    def successes(self) -> int:
        """Missions that came out right."""
        return self.correct

    def __add__(self, other: Tally) -> Tally:
        mine, others = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return Tally(**{name: mine[name] + others[name] for name in mine})

    def counts(self) -> Counts:
        """Return what ``faultinject.estimate`` takes."""
        from faultinject.estimate.counts import Counts  # noqa: PLC0415 - not needed to store

        return Counts(
            trials=self.trials, failures=self.failures, silent=self.silent, void=self.void
        )


class LatencyTally(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of answered requests in seconds, and how many there were.

    ``unanswered``: requests without an answer, which are in no figure here.
    """

    count: int
    unanswered: int
    p50: float
    p95: float
    p99: float
    max: float


def latency_of(latencies: list[float], unanswered: int = 0) -> LatencyTally:
    """Summarize latencies; each percentile is one that was measured (the nearest rank).

    All are 0 if there is none.
    """
    if not latencies:
        return LatencyTally(count=0, unanswered=unanswered, p50=0.0, p95=0.0, p99=0.0, max=0.0)
    ranked = sorted(latencies)

    def rank(percent: int) -> float:
        return ranked[-(-len(ranked) * percent // 100) - 1]

    return LatencyTally(
        count=len(ranked),
        unanswered=unanswered,
        p50=rank(50),
        p95=rank(95),
        p99=rank(99),
        max=ranked[-1],
    )
