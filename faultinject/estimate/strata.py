"""Recombination of strata: U(q), S, G and the break-even R_V* for every q from one data set.

``f_k`` is the probability that a mission fails when k of n guests are hit and the voter is not;
``g_k`` that it *succeeds* when the voter is hit too.  With q = 1 - R_M and
``w_k(q) = C(n, k) q^k (1 - q)^(n-k)``:

    U(q) = sum w_k f_k,   S = 1 - U,   G = sum w_k g_k,   R_sys = R_H [R_V S + (1 - R_V) G],

so the voted node is better than the plain one iff ``R_V (S - G) > R_M - G``.

Simultaneous band: Clopper-Pearson intervals of all f_k and g_k, at a level shared by Bonferroni,
form a box that contains all of them at once.  Everything above is monotone in each of them, so its
extremes lie in corners of the box, and the band holds for all q, R_V and R_H at once.  A voter that
ends without being hit counts as a failure in f_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import (
    Interval,
    check_alpha,
    check_probability,
    clopper_pearson,
    worst_case,
)
from faultinject.model.paired import Paired
from faultinject.model.tails import exactly

__all__ = ["Band", "Strata", "Excluded", "band", "breakeven", "recombine", "weights"]

Excluded = Literal["dropped", "worst"]
"""How missions without an outcome count: not at all, or as whatever is worse for the claim."""

CERTAIN = 10**9
"""Missions without a failure that represent "given f_0 = 0": the interval then ends below 1e-8."""


@lru_cache(maxsize=4096)  # the same q recur on every grid
def weights(q: float, n: int) -> tuple[float, ...]:
    """Return ``w_k(q)``, the probability that exactly k of n guests are hit, for k = 0..n."""
    hit = Paired(check_probability("q", q))
    return tuple(exactly(k, n, hit) for k in range(n + 1))


def recombine(values: Sequence[float], q: float) -> float:
    """Return ``sum_k w_k(q) values[k]``; a value with weight 0 does not count, even if nan."""
    shares = weights(q, len(values) - 1)
    return math.fsum(w * v for w, v in zip(shares, values, strict=True) if w > 0.0)


class Strata(msgspec.Struct, frozen=True, kw_only=True):
    """Counts by stratum.

    ``guests[k]``, k = 0..n: k of the n guests hit, the voter not.  ``voter[k]``: the voter hit and
    k guests hit; shorter than ``guests``, or None at a k, where not measured.  ``repair``: whether
    failed guests and a failed voter are restarted within the mission.  With repair and no g_k
    measured, G is unknown; without repair it is then taken as 0, as the paper assumes.
    """

    guests: tuple[Counts, ...]
    voter: tuple[Counts | None, ...] = ()
    repair: bool = False

    def __post_init__(self) -> None:
        if len(self.guests) < 2:
            raise EstimateError("strata need counts for k = 0..n guests hit, n at least 1")
        if len(self.voter) > len(self.guests):
            raise EstimateError(
                f"the voter-hit strata go to k = {len(self.voter) - 1}, the node has "
                f"{len(self.guests) - 1} guests"
            )

    @property
    def n(self) -> int:
        """Number of guests of the node."""
        return len(self.guests) - 1

    @property
    def trials(self) -> int:
        """Missions with an outcome in all strata."""
        return sum(each.trials for each in self.guests + self.voter if each is not None)

    def measured(self) -> dict[str, Counts]:
        """Return counts by name: f0, f1, ... and g0, g1, ... for the measured voter-hit strata."""
        named = {f"f{k}": each for k, each in enumerate(self.guests)}
        return named | {f"g{k}": each for k, each in enumerate(self.voter) if each is not None}

    def with_more(self, missions: dict[str, int]) -> Strata:
        """Return the strata as if ``missions`` more, by name, had the failure rates seen so far."""
        grown = {
            name: _grown(each, missions.get(name, 0)) for name, each in self.measured().items()
        }
        return msgspec.structs.replace(
            self,
            guests=tuple(grown[f"f{k}"] for k in range(len(self.guests))),
            voter=tuple(grown.get(f"g{k}") for k in range(len(self.voter))),
        )

    def given_f0(self) -> Strata | None:
        """Return the strata with f_0 = 0 assumed; None where f_0 was observed not to be 0."""
        if self.guests[0].failures:
            return None
        certain = Counts(trials=CERTAIN, failures=0)
        return msgspec.structs.replace(self, guests=(certain, *self.guests[1:]))


def _grown(counts: Counts, more: int) -> Counts:
    if not counts.trials:
        return Counts(trials=more, failures=0)
    trials = counts.trials + more
    failures = round(counts.failures * trials / counts.trials)
    silent = min(failures, round(counts.silent * trials / counts.trials))
    return Counts(trials=trials, failures=failures, silent=silent, excluded=counts.excluded)


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The box of all strata and the intervals that follow from it; ``band`` makes it.

    ``failing``: f_k; ``saving``: g_k; ``silents``: s_k, P(a wrong reply is released | k guests hit,
    voter not), a family of its own.  All intervals that the methods return hold simultaneously.
    """

    failing: tuple[Interval, ...]
    saving: tuple[Interval, ...]
    silents: tuple[Interval, ...]

    @property
    def n(self) -> int:
        """Number of guests of the node."""
        return len(self.failing) - 1

    def _combine(self, parts: tuple[Interval, ...], q: float) -> Interval:
        used = [(w, each) for w, each in zip(weights(q, self.n), parts, strict=True) if w > 0.0]
        return Interval(
            value=math.fsum(w * each.value for w, each in used),
            low=math.fsum(w * each.low for w, each in used),
            high=math.fsum(w * each.high for w, each in used),
        )

    def failure(self, q: float) -> Interval:
        """U(q): the mission fails, the voter not being hit; q = 1 - R_M."""
        return self._combine(self.failing, q)

    def silent(self, q: float) -> Interval:
        """Probability that a wrong reply is released, the voter not being hit."""
        return self._combine(self.silents, q)

    def reliability(self, rm: float) -> Interval:
        """S = 1 - U(1 - R_M)."""
        return self.failure(1.0 - check_probability("R_M", rm)).complement()

    def saved(self, rm: float) -> Interval:
        """G: the mission succeeds although the voter was hit."""
        return self._combine(self.saving, 1.0 - check_probability("R_M", rm))

    def system(self, rm: float, rv: float, rh: float = 1.0) -> Interval:
        """R_sys = R_H [R_V S + (1 - R_V) G]."""
        return self._mixed(rm, rv, rh, 0.0)

    def gain(self, rm: float, rv: float, rh: float = 1.0) -> Interval:
        """R_sys - R_H R_M: above 0 the voted node is better than the plain one."""
        return self._mixed(rm, rv, rh, rm)

    def _mixed(self, rm: float, rv: float, rh: float, less: float) -> Interval:
        v, h = check_probability("R_V", rv), check_probability("R_H", rh)
        s, g = self.reliability(rm), self.saved(rm)

        def at(up: float, kept: float) -> float:
            # A factor of 0 removes a value that was never observed (nan), too.
            return h * ((v * up if v else 0.0) + ((1.0 - v) * kept if v < 1.0 else 0.0) - less)

        return Interval(value=at(s.value, g.value), low=at(s.low, g.low), high=at(s.high, g.high))

    def bound(self, rm: float) -> Interval:
        """R_V*: the R_V above which the voted node is better, ``(R_M - G)/(S - G)``.

        0 where any R_V is enough; above 1, up to infinity, where none is.  It is monotone in S for
        fixed G and in G for fixed S, so the four corners of (S, G) hold its extremes.
        """
        s, g = self.reliability(rm), self.saved(rm)
        corners = [breakeven(rm, up, kept) for up in (s.low, s.high) for kept in (g.low, g.high)]
        return Interval(
            value=breakeven(rm, s.value, g.value), low=min(corners), high=max(corners)
        )  # fmt: skip


def breakeven(rm: float, s: float, g: float) -> float:
    """Return the R_V above which ``R_V s + (1 - R_V) g > R_M``.

    0 if every R_V is enough, infinity if none is, nan if unknown.
    """
    if math.isnan(s) or math.isnan(g):
        return math.nan
    if s <= g:  # a hit does the voter no harm: R_V decides nothing, or in the wrong direction only
        return 0.0 if s > rm else math.inf
    return max(0.0, (rm - g) / (s - g))


def band(strata: Strata, alpha: float = 0.05, excluded: Excluded = "dropped") -> Band:
    """Return the box of all strata at level 1 - ``alpha`` (see the module's text).

    Two assumptions bound a g_k that was not measured: one more guest hit never helps
    (g_k <= g_(k-1)), and a hit on the voter never helps (g_k <= 1 - f_k).  With no g_k measured, G
    is 0 as in the paper; with repair it is bounded by the second assumption only.
    """
    check_alpha(alpha)
    shared = alpha / len(strata.measured())
    take = worst_case if excluded == "worst" else _excluded
    failing = tuple(take(each, shared) for each in strata.guests)
    return Band(
        failing=failing,
        saving=_saving(strata, failing, shared, excluded),
        silents=tuple(
            take(each.silent_only(), alpha / len(strata.guests)) for each in strata.guests
        ),
    )


def _excluded(counts: Counts, alpha: float) -> Interval:
    return clopper_pearson(counts.failures, counts.trials, alpha)


def _saving(
    strata: Strata, failing: tuple[Interval, ...], alpha: float, excluded: Excluded
) -> tuple[Interval, ...]:
    take = worst_case if excluded == "worst" else _excluded
    if not any(strata.voter) and not strata.repair:
        return (Interval(value=0.0, low=0.0, high=0.0),) * len(strata.guests)
    found: list[Interval] = []
    for k in range(len(strata.guests)):
        counts = strata.voter[k] if k < len(strata.voter) else None
        if counts is not None:
            found.append(take(counts.complement(), alpha))
            continue
        most, likely = 1.0 - failing[k].low, 1.0 - failing[k].value
        if found:
            most = min(most, found[-1].high)
        if not any(strata.voter):
            likely = 0.0  # the paper's assumption, in the absence of a measurement
        elif found:
            likely = found[-1].value if math.isnan(likely) else min(likely, found[-1].value)
        found.append(Interval(value=likely, low=0.0, high=most))
    return tuple(found)
