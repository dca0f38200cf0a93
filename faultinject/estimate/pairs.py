"""Two designs (or policies) given the same missions: how their failure probabilities differ.

On common draws, stratum by stratum: ``d_k`` is the first one's failure probability less the
second's, given k guests hit, and ``difference(q) = sum w_k(q) d_k``.  McNemar's test is for
missions that were drawn naturally only: strata chosen by us say nothing about how often each
comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.intervals import Interval, check_alpha, clopper_pearson
from faultinject.estimate.strata import recombine
from faultinject.model.paired import Paired
from faultinject.model.tails import binomial_at_least

__all__ = ["McNemar", "Pair", "mcnemar", "pair_difference", "stratum_difference"]


class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Missions that both designs were given, by who failed."""

    both: int
    first: int
    second: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.first, self.second, self.neither) < 0:
            raise EstimateError("counts of pairs cannot be negative")

    @property
    def trials(self) -> int:
        """How many missions both were given."""
        return self.both + self.first + self.second + self.neither


class McNemar(msgspec.Struct, frozen=True, kw_only=True):
    """``p_value``: exact and two-sided, of "each is as likely to be the only one that fails".

    ``difference``: the first one's failure probability less the second's.
    """

    p_value: float
    difference: Interval


def stratum_difference(pair: Pair, alpha: float = 0.05) -> Interval:
    """``d`` of one stratum: P(only the first fails) - P(only the second fails).

    Each of the two by Clopper-Pearson at alpha/2: conservative, [-1, 1] without missions.
    """
    check_alpha(alpha)
    first = clopper_pearson(pair.first, pair.trials, alpha / 2)
    second = clopper_pearson(pair.second, pair.trials, alpha / 2)
    return Interval(
        value=first.value - second.value,
        low=first.low - second.high,
        high=first.high - second.low,
        level=1.0 - alpha,
        method="Clopper-Pearson of both kinds of disagreement, Bonferroni",
    )


def pair_difference(pairs: Sequence[Pair], q: float, alpha: float = 0.05) -> Interval:
    """``sum_k w_k(q) d_k`` from pairs by k = 0..n, valid for all q at once.

    Below 0 the first design fails less.
    """
    if len(pairs) < 2:
        raise EstimateError("pairs are needed for k = 0..n guests hit, n at least 1")
    parts = [stratum_difference(pair, alpha / len(pairs)) for pair in pairs]
    return Interval(
        value=recombine([each.value for each in parts], q),
        low=recombine([each.low for each in parts], q),
        high=recombine([each.high for each in parts], q),
        level=1.0 - alpha,
        method="Clopper-Pearson by stratum, Bonferroni box: valid for all q at once",
    )


def mcnemar(pair: Pair, alpha: float = 0.05) -> McNemar:
    """The exact test on naturally drawn missions; never on strata."""
    apart = pair.first + pair.second
    most = max(pair.first, pair.second)
    tail = float(binomial_at_least(most, apart, Paired(0.5)))
    return McNemar(p_value=min(1.0, 2.0 * tail), difference=stratum_difference(pair, alpha))
