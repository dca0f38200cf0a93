"""Unequal guests: a failure probability f_A for every subset A of guests that are hit.

    U = sum_A prod_{i in A} q_i prod_{i not in A} (1 - q_i) f_A

with q_i = 1 - R_{M_i}.  The box is as in ``strata``: valid for all (q_1, ..., q_n) at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import Interval, check_alpha, clopper_pearson
from faultinject.estimate.strata import check_probability

__all__ = ["SubsetBand", "subset_band"]


class SubsetBand(msgspec.Struct, frozen=True, kw_only=True):
    """f_A for every subset A of guests 0..n-1, as a box; make it with ``subset_band``."""

    n: int
    failing: dict[frozenset[int], Interval]
    level: float

    def failure(self, qs: Sequence[float]) -> Interval:
        """U for the guests' own failure probabilities ``qs``, one a guest, each in [0, 1]."""
        if len(qs) != self.n:
            raise EstimateError(f"{len(qs)} probabilities for {self.n} guests: give one a guest")
        for i, q in enumerate(qs):
            check_probability(f"q_{i + 1}", q)
        shares = {
            hit: math.prod(q if i in hit else 1.0 - q for i, q in enumerate(qs))
            for hit in self.failing
        }

        def total(end: str) -> float:
            return math.fsum(
                share * getattr(self.failing[hit], end) for hit, share in shares.items() if share
            )

        return Interval(
            value=total("value"),
            low=total("low"),
            high=total("high"),
            level=self.level,
            method="Clopper-Pearson by subset, Bonferroni box: valid for all q_i at once",
        )


def subset_band(counts: Mapping[frozenset[int], Counts], n: int, alpha: float = 0.05) -> SubsetBand:
    """Box of f_A from missions by the exact set of guests (0..n-1) that were hit.

    A subset without missions is unknown: [0, 1].  Raises EstimateError for a guest that there is
    not, and for n beyond 12 (4,096 subsets).
    """
    check_alpha(alpha)
    if not 1 <= n <= 12:
        raise EstimateError(f"{n} guests have 2^{n} subsets: use 1 to 12 guests, or equal ones")
    subsets = [
        frozenset(chosen) for size in range(n + 1) for chosen in combinations(range(n), size)
    ]
    strange = [hit for hit in counts if not hit <= frozenset(range(n))]
    if strange:
        raise EstimateError(f"guests {sorted(strange[0])} were hit, but there are only 0..{n - 1}")
    none = Counts(trials=0, failures=0)
    return SubsetBand(
        n=n,
        failing={
            hit: clopper_pearson(
                counts.get(hit, none).failures, counts.get(hit, none).trials, alpha / len(subsets)
            )
            for hit in subsets
        },
        level=1.0 - alpha,
    )
