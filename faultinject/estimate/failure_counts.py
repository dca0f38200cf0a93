"""Do guests fall independently?  Asked of how many of them fell in each mission.

Of n guests that fall independently, each in a mission with probability q, the number that fall is
binomial.  A mission ends when a vote cannot be had any more, so whoever would have fallen later is
not seen: missions with more than n - m fallen guests are one class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import EstimateError

__all__ = ["FailureCounts", "independence_of_failures"]

LEAST = 1.0
"""Missions that a class must be expected to have: below that the chi-squared of the G-test is no
measure (Cochran 1954), and it is put together with its neighbour."""


class FailureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """``q``: the likeliest probability that a guest falls in a mission; ``expected``: missions by
    class if they fall independently; ``p``: the probability that chance alone would be as far from
    that (G-test, rare classes put together; None: too few classes are left).
    """

    q: float
    expected: tuple[float, ...]
    p: float | None


def independence_of_failures(missions: Sequence[int], n: int) -> FailureCounts | None:
    """Hold missions with 0, 1, ... fallen guests, the last class open, against independence.

    None where nothing fell, or everything did, or there are too few classes to tell: nothing is
    left to compare.  Raises EstimateError.
    """
    if not 2 <= len(missions) <= n + 1 or min(missions) < 0:
        raise EstimateError(f"missions by fallen guests: 2 to {n + 1} classes, counts from 0 on")
    total = sum(missions)
    if len(missions) < 3 or total in (missions[0], missions[-1]):
        return None
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to load
    from scipy.stats import binom, chi2  # noqa: PLC0415

    def shares(q: float) -> list[float]:
        exact = [float(binom.pmf(j, n, q)) for j in range(len(missions) - 1)]
        return [*exact, float(binom.sf(len(missions) - 2, n, q))]

    def unlikely(q: float) -> float:
        pairs = zip(missions, shares(q), strict=True)
        return -math.fsum(c * math.log(max(p, 1e-300)) for c, p in pairs if c)

    q = float(minimize_scalar(unlikely, bounds=(1e-9, 1 - 1e-9), method="bounded").x)
    expected = tuple(total * share for share in shares(q))
    classes = _common(list(zip(missions, expected, strict=True)))
    freedom = len(classes) - 2
    deviance = 2 * math.fsum(c * math.log(c / e) for c, e in classes if c)
    p = float(chi2.sf(max(0.0, deviance), freedom)) if freedom > 0 else None
    return FailureCounts(q=q, expected=expected, p=p)


def _common(classes: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Put each class of which fewer than LEAST are expected together with its lesser neighbour."""
    while len(classes) > 1:
        rare = min(range(len(classes)), key=lambda i: classes[i][1])
        if classes[rare][1] >= LEAST:
            break
        beside = [i for i in (rare - 1, rare + 1) if 0 <= i < len(classes)]
        other = min(beside, key=lambda i: classes[i][1])
        low, high = sorted((rare, other))
        both = classes[low][0] + classes[high][0], classes[low][1] + classes[high][1]
        classes = [*classes[:low], both, *classes[high + 1 :]]
    return classes
