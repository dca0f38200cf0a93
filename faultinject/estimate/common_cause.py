"""Shared causes: what one shot does to all guests together, and what that makes of the node.

A shot is one event that may fail several guests at once: a poison request, one flip in all.  From
shots come ``c_j = P(exactly j guests fail | shot)``.  How often a mission has a shot is an input,
it is not measured here; the beta factor follows from both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import Interval, check_alpha, clopper_pearson
from faultinject.estimate.posterior import quantiles
from faultinject.estimate.strata import check_probability, weights
from faultinject.model.paired import Paired
from faultinject.model.tails import binomial_at_least

__all__ = [
    "AtFrequency",
    "Dependence",
    "CommonCauseTrials",
    "CommonCauseResult",
    "at_frequency",
    "estimate_common_cause",
]

DRAWS = 20_000
METHOD = "Clopper-Pearson of each c_j, Bonferroni box, within sum c_j = 1"


class Dependence(StrEnum):
    """How the guests fail under one shot, beside independent guests that fail as often."""

    TOGETHER = "more of them together"
    APART = "fewer of them together"
    UNDECIDED = "undecided"


class CommonCauseTrials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shots did.

    ``failed[j]``: shots after which exactly j guests failed, j = 0..n.  ``system``: the voted
    node's missions under a shot.  ``nv``: plain missions under the same shot, run on their own.
    """

    failed: tuple[int, ...]
    system: Counts | None = None
    nv: Counts | None = None

    def __post_init__(self) -> None:
        if len(self.failed) < 2 or min(self.failed) < 0:
            raise EstimateError("shots need counts, 0 or more, for j = 0..n failed guests")
        if not sum(self.failed):
            raise EstimateError("there are no shots to judge: run some first")

    @property
    def n(self) -> int:
        """How many guests the node has."""
        return len(self.failed) - 1

    @property
    def total(self) -> int:
        """How many shots were fired."""
        return sum(self.failed)


class CommonCauseResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the shots show; the intervals of c, ``each`` and both fatal ones come from one box.

    ``c[j]``: P(exactly j fail | shot).  ``each``: P(a given guest fails | shot), their mean.
    ``independent[j]``: c_j if guests failed independently, as often as ``each.value``.  ``fatal``:
    P(fewer than m guests are left | shot); ``fatal_if_independent``: the same for independent
    guests that fail as often.  ``excess``: fatal less that, by posterior sampling, from which
    ``dependence`` is read.  ``system``, ``nv``: failure probabilities under a shot.
    """

    c: tuple[Interval, ...]
    each: Interval
    independent: tuple[float, ...]
    fatal: Interval
    fatal_if_independent: Interval
    excess: Interval
    dependence: Dependence
    system: Interval | None
    nv: Interval | None
    words: str


class AtFrequency(msgspec.Struct, frozen=True, kw_only=True):
    """The node when a mission has a shot with probability ``frequency``, an assumption.

    ``rm``: a guest's reliability, shots included.  ``rsys``: of the voted node.
    ``rsys_independent``: of one whose guests have the same ``rm`` and fail independently.
    ``beta``: the part of a guest's failures that are failures of all n at once by a shot.
    ``helps``: the shared cause makes the voted node more reliable than independence would.
    """

    frequency: float
    rm: Interval
    rsys: Interval
    rsys_independent: Interval
    beta: Interval
    helps: bool
    words: str


def _box(shots: CommonCauseTrials, alpha: float) -> list[Interval]:
    shared = check_alpha(alpha) / len(shots.failed)
    return [clopper_pearson(count, shots.total, shared) for count in shots.failed]


def _extreme(parts: Sequence[Interval], factors: Sequence[float], most: bool) -> float:
    """Greatest (or least) ``sum a_j c_j`` for c in the box with ``sum c_j = 1``.

    The best use of what the lower ends leave over is to give it to the best factors first.
    """
    left = 1.0 - math.fsum(each.low for each in parts)
    total = math.fsum(a * each.low for a, each in zip(factors, parts, strict=True))
    for a, each in sorted(zip(factors, parts, strict=True), key=lambda pair: pair[0], reverse=most):
        given = min(left, each.width)
        total += a * given
        left -= given
    return total


def _linear(parts: Sequence[Interval], factors: Sequence[float], alpha: float) -> Interval:
    return Interval(
        value=math.fsum(a * each.value for a, each in zip(factors, parts, strict=True)),
        low=_extreme(parts, factors, most=False),
        high=_extreme(parts, factors, most=True),
        level=1.0 - alpha,
        method=METHOD,
    )


def _check_votes(m: int, n: int) -> None:
    if not 1 <= m <= n:
        raise EstimateError(f"{m} of {n} guests must agree: need 1 <= m <= n")


def estimate_common_cause(
    shots: CommonCauseTrials, alpha: float = 0.05, m: int = 2
) -> CommonCauseResult:
    """c_j with their intervals, and whether the guests fail together more than independent ones."""
    n = shots.n
    _check_votes(m, n)
    parts = _box(shots, alpha)
    each = _linear(parts, [j / n for j in range(n + 1)], alpha)
    fatal = _linear(parts, [1.0 if n - j < m else 0.0 for j in range(n + 1)], alpha)
    alone = Interval(
        value=_fatal(each.value, m, n),
        low=_fatal(each.low, m, n),
        high=_fatal(each.high, m, n),
        level=1.0 - alpha,
        method=METHOD,
    )
    excess = _excess(shots, fatal.value - alone.value, alpha, m)
    dependence = Dependence.UNDECIDED
    if excess.low > 0.0:
        dependence = Dependence.TOGETHER
    elif excess.high < 0.0:
        dependence = Dependence.APART
    words = (
        f"a shot fails a guest with probability {each.value:.3g} and more than the voter can mask "
        f"with {fatal.value:.3g} ({fatal.low:.3g} to {fatal.high:.3g}); independent guests that "
        f"fail as often: {alone.value:.3g} ({alone.low:.3g} to {alone.high:.3g}); {dependence}"
    )
    return CommonCauseResult(
        c=tuple(parts),
        each=each,
        independent=weights(each.value, n),
        fatal=fatal,
        fatal_if_independent=alone,
        excess=excess,
        dependence=dependence,
        system=_rate(shots.system, alpha),
        nv=_rate(shots.nv, alpha),
        words=words,
    )


def _fatal(chance: float, m: int, n: int) -> float:
    return binomial_at_least(m, n, Paired.failing(min(1.0, max(0.0, chance)))).down


def _excess(shots: CommonCauseTrials, value: float, alpha: float, m: int) -> Interval:
    """P(fatal | shot) beyond that of independent guests failing as often: both from the same draws.

    The Jeffreys posterior of the c_j is Dirichlet(x_j + 1/2); repeats by its fixed seed.
    """
    import numpy as np  # noqa: PLC0415 - an extra

    n = shots.n
    drawn = np.random.default_rng(1).dirichlet([x + 0.5 for x in shots.failed], size=DRAWS)
    fatal = drawn[:, n - m + 1 :].sum(axis=1)
    each = drawn @ (np.arange(n + 1) / n)
    alone = np.zeros(DRAWS)
    for j in range(n - m + 1, n + 1):
        alone += math.comb(n, j) * each**j * (1.0 - each) ** (n - j)
    return quantiles(fatal - alone, alpha, value)


def _rate(counts: Counts | None, alpha: float) -> Interval | None:
    return None if counts is None else clopper_pearson(counts.failures, counts.trials, alpha)


def at_frequency(
    shots: CommonCauseTrials,
    frequency: float,
    rm_own: float,
    rv: float = 1.0,
    rh: float = 1.0,
    m: int = 2,
    alpha: float = 0.05,
) -> AtFrequency:
    """What the measured shots make of the node if a mission has one with ``frequency``.

    ``rm_own``: a guest's reliability apart from shots; its own failures are independent of them.
    All in [0, 1].  ``R_sys = R_H R_V [(1 - s) P_n + s sum_j c_j P_{n-j}]``, P_i the probability
    that at least m of i guests have no failure of their own.
    """
    n, s = shots.n, check_probability("the shots' frequency", frequency)
    _check_votes(m, n)
    own = Paired(check_probability("R_M apart from shots", rm_own))
    node = check_probability("R_H", rh) * check_probability("R_V", rv)
    parts = _box(shots, alpha)
    left = [float(binomial_at_least(m, n - j, own)) for j in range(n + 1)]
    rsys = _linear(parts, [node * ((1.0 - s) * left[0] + s * each) for each in left], alpha)
    rm = _linear(parts, [float(own) * (1.0 - s * j / n) for j in range(n + 1)], alpha)
    alone = Interval(
        value=node * (1.0 - _fatal(1.0 - rm.value, m, n)),
        low=node * (1.0 - _fatal(1.0 - rm.low, m, n)),
        high=node * (1.0 - _fatal(1.0 - rm.high, m, n)),
        level=1.0 - alpha,
        method=METHOD,
    )
    beta = Interval(
        value=_share(s * parts[n].value, 1.0 - rm.value),
        low=_share(s * parts[n].low, 1.0 - rm.low),
        high=_share(s * parts[n].high, 1.0 - rm.high),
        level=1.0 - alpha,
        method=METHOD,
    )
    helps = rsys.value > alone.value
    words = (
        f"with a shot in {s:.2%} of missions R_M = {rm.value:.4g} and R_sys = {rsys.value:.4g}; "
        f"independent guests with this R_M would give {alone.value:.4g}: the shared cause "
        f"{'helps' if helps else 'costs'} {abs(rsys.value - alone.value):.2g}"
    )
    return AtFrequency(
        frequency=s,
        rm=rm,
        rsys=rsys,
        rsys_independent=alone,
        beta=beta,
        helps=helps,
        words=words,
    )


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0.0 else 0.0
