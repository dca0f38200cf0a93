"""Counts of missions: the input of every estimate.  Requests are never counted as trials."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from guests.errors import CodedError

__all__ = ["Counts", "EstimateError"]


class EstimateError(CodedError, ValueError):
    """Counts or settings that allow no estimate; the message says what to change."""

    error_code = "TV0604"


class Counts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Missions of one stratum.

    ``trials``: missions with an outcome.  ``failures``: those with any outcome but correct.
    ``silent``: those of the failures with a wrong reply that a client believes, or (old rows) may
    believe.  ``excluded``: missions
    without an outcome (the fault was not applied), which are not among the trials.
    """

    trials: int
    failures: int
    silent: int = 0
    excluded: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.silent <= self.failures <= self.trials or self.excluded < 0:
            raise EstimateError(
                f"{self.silent} silent of {self.failures} failures of {self.trials} trials "
                f"({self.excluded} excluded): need 0 <= silent <= failures <= trials, excluded >= 0"
            )

    @classmethod
    def of(cls, outcomes: Iterable[str | None]) -> Counts:
        """Count outcomes as ``results.outcome.Outcome`` writes them; None: excluded."""
        trials = failures = silent = excluded = 0
        for outcome in outcomes:
            if outcome is None:
                excluded += 1
                continue
            trials += 1
            failures += outcome != "correct"
            silent += outcome in ("silent-corruption", "unclear")
        return cls(trials=trials, failures=failures, silent=silent, excluded=excluded)

    @property
    def rate(self) -> float:
        """Proportion of the trials that failed; nan without trials."""
        return self.failures / self.trials if self.trials else math.nan

    def complement(self) -> Counts:
        """Count successes as failures: for g_k and R, which are probabilities of success."""
        return Counts(
            trials=self.trials, failures=self.trials - self.failures, excluded=self.excluded
        )

    def silent_only(self) -> Counts:
        """Count only silent failures as failures: for s_k."""
        return Counts(
            trials=self.trials, failures=self.silent, silent=self.silent, excluded=self.excluded
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            trials=self.trials + other.trials,
            failures=self.failures + other.failures,
            silent=self.silent + other.silent,
            excluded=self.excluded + other.excluded,
        )
