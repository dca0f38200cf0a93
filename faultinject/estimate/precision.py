"""Precision: how much failure probability the intervals of the strata cannot exclude.

At small q nearly every mission has no guest hit, so f_0 has the greatest weight: ``w_0/U`` is 118
at q = .05.  Whether missions fail with nothing hit must therefore be measured; until it is, every
result is conditional on f_0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.equivalence import paper_failure
from faultinject.estimate.intervals import check_alpha, check_probability, clopper_pearson
from faultinject.estimate.strata import Strata, weights

__all__ = ["Precision", "clean_missions", "expected", "lowest_q", "precision_at"]

NEVER = 10**12
"""Missions shown where no number would be enough."""


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """What the intervals of the f_k cannot exclude at ``q``.

    ``shares[k]``: the upper end of ``w_k f_k`` as a share of the paper's U(q).  ``needed[k]``:
    missions without a failure that bring that share to ``target``; 0 for strata in which the
    paper's node fails.  ``trials[k]``: missions there are.
    """

    repair: bool
    q: float
    shares: tuple[float, ...]
    needed: tuple[int, ...]
    trials: tuple[int, ...]
    target: float


def clean_missions(weight: float, failure: float, share: float, alpha: float) -> int:
    """Return missions without failure after which ``weight * f`` is at most ``share * failure``.

    From ``f <= 1 - alpha^(1/n)``; ``alpha`` is one-sided.
    """
    ceiling = share * failure / weight if weight > 0.0 else math.inf
    if ceiling >= 1.0:
        return 0
    if ceiling <= 0.0:
        return NEVER
    return min(NEVER, math.ceil(math.log(alpha) / math.log1p(-ceiling)))


def precision_at(
    strata: Strata, q: float, alpha: float = 0.05, target: float = 0.10, m: int = 2
) -> Precision:
    """Return the precision of f_0..f_n at ``q``, 0 < q < 1, voter not hit.

    The level is that of the two-sided box of these strata.  For a plan give ``expected`` strata.
    """
    check_alpha(alpha)
    if not 0.0 < check_probability("q", q) < 1.0:
        raise EstimateError("q must lie between 0 and 1, ends excluded, for U to be positive")
    n = strata.n
    paper, shared = paper_failure(q, m, n), alpha / (n + 1)
    shares: list[float] = []
    needed: list[int] = []
    for weight, counts in zip(weights(q, n), strata.guests, strict=True):
        if len(shares) > n - m:  # with so many guests hit the paper's node fails
            shares.append(weight / paper)
            needed.append(0)
            continue
        most = clopper_pearson(counts.failures, counts.trials, shared).high
        shares.append(weight * most / paper)
        needed.append(clean_missions(weight, paper, target, shared / 2))
    return Precision(
        repair=strata.repair, q=q, shares=tuple(shares), needed=tuple(needed),
        trials=tuple(each.trials for each in strata.guests), target=target,
    )  # fmt: skip


def lowest_q(strata: Strata, alpha: float = 0.05, target: float = 0.10, m: int = 2) -> float:
    """Return the smallest q (to .001) at which every tolerated stratum is within ``target`` of U.

    1.0 if there is none.
    """
    for step in range(1, 1000):
        found = precision_at(strata, step / 1000, alpha, target, m)
        if all(each <= target for each in found.shares[: strata.n - m + 1]):
            return step / 1000
    return 1.0


def expected(guests: Sequence[int], voter: Sequence[int] = (), m: int = 2) -> Strata:
    """Return the counts that the paper's node would give: for a plan, before it is run.

    ``guests``, ``voter``: missions by k.  No failure while m guests are left, failure otherwise,
    and always when the voter is hit.  0 missions of a voter-hit stratum: not measured.
    """
    left = len(guests) - 1 - m
    return Strata(
        guests=tuple(
            Counts(trials=count, failures=0 if k <= left else count)
            for k, count in enumerate(guests)
        ),
        voter=tuple(Counts(trials=count, failures=count) if count else None for count in voter),
    )
