"""Two hypothesis tests: do guests fail independently, and do two runs fail equally often?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import EstimateError
from faultinject.model.paired import Paired
from faultinject.model.tails import binomial_at_least

__all__ = ["FailedGuests", "independence_test", "mcnemar_p"]

LEAST = 1.0
"""Expected missions a class must have.  Below that the G-test's chi-squared distribution is not a
valid approximation (Cochran 1954), so the class is pooled with its smaller neighbour."""


class FailedGuests(msgspec.Struct, frozen=True, kw_only=True):
    """Missions by number of failed guests: 0, 1, ..., the last class "or more".

    ``observed``: as counted.  ``expected``: if guests failed independently, each with the same
    probability, estimated from ``observed``; () where there is nothing to compare.  ``p_value``: of
    the G-test of independence; None where pooling leaves too few classes.
    """

    observed: tuple[int, ...]
    expected: tuple[float, ...] = ()
    p_value: float | None = None


def independence_test(missions: Sequence[int], n: int) -> FailedGuests:
    """Test whether the ``n`` guests fail independently (G-test against a fitted binomial).

    ``missions``: by number of failed guests.  A mission ends as soon as no vote is possible, which
    hides later failures; so the last class is open ("or more").  Where no guest failed, or every
    mission is in the last class, nothing can be compared.  Raises EstimateError.
    """
    if not 2 <= len(missions) <= n + 1 or min(missions) < 0:
        raise EstimateError(f"missions by failed guests: 2 to {n + 1} classes, counts from 0 on")
    observed, total = tuple(missions), sum(missions)
    if len(missions) < 3 or total in (missions[0], missions[-1]):
        return FailedGuests(observed=observed)
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to load
    from scipy.stats import binom, chi2  # noqa: PLC0415

    def shares(q: float) -> list[float]:
        exact = [float(binom.pmf(j, n, q)) for j in range(len(missions) - 1)]
        return [*exact, float(binom.sf(len(missions) - 2, n, q))]

    def negative_log_likelihood(q: float) -> float:
        pairs = zip(missions, shares(q), strict=True)
        return -math.fsum(c * math.log(max(p, 1e-300)) for c, p in pairs if c)

    fit = minimize_scalar(negative_log_likelihood, bounds=(1e-9, 1 - 1e-9), method="bounded")
    expected = tuple(total * share for share in shares(float(fit.x)))
    classes = _pooled(list(zip(missions, expected, strict=True)))
    freedom = len(classes) - 2
    deviance = 2 * math.fsum(c * math.log(c / e) for c, e in classes if c)
    p_value = float(chi2.sf(max(0.0, deviance), freedom)) if freedom > 0 else None
    return FailedGuests(observed=observed, expected=expected, p_value=p_value)


def _pooled(classes: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Pool each class with fewer than LEAST expected missions with its smaller neighbour."""
    while len(classes) > 1:
        rare = min(range(len(classes)), key=lambda i: classes[i][1])
        if classes[rare][1] >= LEAST:
            break
        neighbours = [i for i in (rare - 1, rare + 1) if 0 <= i < len(classes)]
        other = min(neighbours, key=lambda i: classes[i][1])
        low, high = sorted((rare, other))
        both = classes[low][0] + classes[high][0], classes[low][1] + classes[high][1]
        classes = [*classes[:low], both, *classes[high + 1 :]]
    return classes


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Return McNemar's exact two-sided p-value for missions that failed in one of two runs only."""
    if min(first_only, second_only) < 0:
        raise EstimateError("counts of pairs cannot be negative")
    tail = binomial_at_least(
        max(first_only, second_only), first_only + second_only, Paired(0.5)
    )  # fmt: skip
    return min(1.0, 2.0 * float(tail))
