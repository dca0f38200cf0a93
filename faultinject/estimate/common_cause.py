"""Common-cause failures: what one event does to all guests together, and to the node.

A common-cause trial is a mission with one event that may fail several guests at once: a poison
request, one bit flip in all of them.  The trials give ``c_j = P(exactly j guests fail | event)``.
How often such an event occurs is an assumption, not a measurement; the beta factor (the share of a
guest's failures that are failures of all guests) follows from both.

Intervals: Clopper-Pearson of each c_j at a level shared by Bonferroni.  A linear function of the
c_j takes its extremes over this box within the simplex ``sum c_j = 1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.intervals import (
    Interval,
    check_alpha,
    check_probability,
    clopper_pearson,
)
from faultinject.estimate.strata import weights
from faultinject.model.paired import Paired
from faultinject.model.tails import binomial_at_least

__all__ = ["AtFrequency", "CommonCauseResult", "at_frequency", "estimate_common_cause"]


class CommonCauseResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the trials show; all intervals come from one box and hold together.

    ``c[j]``: P(exactly j guests fail | event).  ``each``: P(a given guest fails | event).
    ``independent[j]``: c_j for independent guests that fail as often as ``each.value``.  ``fatal``:
    P(fewer than m guests are left | event); ``fatal_if_independent``: for independent guests.
    """

    c: tuple[Interval, ...]
    each: Interval
    independent: tuple[float, ...]
    fatal: Interval
    fatal_if_independent: float


class AtFrequency(msgspec.Struct, frozen=True, kw_only=True):
    """The node if the event occurs in a given, assumed, proportion of missions.

    ``rm``: a guest's reliability, the event included.  ``rsys``: the voted node's.  ``beta``: the
    share of a guest's failures that are failures of all guests by the event.
    """

    rm: Interval
    rsys: Interval
    beta: Interval


def _box(failed: Sequence[int], alpha: float) -> list[Interval]:
    if len(failed) < 2 or min(failed) < 0:
        raise EstimateError("trials are counts, 0 or more, for j = 0..n failed guests")
    if not sum(failed):
        raise EstimateError("there are no common-cause trials: run some first", error_code="TV0605")
    shared = check_alpha(alpha) / len(failed)
    return [clopper_pearson(count, sum(failed), shared) for count in failed]


def _extreme(parts: Sequence[Interval], factors: Sequence[float], most: bool) -> float:
    """Greatest (or least) ``sum a_j c_j`` for c in the box with ``sum c_j = 1``.

    What the lower ends leave over goes to the best factors first.
    """
    left = 1.0 - math.fsum(each.low for each in parts)
    total = math.fsum(a * each.low for a, each in zip(factors, parts, strict=True))
    for a, each in sorted(zip(factors, parts, strict=True), key=lambda pair: pair[0], reverse=most):
        given = min(left, each.width)
        total += a * given
        left -= given
    return total


def _linear(parts: Sequence[Interval], factors: Sequence[float]) -> Interval:
    return Interval(
        value=math.fsum(a * each.value for a, each in zip(factors, parts, strict=True)),
        low=_extreme(parts, factors, most=False),
        high=_extreme(parts, factors, most=True),
    )


def _check_votes(m: int, n: int) -> None:
    if not 1 <= m <= n:
        raise EstimateError(f"{m} of {n} guests must agree: need 1 <= m <= n")


def estimate_common_cause(
    failed: Sequence[int], alpha: float = 0.05, m: int = 2
) -> CommonCauseResult:
    """Estimate the c_j.  ``failed[j]``: trials after which exactly j guests failed, j = 0..n."""
    parts, n = _box(failed, alpha), len(failed) - 1
    _check_votes(m, n)
    each = _linear(parts, [j / n for j in range(n + 1)])
    chance = Paired.failing(min(1.0, max(0.0, each.value)))
    return CommonCauseResult(
        c=tuple(parts),
        each=each,
        independent=weights(each.value, n),
        fatal=_linear(parts, [1.0 if n - j < m else 0.0 for j in range(n + 1)]),
        fatal_if_independent=binomial_at_least(m, n, chance).down,
    )


def at_frequency(
    failed: Sequence[int], frequency: float, rm_own: float, m: int = 2, alpha: float = 0.05
) -> AtFrequency:
    """Return R_sys (R_H = R_V = 1) if the event occurs in the proportion ``frequency`` of missions.

    ``rm_own``: a guest's reliability apart from the event; its own failures are independent of it.
    ``R_sys = (1 - s) P_n + s sum_j c_j P_{n-j}``, with P_i the probability that at least m of i
    guests have no failure of their own.
    """
    s = check_probability("the frequency of common-cause events", frequency)
    own = Paired(check_probability("R_M apart from the event", rm_own))
    parts, n = _box(failed, alpha), len(failed) - 1
    _check_votes(m, n)
    left = [float(binomial_at_least(m, n - j, own)) for j in range(n + 1)]
    rm = _linear(parts, [float(own) * (1.0 - s * j / n) for j in range(n + 1)])
    return AtFrequency(
        rm=rm,
        rsys=_linear(parts, [(1.0 - s) * left[0] + s * each for each in left]),
        beta=Interval(
            value=_ratio(s * parts[n].value, 1.0 - rm.value),
            low=_ratio(s * parts[n].low, 1.0 - rm.low),
            high=_ratio(s * parts[n].high, 1.0 - rm.high),
        ),
    )


def _ratio(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0.0 else 0.0
