"""Equivalence with the paper, and the comparison of nodes, from the strata.

Equivalence is tested against a margin set beforehand; it is never "no significant difference".  It
*holds* where the whole band lies within the margin, is *violated* where the band lies outside
somewhere, and is *undecided* otherwise.  All verdicts on one set of strata come from one box and
hold simultaneously.  Where the spec allows one extension, each of the two analyses gets half of
alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache

import msgspec

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.intervals import Interval, check_probability
from faultinject.estimate.sample_size import missions_needed
from faultinject.estimate.strata import Band, Excluded, Strata, band
from faultinject.model.bounds import breakeven_rv
from faultinject.model.paired import Paired
from faultinject.model.reliability import m_of_n, nv
from faultinject.model.tails import binomial_at_least

__all__ = [
    "Choice",
    "Equivalence",
    "EquivalenceMargins",
    "PointComparison",
    "VoterVerdict",
    "bound_equivalence",
    "combined_verdict",
    "compare_at_points",
    "failure_equivalence",
    "paper_failure",
]

STEPS = 90
"""Grid steps of q at which a band is compared with its margin; it is smooth between them."""


class VoterVerdict(StrEnum):
    """Whether the measurement agrees with the paper within the margin."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


class Choice(StrEnum):
    """Which node is more reliable at an operating point."""

    VOTED = "voted better"
    PLAIN = "plain better"
    UNDECIDED = "undecided"


class EquivalenceMargins(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equivalence margins, set before the campaign.

    ``failure``: of |U/U_paper - 1|.  ``bound``: of |R_V* - bound|.  Both for q = 1 - R_M from
    ``q_low`` to ``q_high``.
    """

    failure: float = 0.10
    bound: float = 0.005
    q_low: float = 0.05
    q_high: float = 0.5

    def __post_init__(self) -> None:
        if not (self.failure > 0 and self.bound > 0 and 0 < self.q_low < self.q_high < 1):
            raise EstimateError(
                "margins must be above 0, and 0 < q_low < q_high < 1: "
                f"{self.failure:g}, {self.bound:g}, {self.q_low:g}, {self.q_high:g}"
            )

    def qs(self) -> list[float]:
        """Return the grid of q, both ends included."""
        width = self.q_high - self.q_low
        return [self.q_low + width * i / STEPS for i in range(STEPS)] + [self.q_high]


class Equivalence(msgspec.Struct, frozen=True, kw_only=True):
    """One equivalence test.

    ``q``: where the band is furthest from the paper's value; ``measured``: the band there (of U, or
    of R_V*); ``paper``: the paper's value there.  ``missions``: by stratum, how many more the
    verdict needs at the rates seen so far; {} when decided, None when no number would decide it.
    """

    verdict: VoterVerdict
    quantity: str
    q: float
    measured: Interval
    paper: float
    missions: dict[str, int] | None


@lru_cache(maxsize=4096)
def paper_failure(q: float, m: int, n: int) -> float:
    """U(q) in the paper's model: fewer than ``m`` of ``n`` guests are left."""
    return binomial_at_least(m, n, Paired.failing(check_probability("q", q))).down


class _Distance(msgspec.Struct, frozen=True, kw_only=True):
    """The distance of the band's ends from the paper's value at one q, in units of the margin."""

    q: float
    measured: Interval
    paper: float
    low: float
    high: float

    @property
    def far(self) -> float:
        """Of the end that is further from the paper's value."""
        return max(-self.low, self.high)

    @property
    def near(self) -> float:
        """Of the nearer end, where the paper's value is outside the band; else negative."""
        return max(self.low, -self.high)


def _verdict(distances: Sequence[_Distance]) -> tuple[VoterVerdict, _Distance]:
    worst = max(distances, key=lambda each: each.near)
    if worst.near > 1.0:
        return VoterVerdict.VIOLATED, worst
    widest = max(distances, key=lambda each: each.far)
    return (VoterVerdict.HOLDS if widest.far <= 1.0 else VoterVerdict.UNDECIDED), widest


def _distance(q: float, found: Interval, paper: float, unit: float) -> _Distance:
    return _Distance(
        q=q, measured=found, paper=paper, low=(found.low - paper) / unit,
        high=(found.high - paper) / unit,
    )  # fmt: skip


def _failure_distances(box: Band, margins: EquivalenceMargins, m: int) -> list[_Distance]:
    found = []
    for q in margins.qs():
        paper = paper_failure(q, m, box.n)
        found.append(_distance(q, box.failure(q), paper, paper * margins.failure))
    return found


def _bound_distances(box: Band, margins: EquivalenceMargins, m: int) -> list[_Distance]:
    found = []
    for q in margins.qs():
        paper = _paper_bound(q, m, box.n)
        if paper < 1.0:
            found.append(_distance(q, box.bound(1.0 - q), paper, margins.bound))
    if not found:
        raise EstimateError(
            "no q of the margins has a bound below 1: there is nothing to compare",
            error_code="TV0605",
        )
    return found


@lru_cache(maxsize=4096)
def _paper_bound(q: float, m: int, n: int) -> float:
    return float(breakeven_rv(1.0 - q, m, n))


def _test(
    strata: Strata, quantity: str, distances: Callable[[Strata], list[_Distance]]
) -> Equivalence:
    verdict, at = _verdict(distances(strata))
    missions: dict[str, int] | None = {}
    if verdict is VoterVerdict.UNDECIDED:
        missions = missions_needed(
            strata,
            lambda grown: _verdict(distances(grown))[0] is not VoterVerdict.UNDECIDED,
            lambda grown: _verdict(distances(grown))[1].far,
        )
    return Equivalence(
        verdict=verdict, quantity=quantity, q=at.q, measured=at.measured, paper=at.paper,
        missions=missions,
    )  # fmt: skip


def failure_equivalence(
    strata: Strata,
    margins: EquivalenceMargins = EquivalenceMargins(),  # noqa: B008 - frozen
    alpha: float = 0.05,
    m: int = 2,
    excluded: Excluded = "dropped",
) -> Equivalence:
    """Test whether ``|U/U_paper - 1| <= margins.failure`` for all q of the margins at once.

    Voter-hit strata, if any, share the box and so widen it; they do not enter U.
    """
    return _test(
        strata, "unreliability U",
        lambda grown: _failure_distances(band(grown, alpha, excluded), margins, m),
    )  # fmt: skip


def bound_equivalence(
    strata: Strata,
    margins: EquivalenceMargins = EquivalenceMargins(),  # noqa: B008 - frozen
    alpha: float = 0.05,
    m: int = 2,
    excluded: Excluded = "dropped",
) -> Equivalence:
    """Test whether ``|R_V* - bound| <= margins.bound`` for all q whose bound is below 1.

    With voter-hit strata, R_V* contains the measured G: a voter that recovers lies below the
    paper's bound, which is a (welcome) departure.  Without them G is 0.  Raises EstimateError if
    the paper's bound is 1 or more at every q of the margins.
    """
    return _test(
        strata, "break-even R_V*",
        lambda grown: _bound_distances(band(grown, alpha, excluded), margins, m),
    )  # fmt: skip


def combined_verdict(*found: Equivalence) -> VoterVerdict:
    """Return violated if any is, holds if all do, else undecided."""
    verdicts = {each.verdict for each in found}
    if VoterVerdict.VIOLATED in verdicts:
        return VoterVerdict.VIOLATED
    return VoterVerdict.HOLDS if verdicts == {VoterVerdict.HOLDS} else VoterVerdict.UNDECIDED


class PointComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The voted and the plain node at one operating point.

    ``plain``: R_H R_M.  ``voted``: R_sys, recombined from the measured strata.  ``choice``: which
    node is better; ``given_f0``: the same given f_0 = 0.  ``paper``: what Inequality (4) says.
    ``breakeven``: R_V above which the voted node is better; None where not finite.
    """

    repair: bool
    rm: float
    rv: float
    rh: float
    plain: float
    voted: Interval
    choice: Choice
    given_f0: Choice
    paper: Choice
    breakeven: Interval | None


def compare_at_points(
    strata: Strata, points: Sequence[tuple[float, float, float]], alpha: float = 0.05, m: int = 2
) -> tuple[PointComparison, ...]:
    """Compare at each (rm, rv, rh): one box for all, so they are no independent confirmations.

    A tie goes to the plain node, which has fewer parts, as in the paper's strict inequality.
    """
    box, assumed = band(strata, alpha), strata.given_f0()
    given = band(assumed, alpha) if assumed else box
    found = []
    for rm, rv, rh in points:
        promised = float(m_of_n(rh, rv, rm, m, strata.n)) - float(nv(rh, rm))
        bound = box.bound(rm)
        found.append(
            PointComparison(
                repair=strata.repair, rm=rm, rv=rv, rh=rh, plain=float(nv(rh, rm)),
                voted=box.system(rm, rv, rh),
                choice=_choose(box.gain(rm, rv, rh)), given_f0=_choose(given.gain(rm, rv, rh)),
                paper=Choice.VOTED if promised > 0.0 else Choice.PLAIN,
                breakeven=bound if bound.finite else None,
            )
        )  # fmt: skip
    return tuple(found)


def _choose(gain: Interval) -> Choice:
    if gain.low > 0.0:
        return Choice.VOTED
    return Choice.PLAIN if gain.high <= 0.0 else Choice.UNDECIDED
