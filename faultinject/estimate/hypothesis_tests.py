"""Do guests fail independently, and do two runs fail equally often?

The alternative to independence is the beta-binomial distribution of the number of failed guests:
each fails with probability ``q``, and ``rho`` is the correlation of two guests of one mission
(intraclass correlation; 0: independent, 1: one fate for all).  Prentice's extension (JASA 81, 1986)
also admits slightly negative ``rho``.  A mission ends as soon as no vote is possible, which hides
later failures; so the last class of failed guests is open ("or more").

Counts may be fractions: a statistic at expected counts is its noncentrality, which ``power`` uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.intervals import Interval, check_alpha, clopper_pearson
from faultinject.model.paired import Paired
from faultinject.model.tails import binomial_at_least

__all__ = [
    "Correlation", "FailedGuests", "correlated_shares", "correlation_ratio", "fit_correlation",
    "g_statistic", "independence_test", "mcnemar_p", "paired_difference",
]  # fmt: skip

LEAST = 1.0
"""Expected missions a class must have.  Below that the G-test's chi-squared distribution is not a
valid approximation (Cochran 1954), so the class is pooled with its smaller neighbour."""
MOST_CORRELATED = 0.999
EDGE = 1e-9
"""Distance from 0 and 1 at which the search for a probability ends."""


class FailedGuests(msgspec.Struct, frozen=True, kw_only=True):
    """Missions by number of failed guests: 0, 1, ..., the last class "or more".

    ``observed``: as counted.  ``expected``: if guests failed independently, each with the same
    probability, estimated from ``observed``; () where there is nothing to compare.  ``p_value``: of
    the G-test of independence; None where pooling leaves too few classes.
    """

    observed: tuple[int, ...]
    expected: tuple[float, ...] = ()
    p_value: float | None = None


def correlated_shares(q: float, n: int, classes: int, rho: float = 0.0) -> list[float]:
    """Return the probabilities of 0, 1, ... failed guests of ``n``, the last class open.

    Beta-binomial with mean ``q`` and intraclass correlation ``rho`` (0: binomial).
    """
    step = rho / (1.0 - rho)

    def rising(start: float, terms: int) -> float:
        return math.prod(max(0.0, start + step * i) for i in range(terms))

    whole = rising(1.0, n)
    exact = [math.comb(n, j) * rising(q, j) * rising(1.0 - q, n - j) / whole for j in range(n + 1)]
    return [*exact[: classes - 1], math.fsum(exact[classes - 1 :])]


def _fit(missions: Sequence[float], n: int, rho: float) -> tuple[float, float]:
    """Return the most likely ``q`` given ``rho``, and minus its log-likelihood."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to load

    def against(q: float) -> float:
        pairs = zip(missions, correlated_shares(q, n, len(missions), rho), strict=True)
        return -math.fsum(c * math.log(max(p, 1e-300)) for c, p in pairs if c)

    room = max(EDGE, (n - 1) * -rho / (1.0 - rho))  # negative rho excludes q near 0 and 1
    found = minimize_scalar(
        against, bounds=(room, 1.0 - room), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x), float(found.fun)


def _check_classes(missions: Sequence[float], n: int) -> None:
    if not 2 <= len(missions) <= n + 1 or min(missions) < 0:
        raise EstimateError(f"missions by failed guests: 2 to {n + 1} classes, counts from 0 on")


def independence_test(missions: Sequence[int], n: int) -> FailedGuests:
    """Test whether the ``n`` guests fail independently (G-test against a fitted binomial).

    ``missions``: by number of failed guests, the last class open.  Where no guest failed, or every
    mission is in the last class, nothing can be compared.  Raises EstimateError.
    """
    from scipy.stats import chi2  # noqa: PLC0415 - slow to load

    _check_classes(missions, n)
    observed = tuple(missions)
    if len(missions) < 3 or sum(missions) in (missions[0], missions[-1]):
        return FailedGuests(observed=observed)
    deviance, freedom, expected = g_statistic(missions, n)
    p_value = float(chi2.sf(deviance, freedom)) if freedom > 0 else None
    return FailedGuests(observed=observed, expected=expected, p_value=p_value)


def g_statistic(missions: Sequence[float], n: int) -> tuple[float, int, tuple[float, ...]]:
    """Return the G statistic of independence, its degrees of freedom, and the expected missions.

    Classes with fewer than LEAST expected missions are pooled before; the expected missions are
    those of the classes as given.
    """
    total = math.fsum(missions)
    shares = correlated_shares(_fit(missions, n, 0.0)[0], n, len(missions))
    expected = tuple(total * share for share in shares)
    classes = _pooled(list(zip(missions, expected, strict=True)))
    deviance = 2 * math.fsum(c * math.log(c / e) for c, e in classes if c)
    return max(0.0, deviance), len(classes) - 2, expected


class Correlation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The intraclass correlation of the guests' failures, one for all doses.

    ``rho``: maximum likelihood, with its profile-likelihood interval.  ``p_value``: of rho = 0.
    """

    rho: Interval
    p_value: float


def correlation_ratio(doses: Sequence[Sequence[float]], n: int, rho: float) -> float:
    """Return twice the log-likelihood ratio of ``rho`` against independence; each dose has its q.

    Negative where independence is more likely.
    """
    return 2 * math.fsum(_fit(each, n, 0.0)[1] - _fit(each, n, rho)[1] for each in doses)


def fit_correlation(
    doses: Sequence[Sequence[int]], n: int, alpha: float = 0.05
) -> Correlation | None:
    """Estimate the intraclass correlation common to all doses; None if no dose is given.

    ``doses``: missions by number of failed guests, 3 classes or more, the last open.  Raises
    EstimateError.
    """
    check_alpha(alpha)
    for each in doses:
        _check_classes(each, n)
        if len(each) < 3:
            raise EstimateError(
                "two classes show no correlation: count 3 classes or more", error_code="TV0605"
            )
    if not doses:
        return None
    from scipy.optimize import brentq, minimize_scalar  # noqa: PLC0415 - slow to load
    from scipy.stats import chi2  # noqa: PLC0415

    least = -1.0 / (2 * n)  # with much less, no probability of failure is possible

    def against(rho: float) -> float:
        return -correlation_ratio(doses, n, rho)

    fit = minimize_scalar(
        against, bounds=(least, MOST_CORRELATED), method="bounded", options={"xatol": 1e-6}
    )
    rho, best = float(fit.x), float(fit.fun)
    limit = best + float(chi2.isf(alpha, 1))

    def beyond(at: float) -> float:
        return against(at) - limit

    low = brentq(beyond, least, rho, xtol=1e-6) if beyond(least) > 0 else least
    high = brentq(beyond, rho, MOST_CORRELATED, xtol=1e-6) if beyond(MOST_CORRELATED) > 0 else 1.0
    return Correlation(
        rho=Interval(value=rho, low=float(low), high=float(high)),
        p_value=float(chi2.sf(max(0.0, -best), 1)),
    )


def _pooled(classes: list[tuple[float, float]]) -> list[tuple[float, float]]:
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


def paired_difference(
    first_only: int, second_only: int, pairs: int, alpha: float = 0.05
) -> Interval:
    """Return the failure rate of the second run minus that of the first, on the same missions.

    ``first_only``, ``second_only``: of the ``pairs``, those that failed in one run only.  The
    interval is Clopper-Pearson's of the second run's share of these, given their number.
    """
    apart = first_only + second_only
    if min(first_only, second_only) < 0 or apart > pairs:
        raise EstimateError("pairs that failed in one run only: from 0 to all pairs")
    if not pairs:
        return Interval(value=math.nan, low=-1.0, high=1.0)
    share = clopper_pearson(second_only, apart, alpha)
    scale = apart / pairs
    return Interval(
        value=(second_only - first_only) / pairs,
        low=(2 * share.low - 1) * scale,
        high=(2 * share.high - 1) * scale,
    )
