"""What the strata allow one to say: does the voter do what the paper assumes, and which is better?

Equivalence is equivalence with a margin set beforehand, never "no significant difference": *holds*
where the whole band lies within the margin, *violated* where it lies outside somewhere, *undecided*
otherwise.  All verdicts of one set of strata come from one box and hold together.  Whether an
extension was allowed is the spec's: then give each of the two looks ``alpha`` / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache

import msgspec

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.intervals import Interval
from faultinject.estimate.sample_size import missions_needed
from faultinject.estimate.strata import Band, Strata, Void, band, check_probability
from faultinject.model.bounds import breakeven_rv
from faultinject.model.paired import Paired
from faultinject.model.reliability import m_of_n, nv
from faultinject.model.tails import binomial_at_least

__all__ = [
    "Equivalence",
    "Choice",
    "EquivalenceMargins",
    "PointVerdict",
    "VoterVerdict",
    "bound_equivalence",
    "failure_equivalence",
    "combined_verdict",
    "compare_at_point",
    "compare_at_points",
    "missions_for_equivalence",
    "paper_failure",
]

_Box = Callable[[Strata], Band]

STEPS = 90
"""Points of q at which a band is held against its margin; the curves between them are smooth."""


class VoterVerdict(StrEnum):
    """Whether the measured agrees with the paper within the margin."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


class Choice(StrEnum):
    """Which node is the more reliable one at an operating point."""

    VOTED = "voted better"
    PLAIN = "plain better"
    UNDECIDED = "undecided"


class EquivalenceMargins(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How near is near enough, set before the campaign.

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
        """The q at which bands are looked at, both ends included."""
        width = self.q_high - self.q_low
        return [self.q_low + width * i / STEPS for i in range(STEPS)] + [self.q_high]


class Equivalence(msgspec.Struct, frozen=True, kw_only=True):
    """One equivalence judged.

    ``q``: where the verdict hangs: the q at which the band is furthest out.  ``measured``: the
    band there (of U, or of R_V*), ``paper``: what the paper has there.  ``missions``: by stratum,
    those that it would still take at the rates seen so far; {} when decided, None when more would
    not decide.
    """

    verdict: VoterVerdict
    what: str
    q: float
    measured: Interval
    paper: float
    margin: float
    words: str
    missions: dict[str, int] | None


@lru_cache(maxsize=4096)
def paper_failure(q: float, m: int, n: int) -> float:
    """U(q) as the paper has it: fewer than ``m`` of ``n`` guests are left."""
    return binomial_at_least(m, n, Paired.failing(check_probability("q", q))).down


class _Look(msgspec.Struct, frozen=True, kw_only=True):
    """One q: how far the band reaches from the paper's value, in margins (1: just at it)."""

    q: float
    measured: Interval
    paper: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """The end that is furthest from the paper."""
        return max(-self.low, self.high)

    @property
    def gap(self) -> float:
        """The end that is nearest to it, where the paper's value is outside: else negative."""
        return max(self.low, -self.high)


def _settle(looks: Sequence[_Look]) -> tuple[VoterVerdict, _Look]:
    worst = max(looks, key=lambda each: each.gap)
    if worst.gap > 1.0:
        return VoterVerdict.VIOLATED, worst
    widest = max(looks, key=lambda each: each.reach)
    return (VoterVerdict.HOLDS if widest.reach <= 1.0 else VoterVerdict.UNDECIDED), widest


def _failure_looks(box: Band, margins: EquivalenceMargins, m: int) -> list[_Look]:
    looks = []
    for q in margins.qs():
        found, paper = box.failure(q), paper_failure(q, m, box.n)
        looks.append(_look(q, found, paper, paper * margins.failure))
    return looks


def _bound_looks(box: Band, margins: EquivalenceMargins, m: int) -> list[_Look]:
    looks = []
    for q in margins.qs():
        paper = _paper_bound(q, m, box.n)
        if paper < 1.0:
            looks.append(_look(q, box.bound(1.0 - q), paper, margins.bound))
    if not looks:
        raise EstimateError("no q of the margins has a bound below 1: nothing to agree with")
    return looks


def _look(q: float, found: Interval, paper: float, unit: float) -> _Look:
    return _Look(
        q=q,
        measured=found,
        paper=paper,
        low=(found.low - paper) / unit,
        high=(found.high - paper) / unit,
    )


@lru_cache(maxsize=4096)
def _paper_bound(q: float, m: int, n: int) -> float:
    return float(breakeven_rv(1.0 - q, m, n))


def _agree(
    strata: Strata, look: Callable[[Band], list[_Look]], what: str, margin: float, box: _Box
) -> Equivalence:
    verdict, at = _settle(look(box(strata)))
    missions: dict[str, int] | None = {}
    if verdict is VoterVerdict.UNDECIDED:
        missions = missions_needed(
            strata,
            lambda grown: _settle(look(box(grown)))[0] is not VoterVerdict.UNDECIDED,
            lambda grown: _settle(look(box(grown)))[1].reach,
        )
    tail = {
        VoterVerdict.HOLDS: "within the margin at every q",
        VoterVerdict.VIOLATED: "outside the margin",
        VoterVerdict.UNDECIDED: _still(missions),
    }[verdict]
    return Equivalence(
        verdict=verdict,
        what=what,
        q=at.q,
        measured=at.measured,
        paper=at.paper,
        margin=margin,
        words=(
            f"{what} at q = {at.q:.3g} (R_M = {1 - at.q:.3g}): measured "
            f"{at.measured.value:.4g}, band {at.measured.low:.4g} to {at.measured.high:.4g}, the "
            f"paper {at.paper:.4g}; {tail}"
        ),
        missions=missions,
    )


def _still(missions: dict[str, int] | None) -> str:
    if missions is None:
        return "more missions at the rates seen so far would not decide it"
    each = ", ".join(f"{count:,} in {name}" for name, count in missions.items() if count)
    return f"it would still take about {each}, if they go as those so far"


def failure_equivalence(
    strata: Strata,
    margins: EquivalenceMargins = EquivalenceMargins(),  # noqa: B008 - frozen
    alpha: float = 0.05,
    m: int = 2,
    void: Void = "excluded",
) -> Equivalence:
    """Whether ``|U/U_paper - 1| <= margins.failure`` for all q of the margins at once.

    The voter-hit strata, if any, share the box and so widen it; they do not enter U.
    """
    return _agree(
        strata,
        lambda box: _failure_looks(box, margins, m),
        "U, the voted node's failure",
        margins.failure,
        lambda grown: band(grown, alpha, void),
    )


def bound_equivalence(
    strata: Strata,
    margins: EquivalenceMargins = EquivalenceMargins(),  # noqa: B008 - frozen
    alpha: float = 0.05,
    m: int = 2,
    void: Void = "excluded",
) -> Equivalence:
    """Whether ``|R_V* - bound| <= margins.bound`` for all q where the paper's bound is below 1.

    With voter-hit strata the measured R_V* has the measured G in it: a voter that recovers lies
    below the paper's bound, which is a departure, if a welcome one.  Without them G is 0.
    Raises EstimateError if the paper's bound is 1 or more at every q of the margins.
    """
    return _agree(
        strata,
        lambda box: _bound_looks(box, margins, m),
        "R_V*, the break-even bound",
        margins.bound,
        lambda grown: band(grown, alpha, void),
    )


def missions_for_equivalence(
    strata: Strata,
    margins: EquivalenceMargins = EquivalenceMargins(),  # noqa: B008 - frozen
    alpha: float = 0.05,
    m: int = 2,
) -> dict[str, int] | None:
    """Missions to add by stratum until both equivalences hold; {} if they do.

    With ``reach.expected`` it answers for a plan: whether it *can* end in "holds" even if every
    mission goes as in the paper.  None where no affordable number does.
    """

    def both(grown: Strata) -> list[tuple[VoterVerdict, _Look]]:
        box = band(grown, alpha)
        return [_settle(_failure_looks(box, margins, m)), _settle(_bound_looks(box, margins, m))]

    return missions_needed(
        strata,
        lambda grown: all(verdict is VoterVerdict.HOLDS for verdict, _ in both(grown)),
        lambda grown: sum(max(1.0, at.reach) for _, at in both(grown)),
    )


def combined_verdict(*agreements: Equivalence) -> VoterVerdict:
    """Violated if any is, holds if all do, else undecided."""
    verdicts = {each.verdict for each in agreements}
    if VoterVerdict.VIOLATED in verdicts:
        return VoterVerdict.VIOLATED
    return VoterVerdict.HOLDS if verdicts == {VoterVerdict.HOLDS} else VoterVerdict.UNDECIDED


class PointVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Voted or plain at one operating point.

    ``plain``: R_H R_M; ``voted``: the measured R_sys; ``gain``: their difference.  ``paper``: what
    Inequality (4) says.  ``missions``: as in ``Equivalence``.
    """

    rm: float
    rv: float
    rh: float
    plain: float
    voted: Interval
    gain: Interval
    choice: Choice
    paper: Choice
    words: str
    missions: dict[str, int] | None


def compare_at_point(
    strata: Strata, rm: float, rv: float, rh: float = 1.0, alpha: float = 0.05, m: int = 2
) -> PointVerdict:
    """Which is better at (``rm``, ``rv``, ``rh``).

    Not being better is enough for plain: a tie goes to the node with less in it, as in the paper's
    strict inequality.
    """
    box = band(strata, alpha)
    found = box.gain(rm, rv, rh)
    choice = _choose(found)
    missions: dict[str, int] | None = {}
    if choice is Choice.UNDECIDED:
        missions = missions_needed(
            strata,
            lambda grown: _choose(band(grown, alpha).gain(rm, rv, rh)) is not Choice.UNDECIDED,
            lambda grown: _overlap(band(grown, alpha).gain(rm, rv, rh)),
        )
    promised = float(m_of_n(rh, rv, rm, m, strata.n)) - float(nv(rh, rm))
    tail = f"; {_still(missions)}" if choice is Choice.UNDECIDED else ""
    return PointVerdict(
        rm=rm,
        rv=rv,
        rh=rh,
        plain=float(nv(rh, rm)),
        voted=box.system(rm, rv, rh),
        gain=found,
        choice=choice,
        paper=Choice.VOTED if promised > 0.0 else Choice.PLAIN,
        words=f"{choice}: R_sys - R_H R_M is {found.low:+.4g} to {found.high:+.4g}{tail}",
        missions=missions,
    )


def _choose(gain: Interval) -> Choice:
    if gain.low > 0.0:
        return Choice.VOTED
    return Choice.PLAIN if gain.high <= 0.0 else Choice.UNDECIDED


def _overlap(gain: Interval) -> float:
    """How far 0 is inside the interval: what more missions must bring to nothing."""
    return gain.high if math.isnan(gain.value) else min(gain.high, -gain.low)


def compare_at_points(
    strata: Strata,
    points: Sequence[tuple[float, float, float]],
    alpha: float = 0.05,
    m: int = 2,
) -> list[PointVerdict]:
    """``compare_at_point`` at each (rm, rv, rh): one box for all, so no separate confirmations."""
    return [compare_at_point(strata, rm, rv, rh, alpha, m) for rm, rv, rh in points]
