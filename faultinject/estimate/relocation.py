"""Relocating a function f out of the guests (Inequality 3): the measured break-even R_F.

In C1 each of n guests contains the function f; in C2 it exists once, on the host, as F (Figure 5).
With ``q = 1 - R_f R_M'`` a guest fails in C1, with ``q' = 1 - R_M'`` in C2.  ``f_k`` is the
probability that a mission fails with k guests failed, ``g_k`` that one succeeds with F hit and k
guests failed:

    S1 = 1 - sum w_k(q) f1_k,   S2 = 1 - sum w_k(q') f2_k,   G = sum w_k(q') g_k,
    R_sys(C1) = R_H R_V S1,     R_sys(C2) = R_H R_V [R_F S2 + (1 - R_F) G],

so C2 is at least as good iff ``R_F >= (S1 - G)/(S2 - G)``.  With the paper's f_k (0 for k < n,
f_n = 1) and G = 0 this is Inequality (3).  R_H and R_V cancel, as they do there.

Three strata estimate f_k: guests whose f was hit (C1), guests whose rest was hit (measured in C2:
to the node, a guest without f that fails equals one with f that fails otherwise), and both (C1).

``separate``: f1_k may lie anywhere in the hull of the three intervals, and f2_k in its own.  The
only assumption is that guests failed in different parts are no worse and no better than guests
failed in one.  ``pooled``: f_k depends on k alone, so all missions count towards one f_k of both C1
and C2, and its uncertainty moves both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import (
    Interval,
    check_alpha,
    check_probability,
    clopper_pearson,
)
from faultinject.estimate.precision import clean_missions
from faultinject.estimate.strata import Band, Strata, band, breakeven, weights
from faultinject.model.bounds import breakeven_rf

__all__ = [
    "Heterogeneity", "RelocationCounts", "RelocationPoint", "estimate_relocation", "heterogeneity",
]  # fmt: skip

NONE = Counts(trials=0, failures=0)


class RelocationCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts for one n, by k = 0..n failed guests.

    ``in_f``: failed by their f (C1).  ``in_rest``: by the rest (C2, F not hit).  ``mixed``: by both
    in one mission (C1; NONE where there were none).  ``moved``: F hit, and k guests; shorter, or
    None at a k, where not measured.
    """

    in_f: tuple[Counts, ...]
    in_rest: tuple[Counts, ...]
    mixed: tuple[Counts, ...] = ()
    moved: tuple[Counts | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.in_f) != len(self.in_rest) or len(self.in_f) < 2:
            raise EstimateError("C1 and C2 need counts for the same k = 0..n, n at least 1")
        if len(self.mixed) not in (0, len(self.in_f)):
            raise EstimateError(f"mixed strata are given for k = 0..{self.n}, or not at all")

    @property
    def n(self) -> int:
        """Number of guests of the nodes."""
        return len(self.in_f) - 1

    def parts(self, k: int) -> tuple[Counts, ...]:
        """Return the counts that estimate f_k, without those that have no trial."""
        every = (self.in_f[k], self.in_rest[k], self.mixed[k] if self.mixed else NONE)
        return tuple(each for each in every if each.trials)

    @property
    def strata(self) -> int:
        """Number of strata: the intervals of the box share alpha."""
        return sum(len(self.parts(k)) for k in range(self.n + 1)) + sum(map(bool, self.moved))

    def pooled(self, k: int) -> Counts:
        """Return all counts that estimate f_k, added up."""
        return sum(self.parts(k), NONE)


class RelocationPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The measurement at R_f = ``rf``, R_M' = ``rm_rest``, n guests.

    ``paper``: Inequality (3); ``room``: 1 minus it.  ``c1``, ``c2``: R_sys, R_H = R_V = R_F = 1.
    ``saved``: G.  ``separate``, ``pooled``: the break-even R_F (see the module's text; above 1: no
    R_F is enough).  ``given_f0``: as pooled, with f_k = 0 assumed for k < n; None where a failure
    was seen there.  ``unresolved``: what the intervals of f_k, k < n, cannot exclude, as a share of
    ``room``; ``needed[k]``: missions without a failure in stratum k that bring it to ``target``.
    """

    n: int
    rf: float
    rm_rest: float
    paper: float
    room: float
    c1: Interval
    c2: Interval
    saved: Interval
    separate: Interval
    pooled: Interval
    given_f0: Interval | None
    unresolved: float
    needed: tuple[int, ...]
    target: float

    @property
    def resolved(self) -> bool:
        """Whether the break-even is known to ``target`` of 1 - R_F in either direction."""
        return self.pooled.width / 2 <= self.target * self.room


class Heterogeneity(msgspec.Struct, frozen=True, kw_only=True):
    """Strata with the same k failed guests whose intervals do not overlap: f_k depends on which
    part of the guests failed.
    """

    n: int
    k: int
    strata: tuple[Counts, ...]


def heterogeneity(counts: RelocationCounts, alpha: float = 0.05) -> tuple[Heterogeneity, ...]:
    """Return every k at which failures in f, in the rest and in both differ significantly."""
    shared = check_alpha(alpha) / max(counts.strata, 1)
    found = []
    for k in range(1, counts.n + 1):
        parts = counts.parts(k)
        every = [clopper_pearson(each.failures, each.trials, shared) for each in parts]
        if every and max(each.low for each in every) > min(each.high for each in every):
            found.append(Heterogeneity(n=counts.n, k=k, strata=parts))
    return tuple(found)


def estimate_relocation(
    counts: RelocationCounts, rf: float, rm_rest: float, alpha: float = 0.05, target: float = 0.10
) -> RelocationPoint:
    """Estimate the break-even R_F at one point, with Inequality (3).  0 < rm_rest <= 1."""
    check_alpha(alpha)
    f, rest, n = check_probability("R_f", rf), check_probability("R_M'", rm_rest), counts.n
    bound = breakeven_rf(f, rest, n)
    # One box for all: C2 gets a share of alpha in proportion to its number of strata.
    level = alpha / max(counts.strata, 1)
    own = sum(1 for each in counts.in_rest if each.trials) + sum(map(bool, counts.moved))
    second = band(Strata(guests=counts.in_rest, voter=counts.moved), level * max(own, 1))
    s2, g = second.reliability(rest), second.saved(rest)
    before, after = weights(1.0 - f * rest, n), weights(1.0 - rest, n)
    s1 = _reliability(before, [_hull(counts, k, level) for k in range(n + 1)])
    pooled = [_interval(counts.pooled(k), level) for k in range(n + 1)]
    clean = not any(counts.pooled(k).failures for k in range(n))
    # The derivative of R_F* = S1/S2 by f_k, which enters both sides with weights of their own.
    moves = [
        abs(x - float(bound) * y) / max(s2.value, 1e-12) for x, y in zip(before, after, strict=True)
    ][:n]
    unresolved = math.fsum(w * each.high for w, each in zip(moves, pooled, strict=False))
    zeros = [Interval(value=0.0, low=0.0, high=0.0)] * n
    return RelocationPoint(
        n=n, rf=f, rm_rest=rest, paper=float(bound), room=bound.down, c1=s1, c2=s2, saved=g,
        separate=_separate(s1, s2, g),
        pooled=_pooled(before, after, pooled, second),
        given_f0=_pooled(before, after, [*zeros, pooled[n]], second) if clean else None,
        unresolved=unresolved / bound.down if bound.down > 0.0 else math.inf,
        needed=tuple(
            clean_missions(w, bound.down, target / n, level / 2) if bound.down > 0.0 else 0
            for w in moves
        ),
        target=target,
    )  # fmt: skip


def _interval(counts: Counts, alpha: float) -> Interval:
    return clopper_pearson(counts.failures, counts.trials, alpha)


def _hull(counts: RelocationCounts, k: int, alpha: float) -> Interval:
    """The hull of the intervals of C1's f_k; [0, 1] if failures in f were not measured at all."""
    if not counts.in_f[k].trials:
        return _interval(NONE, alpha)
    every = [_interval(each, alpha) for each in counts.parts(k)]
    return Interval(
        value=counts.pooled(k).rate,
        low=min(each.low for each in every),
        high=max(each.high for each in every),
    )


def _reliability(shares: Sequence[float], failing: Sequence[Interval]) -> Interval:
    used = [(w, each) for w, each in zip(shares, failing, strict=True) if w > 0.0]
    return Interval(
        value=1.0 - math.fsum(w * each.value for w, each in used),
        low=1.0 - math.fsum(w * each.high for w, each in used),
        high=1.0 - math.fsum(w * each.low for w, each in used),
    )


def _separate(s1: Interval, s2: Interval, g: Interval) -> Interval:
    """Over the box of S1, S2 and G: monotone in each of them, so corners hold the extremes."""
    corners = [
        breakeven(first, second, kept)
        for first in (s1.low, s1.high)
        for second in (s2.low, s2.high)
        for kept in (g.low, g.high)
    ]
    return Interval(
        value=breakeven(s1.value, s2.value, g.value), low=min(corners), high=max(corners)
    )  # fmt: skip


def _pooled(
    before: Sequence[float], after: Sequence[float], failing: Sequence[Interval], second: Band
) -> Interval:
    """Over the box of the f_k that C1 and C2 share, and of G.

    R_F* is a ratio of linear functions of the f_k.  It rises with f_k iff ``w_k(q')/w_k(q)`` is
    above 1/R_F*, and that quotient falls with k.  So its largest value has f_k at the upper end up
    to some k and at the lower end from there on; its least value, the reverse.
    """
    n = len(failing) - 1

    def g(end: str) -> float:
        pairs = zip(after, second.saving, strict=True)
        return math.fsum(w * getattr(each, end) for w, each in pairs if w)

    def at(values: Sequence[float], kept: float) -> float:
        up = 1.0 - math.fsum(w * v for w, v in zip(before, values, strict=True) if w)
        down = 1.0 - math.fsum(w * v for w, v in zip(after, values, strict=True) if w)
        return breakeven(up, down, kept)

    corners = []
    for cut in range(n + 2):
        for first, then in (("high", "low"), ("low", "high")):
            values = [getattr(each, first if k < cut else then) for k, each in enumerate(failing)]
            corners += [at(values, kept) for kept in (g("low"), g("high"))]
    value = at([each.value for each in failing], g("value"))
    return Interval(value=value, low=min(corners), high=max(corners))
