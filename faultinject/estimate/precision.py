"""How far the data reach: what the strata may still hide, before a campaign and after it.

At small q nearly every mission has no guest hit, so f_0 weighs most: ``w_0/U`` is 118 at q = .05.
Whether a mission fails with nothing hit has to be measured; until then every result is "given
f_0 = 0".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.equivalence import paper_failure
from faultinject.estimate.intervals import check_alpha, clopper_pearson
from faultinject.estimate.strata import Strata, check_probability, weights

__all__ = ["StatisticalPower", "expected", "lowest_q", "reach"]

NEVER = 10**12
"""Missions shown where no number would do."""


class StatisticalPower(msgspec.Struct, frozen=True, kw_only=True):
    """What the strata with few guests hit may hide at ``q``.

    ``failure``: U(q) as the paper has it.  ``shares[k]``: the upper end of ``w_k f_k`` in parts
    of it. ``needed[k]``: missions without a failure that stratum k takes for its share to be at
    most the one asked for; 0 for strata in which the paper's node fails.
    """

    q: float
    failure: float
    shares: tuple[float, ...]
    needed: tuple[int, ...]
    words: str


def clean_missions(weight: float, failure: float, share: float, alpha: float) -> int:
    """Missions without failure after which ``weight * f`` is at most ``share * failure``.

    From ``f <= 1 - alpha^(1/n)``; ``alpha`` one-sided.
    """
    ceiling = share * failure / weight if weight > 0.0 else math.inf
    if ceiling >= 1.0:
        return 0
    if ceiling <= 0.0:
        return NEVER
    return min(NEVER, math.ceil(math.log(alpha) / math.log1p(-ceiling)))


def reach(
    trials: Sequence[int],
    q: float,
    alpha: float = 0.05,
    share: float = 0.10,
    m: int = 2,
    failures: Sequence[int] | None = None,
) -> StatisticalPower:
    """How far ``trials`` missions of k = 0..n guests hit reach at ``q``.

    ``failures`` by k where they were run; none in the strata that the paper's node survives where
    they are only planned.  The level is that of the two-sided box of all strata.  0 < q < 1.
    """
    check_alpha(alpha)
    if not 0.0 < check_probability("q", q) < 1.0:
        raise EstimateError("q must lie between 0 and 1, ends excluded, for U to be something")
    n = len(trials) - 1
    masked = n - m  # with so many guests hit the paper's node still works
    failed = [0] * len(trials) if failures is None else list(failures)
    paper, shared = paper_failure(q, m, n), alpha / len(trials)
    shares, needed = [], []
    for k, weight in enumerate(weights(q, n)):
        if k > masked:
            shares.append(weight / paper)
            needed.append(0)
            continue
        most = clopper_pearson(failed[k], trials[k], shared).high
        shares.append(weight * most / paper)
        needed.append(clean_missions(weight, paper, share, shared / 2))
    short = [k for k in range(masked + 1) if shares[k] > share]
    said = "; ".join(
        f"f_{k} may be {shares[k]:.0%} of U ({trials[k]:,} missions, {failed[k]} failed; "
        f"{needed[k]:,} clean ones bring it to {share:.0%})"
        for k in short
    )
    words = (
        f"at q = {q:g} the data do not reach: {said}"
        if short
        else f"at q = {q:g} the data reach: f_0..f_{masked} may each hide {share:.0%} of U at most"
    )
    return StatisticalPower(
        q=q, failure=paper, shares=tuple(shares), needed=tuple(needed), words=words
    )


def lowest_q(trials: Sequence[int], alpha: float = 0.05, share: float = 0.10, m: int = 2) -> float:
    """The smallest q (to .001) at which the masked strata each hide ``share`` of U at most.

    1.0 if there is none.
    """
    for step in range(1, 1000):
        found = reach(trials, step / 1000, alpha, share, m)
        if all(each <= share for each in found.shares[: len(trials) - m]):
            return step / 1000
    return 1.0


def expected(guests: Sequence[int], voter: Sequence[int] = (), m: int = 2) -> Strata:
    """The counts that the paper's node would give: for a plan, before anything is run.

    ``guests``, ``voter``: missions by k.  No failure while m guests are left, failure else, and
    always when the voter is hit.  0 missions of a voter-hit stratum: not measured.
    """
    left = len(guests) - 1 - m
    return Strata(
        guests=tuple(
            Counts(trials=count, failures=0 if k <= left else count)
            for k, count in enumerate(guests)
        ),
        voter=tuple(Counts(trials=count, failures=count) if count else None for count in voter),
    )
