"""Recombine the strata: U(q), S, G and the measured break-even R_V* from one data set, for every q.

``f_k`` is the probability that a mission fails when k of n guests are hit and the voter is not;
``g_k`` that one *succeeds* when the voter is hit too.  With q = 1 - R_M and
``w_k(q) = C(n, k) q^k (1 - q)^(n-k)``:

    U(q) = sum w_k f_k,   S = 1 - U,   G = sum w_k g_k,   R_sys = R_H [R_V S + (1 - R_V) G],

so the voted node is better than the plain one iff ``R_V (S - G) > R_M - G``.  A Clopper-Pearson
interval for each f_k and g_k, at a level shared by Bonferroni, is a box that holds all of them at
once; everything above is monotone in each, so its extremes lie in corners of the box and the band
holds for all q, R_V and R_H at once.  A voter that dies without being hit is a failure in f_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import Interval, check_alpha, clopper_pearson, worst_case
from faultinject.model.paired import Paired
from faultinject.model.tails import exactly

__all__ = ["Band", "Strata", "Void", "band", "check_probability", "recombine", "weights"]

Void = Literal["excluded", "worst"]
"""How missions without an outcome count: not at all, or as whatever is worse for the claim."""


def check_probability(name: str, value: float) -> float:
    """Return ``value``, or raise EstimateError if it is not in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise EstimateError(f"{name} is {value:g}: it must be a probability, from 0 to 1")
    return float(value)


@lru_cache(maxsize=4096)  # the same q are asked for again and again
def weights(q: float, n: int) -> tuple[float, ...]:
    """``w_k(q)``, the probability that exactly k of n guests are hit, for k = 0..n."""
    hit = Paired(check_probability("q", q))
    return tuple(exactly(k, n, hit) for k in range(n + 1))


def recombine(values: Sequence[float], q: float) -> float:
    """``sum_k w_k(q) values[k]``: values whose weight is 0 do not count, nan or not."""
    shares = weights(q, len(values) - 1)
    return math.fsum(w * v for w, v in zip(shares, values, strict=True) if w > 0.0)


class Strata(msgspec.Struct, frozen=True, kw_only=True):
    """Counts by stratum.

    ``guests[k]``, k = 0..n: k of the n guests hit, the voter not.  ``voter[k]``: the voter hit
    and k guests hit; shorter than ``guests``, or None at a k, where that was not measured.
    ``repaired``: a voter that was hit is started again, so that with no g_k measured nothing is
    known of G; else the paper's word is taken then, that it is 0.
    """

    guests: tuple[Counts, ...]
    voter: tuple[Counts | None, ...] = ()
    repaired: bool = False

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
        """How many guests the node has."""
        return len(self.guests) - 1

    @property
    def trials(self) -> int:
        """Missions with an outcome, all strata together."""
        return sum(each.trials for each in self.guests + self.voter if each is not None)

    def measured(self) -> dict[str, Counts]:
        """Counts by name: f0, f1, ... and g0, g1, ... for the voter-hit strata that exist."""
        named = {f"f{k}": each for k, each in enumerate(self.guests)}
        return named | {f"g{k}": each for k, each in enumerate(self.voter) if each is not None}

    def with_more(self, missions: dict[str, int]) -> Strata:
        """As if ``missions`` more by name had been run and gone at the rates seen so far."""
        grown = {
            name: _grown(each, missions.get(name, 0)) for name, each in self.measured().items()
        }
        return Strata(
            guests=tuple(grown[f"f{k}"] for k in range(len(self.guests))),
            voter=tuple(grown.get(f"g{k}") for k in range(len(self.voter))),
            repaired=self.repaired,
        )


def _grown(counts: Counts, more: int) -> Counts:
    if not counts.trials:
        return Counts(trials=more, failures=0)
    trials = counts.trials + more
    failures = round(counts.failures * trials / counts.trials)
    silent = min(failures, round(counts.silent * trials / counts.trials))
    return Counts(trials=trials, failures=failures, silent=silent, void=counts.void)


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The box of all strata and what follows from it; make it with ``band``.

    ``failing``: f_k; ``saving``: g_k; ``silents``: s_k (a family of its own).  Every interval
    that the methods return holds together with all others of them with probability ``level``.
    """

    failing: tuple[Interval, ...]
    saving: tuple[Interval, ...]
    silents: tuple[Interval, ...]
    level: float

    @property
    def n(self) -> int:
        """How many guests the node has."""
        return len(self.failing) - 1

    def f(self, k: int) -> Interval:
        """P(mission fails | k guests hit, voter not)."""
        return self.failing[k]

    def g(self, k: int) -> Interval:
        """P(mission succeeds | voter hit, k guests hit)."""
        return self.saving[k]

    def s(self, k: int) -> Interval:
        """P(a wrong reply is released | k guests hit, voter not)."""
        return self.silents[k]

    def _combine(self, parts: tuple[Interval, ...], q: float) -> Interval:
        used = [(w, each) for w, each in zip(weights(q, self.n), parts, strict=True) if w > 0.0]
        return Interval(
            value=math.fsum(w * each.value for w, each in used),
            low=math.fsum(w * each.low for w, each in used),
            high=math.fsum(w * each.high for w, each in used),
            level=self.level,
            method="Clopper-Pearson by stratum, Bonferroni box: valid for all q at once",
        )

    def failure(self, q: float) -> Interval:
        """U(q): the mission fails, the voter not being hit; q = 1 - R_M."""
        return self._combine(self.failing, q)

    def silent(self, q: float) -> Interval:
        """Probability that a wrong reply is released, the voter not being hit."""
        return self._combine(self.silents, q)

    def reliability(self, rm: float) -> Interval:
        """S = 1 - U(1 - R_M)."""
        return self.failure(1.0 - check_probability("R_M", rm)).turned()

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
            # A factor of 0 takes out a value that was never observed (nan), too.
            return h * ((v * up if v else 0.0) + ((1.0 - v) * kept if v < 1.0 else 0.0) - less)

        return Interval(
            value=at(s.value, g.value),
            low=at(s.low, g.low),
            high=at(s.high, g.high),
            level=self.level,
            method=s.method,
        )

    def bound(self, rm: float) -> Interval:
        """R_V*: the R_V above which the voted node is better, ``(R_M - G)/(S - G)``.

        0 where any R_V will do; above 1, up to infinity, where none will.  For fixed G it is
        monotone in S and for fixed S in G, so the four corners of (S, G) hold its extremes.
        """
        s, g = self.reliability(rm), self.saved(rm)
        corners = [breakeven(rm, up, kept) for up in (s.low, s.high) for kept in (g.low, g.high)]
        return Interval(
            value=breakeven(rm, s.value, g.value),
            low=min(corners),
            high=max(corners),
            level=self.level,
            method=s.method,
        )

    def curve(self, rms: Sequence[float]) -> list[Interval]:
        """``bound`` at each R_M: the band of Figure 7."""
        return [self.bound(rm) for rm in rms]


def breakeven(rm: float, s: float, g: float) -> float:
    """R_V above which ``R_V s + (1 - R_V) g > R_M``; 0 if all do, infinity if none or unknown."""
    if math.isnan(s) or math.isnan(g):
        return math.nan
    if s <= g:  # being hit does the voter no harm: R_V decides nothing, or only the wrong way
        return 0.0 if s > rm else math.inf
    return max(0.0, (rm - g) / (s - g))


def band(strata: Strata, alpha: float = 0.05, void: Void = "excluded") -> Band:
    """Box of all strata together at level 1 - ``alpha``; see the module's text.

    A g_k that was not measured is bounded by two assumptions, said in its ``method``: that a hit
    more on a guest never helps (g_k <= g_(k-1)), and that the hit on the voter never helps (g_k
    <= 1 - f_k).  With no g_k measured at all G is taken as the paper takes it, 0, but where a
    voter that was hit is repaired: there it is bounded by the second assumption.
    """
    check_alpha(alpha)
    shared = alpha / len(strata.measured())
    take = worst_case if void == "worst" else _excluded
    failing = tuple(take(each, shared) for each in strata.guests)
    return Band(
        failing=failing,
        saving=_saving(strata, failing, shared, void),
        silents=tuple(take(each.silents(), alpha / len(strata.guests)) for each in strata.guests),
        level=1.0 - alpha,
    )


def _excluded(counts: Counts, alpha: float) -> Interval:
    return clopper_pearson(counts.failures, counts.trials, alpha)


def _saving(
    strata: Strata, failing: tuple[Interval, ...], alpha: float, void: Void
) -> tuple[Interval, ...]:
    take = worst_case if void == "worst" else _excluded
    level = 1.0 - alpha
    if not any(strata.voter) and not strata.repaired:
        zero = Interval(
            value=0.0, low=0.0, high=0.0, level=1.0, method="taken as 0, as the paper takes it"
        )
        return (zero,) * len(strata.guests)
    found: list[Interval] = []
    for k in range(len(strata.guests)):
        counts = strata.voter[k] if k < len(strata.voter) else None
        if counts is not None:
            found.append(take(counts.turned(), alpha))
            continue
        most, likely = 1.0 - failing[k].low, 1.0 - failing[k].value
        if found:
            most = min(most, found[-1].high)
        if not any(strata.voter):
            likely = 0.0  # the paper's word, for want of a better one
        elif found:
            likely = found[-1].value if math.isnan(likely) else min(likely, found[-1].value)
        found.append(
            Interval(
                value=likely, low=0.0, high=most, level=level,
                method="not measured: bounded, as a hit more never helps",
            )
        )  # fmt: skip
    return tuple(found)
