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

__all__ = ["Falls", "judge_falls"]


class Falls(msgspec.Struct, frozen=True, kw_only=True):
    """``q``: the likeliest probability that a guest falls in a mission; ``expected``: missions by
    class if they fall independently; ``p``: the probability that chance alone would be as far from
    that (G-test).
    """

    q: float
    expected: tuple[float, ...]
    p: float


def judge_falls(missions: Sequence[int], n: int) -> Falls | None:
    """Hold missions with 0, 1, ... fallen guests, the last class open, against independence.

    None where nothing fell, or everything did, or there are too few classes to tell: nothing is
    left to compare.  Raises EstimateError.
    """
    if not 2 <= len(missions) <= n + 1 or min(missions) < 0:
        raise EstimateError(f"missions by fallen guests: 2 to {n + 1} classes, counts from 0 on")
    total, freedom = sum(missions), len(missions) - 2
    if freedom < 1 or total in (missions[0], missions[-1]):
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
    deviance = 2 * math.fsum(
        c * math.log(c / e) for c, e in zip(missions, expected, strict=True) if c
    )
    return Falls(q=q, expected=expected, p=float(chi2.sf(max(0.0, deviance), freedom)))
