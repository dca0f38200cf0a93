"""Intervals for one probability from counts: Clopper-Pearson, and Jeffreys where it is labelled so.

``alpha`` is the probability of missing, in (0, 1): .05 for 95 %; it is split over both ends.
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
    "Interval",
    "check_alpha",
    "clopper_pearson",
    "jeffreys",
    "jeffreys_draws",
    "success",
    "worst_case",
]

EXACT = "Clopper-Pearson"
JEFFREYS = "Jeffreys posterior, pointwise"


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its interval.

    ``value``: as observed; nan where nothing was.  ``level``: the probability with which it
    covers, 1 - alpha (of all intervals of one box together where ``method`` says so).
    ``method``: in words, for a caption.
    """

    value: float
    low: float
    high: float
    level: float
    method: str

    @property
    def width(self) -> float:
        """From ``low`` to ``high``."""
        return self.high - self.low

    def contains(self, x: float) -> bool:
        """Whether ``x`` is in it, ends included."""
        return self.low <= x <= self.high

    def __contains__(self, x: float) -> bool:
        return self.contains(x)

    def turned(self) -> Interval:
        """The same of 1 - x."""
        return Interval(
            value=1.0 - self.value,
            low=1.0 - self.high,
            high=1.0 - self.low,
            level=self.level,
            method=self.method,
        )


def check_alpha(alpha: float) -> float:
    """Return ``alpha``, or raise EstimateError if it is not in (0, 1)."""
    if not 0.0 < alpha < 1.0:
        raise EstimateError(f"alpha is {alpha:g}: it must lie between 0 and 1, as .05 for 95 %")
    return alpha


@lru_cache(maxsize=65536)
def _exact_ends(failures: int, trials: int, alpha: float) -> tuple[float, float]:
    try:
        from scipy.special import betaincinv  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EstimateError("intervals need scipy: pip install 'trivisor[campaign]'") from error
    half = alpha / 2
    # The two ends with a closed form are taken by it: a rare event's interval hangs on them.
    if failures == 0:
        low, high = 0.0, -math.expm1(math.log(half) / trials)
    elif failures == trials:
        low, high = math.exp(math.log(half) / trials), 1.0
    else:
        low = float(betaincinv(failures, trials - failures + 1, half))
        high = float(betaincinv(failures + 1, trials - failures, 1.0 - half))
    return low, high


def clopper_pearson(failures: int, trials: int, alpha: float = 0.05) -> Interval:
    """Exact interval of a probability from ``failures`` among ``trials``; [0, 1] without trials.

    At 0 failures its upper end is ``1 - (alpha/2)^(1/n)``.  Never covers less than 1 - alpha.
    """
    check_alpha(alpha)
    if not 0 <= failures <= trials:
        raise EstimateError(f"{failures} failures of {trials} trials: need 0 <= failures <= trials")
    if trials == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, level=1.0 - alpha, method=EXACT)
    low, high = _exact_ends(failures, trials, alpha)
    return Interval(value=failures / trials, low=low, high=high, level=1.0 - alpha, method=EXACT)


def worst_case(counts: Counts, alpha: float = 0.05) -> Interval:
    """Interval of the failure probability that holds whatever the void missions would have been.

    All of them correct for the lower end, all of them failed for the upper one.
    """
    best = clopper_pearson(counts.failures, counts.trials + counts.void, alpha)
    worst = clopper_pearson(counts.failures + counts.void, counts.trials + counts.void, alpha)
    return Interval(
        value=counts.rate,
        low=best.low,
        high=worst.high,
        level=1.0 - alpha,
        method=f"{EXACT}, worst case over {counts.void} void missions",
    )


def success(counts: Counts, alpha: float = 0.05) -> Interval:
    """Exact interval of the probability of success, R."""
    return clopper_pearson(counts.failures, counts.trials, alpha).turned()


def jeffreys(failures: int, trials: int, alpha: float = 0.05) -> Interval:
    """Equal-tailed interval of the posterior Beta(x + 1/2, n - x + 1/2).

    It covers 1 - alpha on average over p and may miss for p near 0 or 1; as usual its end is 0 at
    no failure and 1 at no success.
    """
    check_alpha(alpha)
    if not 0 <= failures <= trials:
        raise EstimateError(f"{failures} failures of {trials} trials: need 0 <= failures <= trials")
    try:
        from scipy.special import betaincinv  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EstimateError("intervals need scipy: pip install 'trivisor[campaign]'") from error
    a, b = failures + 0.5, trials - failures + 0.5
    return Interval(
        value=failures / trials if trials else math.nan,
        low=0.0 if failures == 0 else float(betaincinv(a, b, alpha / 2)),
        high=1.0 if failures == trials else float(betaincinv(a, b, 1.0 - alpha / 2)),
        level=1.0 - alpha,
        method=JEFFREYS,
    )


def jeffreys_draws(strata: Sequence[Counts], draws: int, seed: int) -> NDArray[np.float64]:
    """``draws`` rows of failure probabilities, a column a stratum, from the Jeffreys posterior."""
    try:
        import numpy as np  # noqa: PLC0415 - comes with scipy, an extra
    except ImportError as error:
        raise EstimateError("sampling needs numpy: pip install 'trivisor[campaign]'") from error
    chance = np.random.default_rng(seed)
    failed = np.array([each.failures for each in strata], dtype=np.float64)
    passed = np.array([each.trials - each.failures for each in strata], dtype=np.float64)
    return chance.beta(failed + 0.5, passed + 0.5, size=(draws, len(strata)))
