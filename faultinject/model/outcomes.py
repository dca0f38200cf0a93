"""Outcomes of a node whose failed guests stop or lie: rejected requests, or wrong replies.

The paper has one kind of failure.  Here a guest that fails *lies* (it returns wrong replies) with
probability ``lying``; else it stops (it returns nothing).  Lying guests return the same wrong bytes
with probability ``alike`` (default 1, the worst case), else different ones.  The mission's outcome
is

- *correct*: the paper's reliability, if nobody lies or m > n/2;
- *silent*: a wrong reply was released: after m equal lies; for 1-of-n, after any lie;
- *detected*: no majority, or no reply: rejected, fail-safe;
- *lost*: H or V failed.

2-of-2 is the paper's fail-safe node: silent only if both return the same lie.
"""

from __future__ import annotations

import math

import msgspec

from faultinject.model.paired import ModelError, Paired, count, probability
from faultinject.model.reliability import series
from faultinject.model.tails import binomial_at_least, exactly

__all__ = ["FailureMode", "Outcomes", "guest_outcomes", "node_outcomes"]

MOST_GUESTS = 1_000


class FailureMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How guests fail: probabilities in [0, 1].

    ``lying``: that a failed guest lies; ``alike``: that liars agree; ``beta``: the part of a
    guest's failures that are failures of all guests together, in the same manner (``beta_factor``
    of ``causes``, marginal: R_M stays what it is).
    """

    lying: float = 0.0
    alike: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        probability("the share of failures that lie", self.lying)
        probability("the probability that liars agree", self.alike)
        probability("beta", self.beta)


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities of a mission's four outcomes; they add up to 1."""

    correct: Paired
    detected: float
    silent: float
    lost: float

    @property
    def safe(self) -> float:
        """That no wrong reply is released."""
        return math.fsum((float(self.correct), self.detected, self.lost))


def node_outcomes(layer: float, guests: Outcomes) -> Outcomes:
    """Return the outcomes on a layer that works with probability ``layer``, R_H R_V."""
    under = probability("R_H R_V", layer)
    return Outcomes(
        correct=series(under, guests.correct),
        detected=float(under) * guests.detected,
        silent=float(under) * guests.silent,
        lost=under.down,
    )


def guest_outcomes(rm: float, m: int, n: int, failing: FailureMode | None = None) -> Outcomes:
    """Outcomes of m-of-n on a perfect layer; 1 <= n <= 1,000, and m = 1 or m > n/2.

    Raises ModelError for a policy by which two different replies could both win (2-of-4).
    """
    how = failing or FailureMode()
    size = count("the number of VMs n", n, 1, MOST_GUESTS)
    need = count("the number of VMs that must agree m", m, 1, size)
    if need > 1 and 2 * need <= size:
        raise ModelError(
            f"{need}-of-{size}: two different replies could both win; m must be 1 or more than n/2"
        )
    r = probability("R_M", rm)
    if how.beta == 0.0:
        return _independent(r, need, size, how)
    shared = how.beta * r.down
    common = 1.0 - shared
    own = _independent(
        Paired.failing(0.0 if common == 0.0 else (1.0 - how.beta) * r.down / common),
        need,
        size,
        how,
    )
    together = how.lying if need == 1 else how.lying * how.alike  # all lie, in the same manner
    return Outcomes(
        correct=series(Paired.failing(shared), own.correct),
        detected=common * own.detected + shared * (1.0 - together),
        silent=common * own.silent + shared * together,
        lost=0.0,
    )


def _independent(r: Paired, m: int, n: int, how: FailureMode) -> Outcomes:
    lies = how.lying * r.down
    if m == 1:
        return _first_wins(r, n, lies, (1.0 - how.lying) * r.down)
    correct = binomial_at_least(m, n, r)
    silent = how.alike * float(binomial_at_least(m, n, Paired(lies)))
    # Fewer than m correct, and no m equal lies among the others: sums of positive terms.
    detected = math.fsum(
        some * (1.0 - how.alike * _alike(m, n - right, how.lying))
        for right in range(m)
        if (some := exactly(right, n, r)) > 0.0
    )
    return Outcomes(correct=correct, detected=detected, silent=silent, lost=0.0)


def _alike(m: int, left: int, lying: float) -> float:
    return 0.0 if left < m else float(binomial_at_least(m, left, Paired(lying)))


def _first_wins(r: Paired, n: int, lies: float, mute: float) -> Outcomes:
    """1-of-n: nothing is compared, so that one liar is enough for a wrong reply."""
    none_right = mute**n
    if r == 0.0:
        correct = 0.0
    elif mute == 0.0:
        correct = float(r) ** n
    else:  # (R_M + mute)^n - mute^n, without cancelling
        correct = -math.expm1(-n * math.log1p(float(r) / mute)) * _honest(lies, n)
    silent = 1.0 if lies == 1.0 else -math.expm1(n * math.log1p(-lies))
    return Outcomes(
        correct=Paired.sums(correct, min(1.0, none_right + silent)),
        detected=none_right,
        silent=silent,
        lost=0.0,
    )


def _honest(lies: float, n: int) -> float:
    return 0.0 if lies == 1.0 else math.exp(n * math.log1p(-lies))
