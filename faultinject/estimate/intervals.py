"""Confidence intervals for one probability (Clopper-Pearson), and draws from Jeffreys posteriors.

``alpha`` is the probability that an interval misses, in (0, 1): .05 for 95 %; each end gets half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from faultinject.estimate.counts import Counts, EstimateError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Interval", "check_alpha", "check_probability", "clopper_pearson", "jeffreys_draws",
    "quantiles", "success", "worst_case",
]  # fmt: skip

NEEDS_SCIPY = "intervals need scipy: pip install scipy"


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A point estimate with its confidence interval; ``value`` is nan where nothing was observed.

    The function that makes it states the level, and whether it holds simultaneously with others.
    """

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """From ``low`` to ``high``."""
        return self.high - self.low

    @property
    def finite(self) -> bool:
        """Whether all three numbers are finite."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))

    def contains(self, x: float) -> bool:
        """Whether the interval contains ``x``, ends included."""
        return self.low <= x <= self.high

    def complement(self) -> Interval:
        """The interval of 1 - x."""
        return Interval(value=1.0 - self.value, low=1.0 - self.high, high=1.0 - self.low)


def check_alpha(alpha: float) -> float:
    """Return ``alpha``.  Raises EstimateError if it is not in (0, 1)."""
    if not 0.0 < alpha < 1.0:
        raise EstimateError(f"alpha is {alpha:g}: it must lie between 0 and 1, as .05 for 95 %")
    return alpha


def check_probability(name: str, value: float) -> float:
    """Return ``value``.  Raises EstimateError if it is not in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise EstimateError(f"{name} is {value:g}: it must be a probability, from 0 to 1")
    return float(value)


@lru_cache(maxsize=65536)
def _exact_ends(failures: int, trials: int, alpha: float) -> tuple[float, float]:
    try:
        from scipy.special import betaincinv  # noqa: PLC0415 - slow to load
    except ImportError as error:
        raise EstimateError(NEEDS_SCIPY, error_code="TV0606") from error
    half = alpha / 2
    # Closed forms at no failure and at no success: rare events depend on their accuracy.
    if failures == 0:
        low, high = 0.0, -math.expm1(math.log(half) / trials)
    elif failures == trials:
        low, high = math.exp(math.log(half) / trials), 1.0
    else:
        low = float(betaincinv(failures, trials - failures + 1, half))
        high = float(betaincinv(failures + 1, trials - failures, 1.0 - half))
    return low, high


def clopper_pearson(failures: int, trials: int, alpha: float = 0.05) -> Interval:
    """Return the exact interval of a failure probability; [0, 1] without trials.

    Its coverage is never below 1 - ``alpha``.  Without a failure it ends at
    ``1 - (alpha/2)^(1/trials)``.
    """
    check_alpha(alpha)
    if not 0 <= failures <= trials:
        raise EstimateError(f"{failures} failures of {trials} trials: need 0 <= failures <= trials")
    if trials == 0:
        return Interval(value=math.nan, low=0.0, high=1.0)
    low, high = _exact_ends(failures, trials, alpha)
    return Interval(value=failures / trials, low=low, high=high)


def worst_case(counts: Counts, alpha: float = 0.05) -> Interval:
    """Return the interval of the failure probability, whatever excluded missions would have been.

    The lower end takes all of them as correct, the upper end as failed.
    """
    best = clopper_pearson(counts.failures, counts.trials + counts.excluded, alpha)
    worst = clopper_pearson(
        counts.failures + counts.excluded, counts.trials + counts.excluded, alpha
    )
    return Interval(value=counts.rate, low=best.low, high=worst.high)


def success(counts: Counts, alpha: float = 0.05) -> Interval:
    """Return the exact interval of the probability of success, R."""
    return clopper_pearson(counts.failures, counts.trials, alpha).complement()


def jeffreys_draws(strata: Sequence[Counts], draws: int, seed: int) -> NDArray[np.float64]:
    """Draw failure probabilities from Jeffreys posteriors: ``draws`` rows, a column per stratum."""
    try:
        import numpy as np  # noqa: PLC0415 - slow to load
    except ImportError as error:
        raise EstimateError(NEEDS_SCIPY, error_code="TV0606") from error
    chance = np.random.default_rng(seed)
    failed = np.array([each.failures for each in strata], dtype=np.float64)
    passed = np.array([each.trials - each.failures for each in strata], dtype=np.float64)
    return chance.beta(failed + 0.5, passed + 0.5, size=(draws, len(strata)))


def quantiles(drawn: NDArray[np.float64], alpha: float, value: float) -> Interval:
    """Return the equal-tailed interval of the draws, extended to contain the observed ``value``.

    Without the extension, a stratum without failures (all draws above 0) would exclude 0.
    """
    import numpy as np  # noqa: PLC0415 - slow to load

    low, high = np.quantile(drawn, [alpha / 2, 1.0 - alpha / 2], method="nearest")
    if not math.isnan(value):
        low, high = min(low, value), max(high, value)
    return Interval(value=value, low=float(low), high=float(high))
