"""Statistical power: how large a departure from the model would be detected with 80 % probability?

A result that shows no departure is evidence only against departures that it would have shown.
Used before a campaign, for its plan, and afterwards, at the measured R_M.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from faultinject.estimate.counts import Counts
from faultinject.estimate.doses import DoseCounts, mean_departure, model_ratio, predicted_rsys
from faultinject.estimate.hypothesis_tests import correlated_shares, correlation_ratio, g_statistic
from faultinject.estimate.intervals import Interval, check_alpha, check_probability, success
from faultinject.model.reliability import m_of_n

__all__ = [
    "POWER", "REFERENCE", "DosePower", "PooledPower", "comparable", "detectable_correlation",
    "detectable_difference", "detectable_share", "dose_power", "hidden_departure",
    "independence_power", "pooled_power", "possible_rsys",
]  # fmt: skip

POWER = 0.8
"""Probability with which a departure counts as detectable."""
REFERENCE = 0.1
"""Intraclass correlation for which the power of a G-test is stated."""
SPREAD = 6.0
"""Standard deviations of a binomial count that are enumerated on each side."""
MOST_COUNTS = 300
"""Counts of one node that are enumerated; of more, evenly spaced ones: the result is smooth."""
GRID = 400
HALVINGS = 30
PRECISION = 0.005
"""Relative precision of a smallest detectable departure."""
MOST_RHO = 0.99


def detectable_share(missions: int, power: float = POWER) -> float:
    """Return the smallest proportion of missions that shows at least once with this power.

    For strata in which the paper expects no failure, or only failures: one mission of the other
    kind is a departure.  ``1 - (1 - power)^(1/missions)``; at power .95 about 3/missions, the rule
    of three.  1 without missions.
    """
    if not missions:
        return 1.0
    return -math.expm1(math.log1p(-check_alpha(power)) / missions)


def detectable_difference(rate: float, one: int, other: int, alpha: float) -> float:
    """Return the smallest difference of two failure rates near ``rate`` that is detected.

    With POWER, between groups of these missions, by a two-sided test at ``alpha`` (normal
    approximation; Fisher's exact test has a little less power).  At most 1.
    """
    from scipy.stats import norm  # noqa: PLC0415 - slow to load

    check_probability("the failure rate", rate)
    if not one or not other:
        return 1.0
    spread = math.sqrt(rate * (1.0 - rate) * (1.0 / one + 1.0 / other))
    return min(1.0, float(norm.isf(check_alpha(alpha) / 2) + norm.ppf(POWER)) * spread)


def hidden_departure(
    weights: Sequence[float], missions: Sequence[int], power: float = POWER
) -> tuple[float, int]:
    """Return the smallest change of ``sum w_k f_k`` that is detectable whichever f_k departs alone.

    With its k: the stratum in which the greatest departure can hide.
    """
    sizes = [w * detectable_share(count, power) for w, count in zip(weights, missions, strict=True)]
    worst = max(range(len(sizes)), key=sizes.__getitem__)
    return sizes[worst], worst


@lru_cache(maxsize=4096)
def possible_rsys(rm: float, m: int = 2, n: int = 3) -> tuple[float, float]:
    """Return the least and greatest R_sys at this R_M under any shared condition of the guests.

    That is: each mission has a condition (load, workload, a common cause), and given it the guests
    fail independently and equally often; the voter is perfect.  ``R_sys`` then lies between the
    convex and the concave envelope of the model over R_M; for an S-shaped curve these are the
    tangents from its ends.
    """
    check_probability("R_M", rm)

    def model(x: float) -> float:
        return float(m_of_n(1.0, 1.0, x, m, n))

    above = [rm + (1.0 - rm) * i / GRID for i in range(GRID + 1)]
    below = [rm * i / GRID for i in range(GRID + 1)]
    high = max((rm * model(x) / x for x in above if x > 0.0), default=0.0)
    low = min((1.0 - (1.0 - rm) * (1.0 - model(x)) / (1.0 - x) for x in below if x < 1.0),
              default=1.0)  # fmt: skip
    return low, high


class DosePower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the comparison of R_sys with the model can show at one R_M.

    ``lowest``, ``highest``: R_sys that a shared condition can make of this R_M (``possible_rsys``).
    ``below``, ``above``: the smallest departure in that direction that is shown with POWER; None:
    not even the greatest possible one is.  ``discriminates``: some possible departure exceeds the
    margin of agreement, and the greatest possible one is shown with POWER.  Without that, agreement
    at this dose is no evidence.
    """

    lowest: float
    highest: float
    below: float | None
    above: float | None
    discriminates: bool


def dose_power(
    rm: float, plain: int, voted: int, alpha: float, margin: float, m: int = 2, n: int = 3
) -> DosePower:
    """Return the power at R_M with these missions on the plain and the voted node.

    ``alpha``: of the departure's interval, Bonferroni included.
    """
    model = float(m_of_n(1.0, 1.0, rm, m, n))
    lowest, highest = possible_rsys(rm, m, n)
    if not plain or not voted:
        return DosePower(lowest=lowest, highest=highest, below=None, above=None,
                         discriminates=False)  # fmt: skip

    def detected(rsys: float) -> bool:
        return _departure_power(rm, rsys, plain, voted, alpha, m, n) >= POWER

    below, above = (
        _smallest(lambda size, sign=sign: detected(model + sign * size), most)  # type: ignore[misc]
        for sign, most in ((-1, model - lowest), (1, highest - model))
    )
    return DosePower(
        lowest=lowest, highest=highest, below=below, above=above,
        discriminates=any(
            found is not None and most > margin
            for found, most in ((below, model - lowest), (above, highest - model))
        ),
    )  # fmt: skip


def _smallest(detected: Callable[[float], bool], most: float) -> float | None:
    """Return the smallest size up to ``most`` that is detected; None: none is."""
    if most <= 0.0 or not detected(most):
        return None
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle) else (middle, high)
        if high - low < high * PRECISION:
            break
    return high


def _counts(chance: float, trials: int) -> range:
    spread = SPREAD * math.sqrt(trials * chance * (1.0 - chance)) + SPREAD
    low = max(0, math.floor(trials * chance - spread))
    high = min(trials, math.ceil(trials * chance + spread))
    return range(low, high + 1, max(1, (high - low) // MOST_COUNTS))


def _departure_power(
    rm: float, rsys: float, plain: int, voted: int, alpha: float, m: int, n: int
) -> float:
    """Return the probability that the departure's interval lies on the side of ``rsys``.

    Summed over all likely counts of both nodes; the interval is that of ``departure_interval``.
    """
    import numpy as np  # noqa: PLC0415 - comes with scipy, slow to load
    from scipy.stats import binom  # noqa: PLC0415

    on_plain, on_voted = _counts(rm, plain), _counts(rsys, voted)
    known = [_success(won, voted, alpha) for won in on_voted]
    models = [predicted_rsys(_success(won, plain, alpha), m, n) for won in on_plain]
    value, low, high = (
        np.array([getattr(each, end) for each in known])[:, None]
        for end in ("value", "low", "high")
    )
    model, least, most = (
        np.array([getattr(each, end) for each in models])[None, :]
        for end in ("value", "low", "high")
    )
    if rsys > float(m_of_n(1.0, 1.0, rm, m, n)):
        shown = value - model > np.hypot(value - low, most - model)
    else:
        shown = model - value > np.hypot(high - value, model - least)
    likely = np.asarray(binom.pmf(on_voted, voted, rsys))
    given = np.asarray(binom.pmf(on_plain, plain, rm))
    return float(likely @ shown @ given / (likely.sum() * given.sum()))


def _success(won: int, missions: int, alpha: float) -> Interval:
    return success(Counts(trials=missions, failures=missions - won), alpha)


def _needed(freedom: int, alpha: float) -> float:
    """Return the noncentrality at which a chi-squared test has POWER."""
    from scipy.optimize import brentq  # noqa: PLC0415 - slow to load
    from scipy.stats import chi2, ncx2  # noqa: PLC0415

    limit = chi2.isf(alpha, freedom)
    return float(brentq(lambda size: ncx2.sf(limit, freedom, size) - POWER, 1e-6, 1e4))


def _expected(q: float, missions: int, n: int, classes: int, rho: float) -> list[float]:
    return [missions * share for share in correlated_shares(q, n, classes, rho)]


def independence_power(
    rho: float, q: float, missions: int, alpha: float, classes: int = 3, n: int = 3
) -> float:
    """Return the power of the G-test of independence against the intraclass correlation ``rho``.

    ``q``: a guest's probability of failure.  0 where too few classes are left after pooling.
    """
    from scipy.stats import chi2, ncx2  # noqa: PLC0415 - slow to load

    size, freedom, _ = g_statistic(_expected(q, missions, n, classes, rho), n)
    if freedom < 1:
        return 0.0
    return float(ncx2.sf(chi2.isf(alpha, freedom), freedom, size))


def detectable_correlation(
    q: float, missions: int, alpha: float, classes: int = 3, n: int = 3
) -> float | None:
    """Return the smallest positive rho that the G-test detects with POWER; None: not even .99."""
    return _least_correlation(
        lambda rho: independence_power(rho, q, missions, alpha, classes, n) - POWER
    )


def _least_correlation(surplus: Callable[[float], float]) -> float | None:
    """Return the smallest rho at which ``surplus`` is 0 or more."""
    return _smallest(lambda rho: surplus(rho) >= 0.0, MOST_RHO)


class PooledPower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the doses together detect with POWER.

    ``departure``: a mean departure of R_sys from the model, either direction.  ``correlation``: an
    intraclass correlation, by the number of failed guests at the doses that have enough classes.
    ``joint_correlation``: one that the joint test of R_sys detects.  None: none is detected.
    """

    departure: float | None
    correlation: float | None
    joint_correlation: float | None


def pooled_power(
    doses: Sequence[tuple[float, int, int]], alpha: float = 0.05, m: int = 2, n: int = 3
) -> PooledPower:
    """Return the power of all doses together: (R_M, missions of the plain and the voted node)."""
    used = [(rm, plain, voted) for rm, plain, voted in doses if plain and voted]
    if not used:
        return PooledPower(departure=None, correlation=None, joint_correlation=None)
    mean = mean_departure([_as_modelled(*each, m=m, n=n) for each in used], alpha, m, n)
    one, joint = _needed(1, alpha), _needed(len(used), alpha)
    classes = n - m + 2

    counted = [each for each in used if comparable(1 - each[0], each[2], n, classes)]

    def by_failed(rho: float) -> float:
        expected = [_expected(1 - rm, voted, n, classes, rho) for rm, _, voted in counted]
        return correlation_ratio(expected, n, rho) - one

    def by_rsys(rho: float) -> float:
        return math.fsum(
            model_ratio(
                (rm * plain, plain),
                (math.fsum(_expected(1 - rm, voted, n, classes, rho)[:-1]), voted), m, n,
            )
            for rm, plain, voted in used
        ) - joint  # fmt: skip

    models = [float(m_of_n(1.0, 1.0, rm, m, n)) for rm, _, _ in used]
    possible = max(math.fsum(models), len(used) - math.fsum(models)) / len(used)
    size = math.inf
    if mean is not None:
        size = max(mean.high - mean.value, mean.value - mean.low) * _beyond(alpha)
    return PooledPower(
        departure=size if size <= possible else None,
        correlation=_least_correlation(by_failed) if counted else None,
        joint_correlation=_least_correlation(by_rsys),
    )


def comparable(q: float, missions: int, n: int, classes: int) -> bool:
    """Whether enough classes are left for the G-test if the guests fail independently."""
    return classes > 2 and g_statistic(_expected(q, missions, n, classes, 0.0), n)[1] > 0


def _as_modelled(rm: float, plain: int, voted: int, *, m: int, n: int) -> DoseCounts:
    """Return the counts that the model gives, rounded."""
    rsys = float(m_of_n(1.0, 1.0, rm, m, n))
    return DoseCounts(
        dose=0.0,
        nv=Counts(trials=plain, failures=round(plain * (1 - rm))),
        voted=Counts(trials=voted, failures=round(voted * (1 - rsys))),
    )


def _beyond(alpha: float) -> float:
    """Return the detectable size over the interval's half-width, for a normal estimate."""
    from scipy.stats import norm  # noqa: PLC0415 - slow to load

    return float((norm.isf(alpha / 2) + norm.ppf(POWER)) / norm.isf(alpha / 2))
