"""Counts of missions by outcome.  Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from faultinject.results.outcome import Outcome

if TYPE_CHECKING:
    from faultinject.estimate.counts import Counts

__all__ = ["Tally"]


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The number of missions with each outcome; ``excluded`` ones are no trials."""

    silent_corruption: int = 0
    unclear: int = 0
    voter_lost: int = 0
    declared_error: int = 0
    detected: int = 0
    timeout: int = 0
    correct: int = 0
    excluded: int = 0

    @classmethod
    def of(cls, counts: dict[str | None, int]) -> Tally:
        """Return the tally of missions counted by outcome; None: excluded."""
        known = {str(outcome).replace("-", "_"): counts.get(outcome, 0) for outcome in Outcome}
        return cls(**known, excluded=counts.get(None, 0))

    @property
    def trials(self) -> int:
        """Return the missions with an outcome."""
        return self.failures + self.correct

    @property
    def failures(self) -> int:
        """Return what the paper counts as failures: every outcome but correct."""
        return self.wrong_replies + self.voter_lost + self.detected + self.timeout

    @property
    def wrong_replies(self) -> int:
        """Return the missions in which a wrong reply was released, believed or not."""
        return self.silent_corruption + self.unclear + self.declared_error

    @property
    def believed_at_most(self) -> int:
        """Return the missions with a wrong reply that a client believes, or may believe."""
        return self.silent_corruption + self.unclear

    @property
    def successes(self) -> int:
        """Return the correct missions."""
        return self.correct

    def __add__(self, other: Tally) -> Tally:
        mine, others = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return Tally(**{name: mine[name] + others[name] for name in mine})

    def counts(self) -> Counts:
        """Return what ``faultinject.estimate`` takes."""
        from faultinject.estimate.counts import Counts  # noqa: PLC0415 - not needed to store

        return Counts(
            trials=self.trials,
            failures=self.failures,
            silent=self.believed_at_most,
            excluded=self.excluded,
        )
