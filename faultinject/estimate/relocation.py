"""Moving a function out of the guests (Inequality 3): the measured R_F from which it is no loss.

C1 has a function f in each of n guests, C2 has it once on the host, F (Figure 5).  With
``q = 1 - R_f R_M'`` and ``q' = 1 - R_M'`` a guest fails in C1 and in C2.  ``f_k`` is the
probability that a mission fails with k guests failed, ``g_k`` that one succeeds with F hit and k
guests failed:

    S1 = 1 - sum w_k(q) f1_k,   S2 = 1 - sum w_k(q') f2_k,   G = sum w_k(q') g_k,
    R_sys(C1) = R_H R_V S1,     R_sys(C2) = R_H R_V [R_F S2 + (1 - R_F) G],

so C2 is at least as good iff ``R_F >= (S1 - G)/(S2 - G)``; with the paper's f_k (0 for k < n, f_n =
1) and G = 0 that is Inequality (3).  R_H and R_V stand on both sides, as there.

Three strata tell of f_k: guests whose f was hit (C1), guests whose rest was hit (measured in C2: to
the node a guest without f that fails is one with f that fails otherwise), and both together (C1).

``apart``: f1_k may lie anywhere in the hull of the three intervals, and f2_k in its own, so that
nothing is assumed but that guests failed in different parts do no worse, and no better, than those
failed in one.  ``shared``: f_k depends on k alone, so all count towards one f_k of C1 and C2, and
what it hides moves both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import Interval, check_alpha, clopper_pearson
from faultinject.estimate.precision import clean_missions
from faultinject.estimate.strata import Band, Strata, band, breakeven, check_probability, weights
from faultinject.model.bounds import breakeven_rf

__all__ = ["RelocationEstimate", "RelocationPoint", "Unlike", "estimate_relocation", "unlike"]

NONE = Counts(trials=0, failures=0)
BOX = "Clopper-Pearson by stratum, Bonferroni box"


class RelocationEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Counts for one n.  By k = 0..n guests failed: ``in_f`` by their f (C1), ``in_rest`` by the
    rest (C2, F sound), ``mixed`` by both in one mission (C1; NONE where there were none).
    ``moved``: F hit, and k guests; shorter, or None at a k, where not measured.
    """

    in_f: tuple[Counts, ...]
    in_rest: tuple[Counts, ...]
    mixed: tuple[Counts, ...] = ()
    moved: tuple[Counts | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.in_f) != len(self.in_rest) or len(self.in_f) < 2:
            raise EstimateError("C1 and C2 need counts for the same k = 0..n, n at least 1")
        if len(self.mixed) not in (0, len(self.in_f)):
            raise EstimateError(f"mixed strata are told for k = 0..{self.n}, or not at all")

    @property
    def n(self) -> int:
        """How many guests the nodes have."""
        return len(self.in_f) - 1

    def parts(self, k: int) -> tuple[Counts, ...]:
        """The counts that tell of f_k, those without a trial left out."""
        every = (self.in_f[k], self.in_rest[k], self.mixed[k] if self.mixed else NONE)
        return tuple(each for each in every if each.trials)

    @property
    def strata(self) -> int:
        """How many there are: the box's intervals share alpha."""
        return sum(len(self.parts(k)) for k in range(self.n + 1)) + sum(map(bool, self.moved))

    def pooled(self, k: int) -> Counts:
        """All that tell of f_k, together."""
        return sum(self.parts(k), NONE)


class RelocationPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured at R_f = ``rf``, R_M' = ``rm_rest``, n guests.

    ``paper`` is Inequality (3), ``room`` 1 less it.  ``c1`` and ``c2``: R_sys of both, R_H = R_V =
    R_F = 1.  ``saved``: G.  ``apart``, ``shared``: the break-even R_F (see the module's text; above
    1: no R_F will do).  ``given``: as shared, with f_k = 0 taken for granted for k < n; None where
    a failure was seen there.  ``hidden``: what f_k, k < n, may still hide, in parts of ``room``;
    ``wanted[k]``: missions without a failure of stratum k that bring all of it to ``share``.
    """

    n: int
    rf: float
    rm_rest: float
    paper: float
    room: float
    c1: Interval
    c2: Interval
    saved: Interval
    apart: Interval
    shared: Interval
    given: Interval | None
    hidden: float
    wanted: tuple[int, ...]
    share: float

    @property
    def reaches(self) -> bool:
        """Whether the break-even is known to ``share`` of 1 - R_F, to either side."""
        return self.shared.width / 2 <= self.share * self.room


class Unlike(msgspec.Struct, frozen=True, kw_only=True):
    """Two strata with k guests failed that do not go alike: their intervals do not meet."""

    n: int
    k: int
    words: str


def unlike(counts: RelocationEstimate, alpha: float = 0.05) -> tuple[Unlike, ...]:
    """Where guests failed in f, in their rest and in both are seen not to count the same."""
    shared = check_alpha(alpha) / max(counts.strata, 1)
    found = []
    for k in range(1, counts.n + 1):
        parts = counts.parts(k)
        every = [clopper_pearson(each.failures, each.trials, shared) for each in parts]
        if every and max(each.low for each in every) > min(each.high for each in every):
            words = ", ".join(f"{each.failures} of {each.trials}" for each in parts)
            found.append(Unlike(n=counts.n, k=k, words=f"n = {counts.n}, k = {k}: {words} failed"))
    return tuple(found)


def estimate_relocation(
    counts: RelocationEstimate, rf: float, rm_rest: float, alpha: float = 0.05, share: float = 0.10
) -> RelocationPoint:
    """The measured break-even R_F at one point, beside Inequality (3).  0 < rm_rest <= 1."""
    check_alpha(alpha)
    f, rest, n = check_probability("R_f", rf), check_probability("R_M'", rm_rest), counts.n
    bound = breakeven_rf(f, rest, n)
    # One box for all: C2 gets its share of alpha by how many of the strata are its own.
    level = alpha / max(counts.strata, 1)
    own = sum(1 for each in counts.in_rest if each.trials) + sum(map(bool, counts.moved))
    second = band(Strata(guests=counts.in_rest, voter=counts.moved), level * max(own, 1))
    s2, g = second.reliability(rest), second.saved(rest)
    hull = [_hull(counts, k, level) for k in range(n + 1)]
    before, after = weights(1.0 - f * rest, n), weights(1.0 - rest, n)
    s1 = _reliability(before, hull, alpha)
    pooled = [_pooled(counts.pooled(k), level) for k in range(n + 1)]
    clean = not any(counts.pooled(k).failures for k in range(n))
    # By how much R_F* = S1/S2 moves with f_k: both sides have it, at weights of their own.
    moves = [
        abs(x - float(bound) * y) / max(s2.value, 1e-12) for x, y in zip(before, after, strict=True)
    ][:n]
    hidden = math.fsum(w * each.high for w, each in zip(moves, pooled, strict=False))
    return RelocationPoint(
        n=n, rf=f, rm_rest=rest, paper=float(bound), room=bound.down, c1=s1, c2=s2, saved=g,
        apart=_apart(s1, s2, g, alpha),
        shared=_shared(before, after, pooled, second, alpha),
        given=_shared(before, after, [*_certain(n), pooled[n]], second, alpha) if clean else None,
        hidden=hidden / bound.down if bound.down > 0.0 else math.inf,
        wanted=tuple(
            clean_missions(w, bound.down, share / n, level / 2) if bound.down > 0.0 else 0
            for w in moves
        ),
        share=share,
    )  # fmt: skip


def _pooled(counts: Counts, alpha: float) -> Interval:
    return clopper_pearson(counts.failures, counts.trials, alpha)


def _hull(counts: RelocationEstimate, k: int, alpha: float) -> Interval:
    """Where f_k of C1 may lie: between the least and the most that any of its strata allows;
    anywhere, if guests failed in f were not measured at all.
    """
    if not counts.in_f[k].trials:
        return _pooled(NONE, alpha)
    every = [_pooled(each, alpha) for each in counts.parts(k)]
    together = counts.pooled(k)
    return Interval(
        value=together.rate,
        low=min(each.low for each in every),
        high=max(each.high for each in every),
        level=1.0 - alpha,
        method="hull of its strata",
    )


def _certain(n: int) -> list[Interval]:
    return [Interval(value=0.0, low=0.0, high=0.0, level=1.0, method="taken as 0")] * n


def _reliability(shares: Sequence[float], failing: Sequence[Interval], alpha: float) -> Interval:
    used = [(w, each) for w, each in zip(shares, failing, strict=True) if w > 0.0]
    return Interval(
        value=1.0 - math.fsum(w * each.value for w, each in used),
        low=1.0 - math.fsum(w * each.high for w, each in used),
        high=1.0 - math.fsum(w * each.low for w, each in used),
        level=1.0 - alpha,
        method=BOX,
    )


def _apart(s1: Interval, s2: Interval, g: Interval, alpha: float) -> Interval:
    """Over the box of S1, S2 and G: monotone in each where the others are held, so corners do."""
    corners = [
        breakeven(first, second, kept)
        for first in (s1.low, s1.high)
        for second in (s2.low, s2.high)
        for kept in (g.low, g.high)
    ]
    return Interval(
        value=breakeven(s1.value, s2.value, g.value), low=min(corners), high=max(corners),
        level=1.0 - alpha, method=f"{BOX}, C1 and C2 apart",
    )  # fmt: skip


def _shared(
    before: Sequence[float], after: Sequence[float], failing: Sequence[Interval], second: Band,
    alpha: float,
) -> Interval:  # fmt: skip
    """Over the box of the f_k that C1 and C2 have in common, and of G.

    R_F* is a ratio of linear functions of the f_k.  It rises with f_k iff ``w_k(q')/w_k(q)`` is
    above 1/R_F*, and that quotient falls with k: so its largest value has f_k at the upper end up
    to some k and at the lower from there on, and its least the other way round.
    """
    n = len(failing) - 1
    g = [
        math.fsum(w * getattr(each, end) for w, each in zip(after, second.saving, strict=True) if w)
        for end in ("low", "high")
    ]

    def at(values: Sequence[float], kept: float) -> float:
        up = 1.0 - math.fsum(w * v for w, v in zip(before, values, strict=True) if w)
        down = 1.0 - math.fsum(w * v for w, v in zip(after, values, strict=True) if w)
        return breakeven(up, down, kept)

    corners = []
    for cut in range(n + 2):
        for first, then in (("high", "low"), ("low", "high")):
            values = [getattr(each, first if k < cut else then) for k, each in enumerate(failing)]
            corners += [at(values, kept) for kept in g]
    likely = math.fsum(w * each.value for w, each in zip(after, second.saving, strict=True) if w)
    return Interval(
        value=at([each.value for each in failing], likely), low=min(corners), high=max(corners),
        level=1.0 - alpha, method=f"{BOX}, f_k of C1 and C2 the same",
    )  # fmt: skip
