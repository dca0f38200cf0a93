"""What a campaign found, ready to be shown: all that figures and page take.  Pure data.

Probabilities are in [0, 1], times in seconds.  An interval is at the campaign's confidence unless
its docstring says otherwise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from faultinject.results.outcome import Design, Outcome, Question, StationFacts

__all__ = [
    "BreakEvenFinding",
    "CurveFinding",
    "DoseFinding",
    "EffectFinding",
    "Findings",
    "Head",
    "FaultKindFinding",
    "LatencyFinding",
    "Point",
    "PowerFinding",
    "Share",
    "CommonCauseFinding",
    "Silence",
    "SilentFinding",
    "SpeedFinding",
    "StratumFinding",
    "Tone",
    "VerdictFinding",
    "Width",
]

Tone = Literal["good", "bad", "open", "alarm"]
"""``good``: as the paper says.  ``bad``: not so.  ``open``: the data cannot say.  ``alarm``: a
wrong reply was released."""


class _Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Share(_Finding, frozen=True, kw_only=True):
    """``count`` of ``of`` trials, with its interval (Clopper-Pearson)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def point(self) -> float | None:
        """The share itself; None where there was no trial."""
        return self.count / self.of if self.of else None


class Head(_Finding, frozen=True, kw_only=True):
    """What was run.  ``done`` of ``planned`` missions have a row; ``used`` are in the estimates (of
    a partial campaign the longest complete prefix of the plan); ``void`` of these were no trial.
    """

    title: str
    question: Question
    planned: int
    done: int
    used: int
    void: int
    trials: int
    seed: int
    confidence: float  # 0.95
    service: str
    lying: float = 0.0  # of the weights of the guests' faults, the part that are wrong replies
    requests: int  # a mission
    m: int  # of ``n`` guests that must agree
    n: int
    workers: int
    began: float  # seconds since the epoch; 0: not known
    ended: float
    spec: str  # its text
    spec_hash: str
    facts: tuple[StationFacts, ...]  # one a host
    versions: tuple[tuple[str, str], ...]  # of what ran it, and of what drew this page
    directory: str  # its name

    @property
    def vote(self) -> str:
        """As the campaign's file has it: "2/3"."""
        return f"{self.m}/{self.n}"

    @property
    def partial(self) -> bool:
        """Whether missions of the plan are missing."""
        return self.done < self.planned


class VerdictFinding(_Finding, frozen=True, kw_only=True):
    """One answer, in one line, with what it rests on.  Plain text; ``tests``: what it judges."""

    tone: Tone
    answer: str
    words: str
    tests: Literal["voter", "model"]


class StratumFinding(_Finding, frozen=True, kw_only=True):
    """One stratum.  ``paper``: the share of failed missions that the paper assumes (None: nothing,
    or a part of a stratum).  ``outcomes`` has all five; ``void`` missions turned out no trials.
    """

    name: str
    label: str  # "f_1", "g_0": what STATISTICS calls its failing (f) or succeeding (g) share
    design: Design
    k: int
    voter_hit: bool
    repair: bool
    alike: bool | None  # of a part of a stratum: whether the liars lie alike
    void: int
    outcomes: dict[Outcome, int]
    failed: Share
    silent: Share
    paper: float | None
    function_k: int = 0  # further guests, whose f is hit
    host_function_hit: bool = False
    vote: str = ""  # where it is not the station's

    @property
    def trials(self) -> int:
        """Missions that were one."""
        return self.failed.of


class FaultKindFinding(_Finding, frozen=True, kw_only=True):
    """Missions of the strata by what struck.  ``alone``: this was the only hit; else others (of any
    kind) were in it too, and the mission stands under each of its kinds.
    """

    kind: str
    hit: str  # in words: "1 guest", "voter and guests"
    layer: str
    alone: bool
    repair: bool
    outcomes: dict[Outcome, int]
    failed: Share
    unused: int  # missions whose hit was never met: trials, and correct
    not_applied: int  # missions in which it was not proved to act
    masked: int  # missions in which a dissent was outvoted


class SilentFinding(_Finding, frozen=True, kw_only=True):
    """A mission in which a wrong reply was released; ``arranged``: by lies made alike, a poison."""

    mission: int
    stratum: str
    hits: str
    words: str
    arranged: bool = False


class Silence(_Finding, frozen=True, kw_only=True):
    """Missions of the voted node in which a wrong reply was released, over all that were run.

    ``alike``: of these, those in which guests were made to err alike (the same lie, or a poison):
    more of them than a vote can bear.  ``struck``: those in which one cause struck all, and nobody
    chose what they would say.  ``promised``: those in which no more guests were hit than the vote
    promises to bear, and the voter was not hit: these must not be.  ``uncompared``: those of a
    vote 1 of n with guests hit, which compares nothing.  ``listed``: those that were not arranged
    first.
    """

    share: Share
    alike: int
    promised: int
    listed: tuple[SilentFinding, ...]
    struck: int = 0
    uncompared: int = 0


class CurveFinding(_Finding, frozen=True, kw_only=True):
    """Over a grid of R_M: the break-even R_V and the unreliability U, each (low, point, high).

    Bands hold for all R_M at once.  ``breakeven``: above 1, no R_V helps there; ``relative``: U
    over the paper's.  ``..._given``: the same given f_0 = 0; empty where f_0 was seen not to be
    0.
    """

    repair: bool
    rm: tuple[float, ...]
    paper: tuple[float, ...]  # the bound: 1 / (3 R_M - 2 R_M^2) for 2-of-3
    breakeven: tuple[tuple[float, float, float], ...]
    relative: tuple[tuple[float, float, float], ...]
    breakeven_given: tuple[tuple[float, float, float], ...] = ()
    relative_given: tuple[tuple[float, float, float], ...] = ()
    relative_margin: float
    breakeven_margin: float
    margin_from: float  # the range of R_M for which the margins are asked
    margin_to: float


class Point(_Finding, frozen=True, kw_only=True):
    """An operating point: the plain node's R_H R_M, the voted node's R_sys with its interval."""

    rm: float
    rv: float
    rh: float
    repair: bool
    plain: float
    voted: tuple[float, float, float]  # low, point, high
    verdict: Literal["voted better", "plain better", "undecided"]
    paper: Literal["voted better", "plain better"]  # what Inequality (4) says
    words: str = ""
    given: str = ""  # the verdict given f_0 = 0, where only that decides
    breakeven: tuple[float, float, float] | None = None  # R_V from which on voting is better


class PowerFinding(_Finding, frozen=True, kw_only=True):
    """How far the data reach at ``q`` = 1 - R_M: what the interval of each f_k may hide, in parts
    of U (``shares``), and how many missions of stratum k bring that under ``target`` (``needed``).
    """

    q: float
    shares: tuple[float, ...]
    needed: tuple[int, ...]
    trials: tuple[int, ...]
    target: float
    repair: bool = False


class Width(_Finding, frozen=True, kw_only=True):
    """Half the interval of U at ``q``, in parts of U, of ways to spend ``missions``.

    ``stratified``: as was done, f_0 measured; ``given_f0``: the same, f_0 = 0 taken for granted;
    ``skipping``: drawn naturally but for missions in which nothing is hit (takes f_0 = 0 for
    granted too); ``natural``: all drawn naturally.  ``needed``: natural missions for
    ``given_f0``'s width.
    """

    q: float
    missions: int
    stratified: float
    given_f0: float
    skipping: float
    natural: float
    needed: int


class NodePoint(_Finding, frozen=True, kw_only=True):
    """A design at an operating point: R_sys as measured (low, point, high) and as the paper has it;
    ``silent``: the share of missions in which a wrong reply is released, the voter not failing.
    """

    rm: float
    rv: float
    rh: float
    plain: float
    measured: tuple[float, float, float]
    silent: tuple[float, float, float]
    model: float
    breakeven: tuple[float, float, float] | None = None  # R_V from which on it is better; if finite


class NodeFinding(_Finding, frozen=True, kw_only=True):
    """A design, m of n: by k, the share of missions that failed, that released a wrong reply, and
    what the paper assumes (0 up to n - m hit guests, then 1).
    """

    vote: str
    m: int
    n: int
    repair: bool
    failed: tuple[Share, ...]
    silent: tuple[Share, ...]
    paper: tuple[float, ...]
    points: tuple[NodePoint, ...]
    voter: tuple[Share | None, ...] = ()  # missions that failed with the voter hit too, by k


class DoseFinding(_Finding, frozen=True, kw_only=True):
    """R_M and R_sys measured under the same faults: one dose of soft errors, or (``shared``) one
    kind of shot.  ``model``: the paper's R_sys over the interval of R_M.  ``label``: for the
    figure.
    """

    kind: str
    flips: int
    label: str
    shared: bool = False
    plain: Share  # succeeded of NV's missions: R_M
    voted: Share  # succeeded of the voted: R_sys
    model: tuple[float, float, float]
    verdict: Literal["agrees", "departs", "undecided"]
    words: str = ""
    outcomes: dict[Outcome, int] = {}  # of the voted
    plain_outcomes: dict[Outcome, int] = {}
    # Voted missions by guests that fell: 0, 1, ..., too many; and had they fallen independently.
    fell: tuple[int, ...] = ()
    fell_expected: tuple[float, ...] = ()
    fell_p: float | None = None


class CommonCauseFinding(_Finding, frozen=True, kw_only=True):
    """A shared cause: ``fell[j]`` of the shots made exactly j guests fail; ``independent[j]``: what
    j would be if guests fell independently, each as often as they did.  ``fell_p``: how often
    chance alone is as far from that; ``together``: it is not chance (Bonferroni over the causes),
    and all fall at once more often.

    ``fatal``: P(too many fell for a majority | shot), low, point, high, and the same had they
    fallen independently.  ``voted`` and ``plain``: missions that failed under a shot, of the voted
    node and of one guest alone past the voter.
    """

    kind: str
    fell: tuple[Share, ...]
    independent: tuple[float, ...]
    fell_p: float | None = None
    together: bool = False
    fatal: tuple[float, float, float]
    fatal_independent: float
    voted: Share
    plain: Share | None
    silent: int
    words: str = ""


class BreakEvenFinding(_Finding, frozen=True, kw_only=True):
    """The voted node when a shot comes with probability ``frequency`` a mission (an assumption,
    nothing measured) beside independent failures: R_sys (low, point, high) over R_M, a guest's
    reliability with the shots in it.

    ``cause``: the kind of shot, whatever the vote, ``m`` of ``n``, that it met.  ``at``: R_sys at
    R_M = .9, beside ``at_independent``, what independence has there; ``beta``: the shots' share of
    a guest's failures there.
    """

    kind: str
    cause: str
    frequency: float
    rm: tuple[float, ...]
    rsys: tuple[tuple[float, float, float], ...]
    at: tuple[float, float, float]
    at_independent: float
    beta: tuple[float, float, float]
    m: int
    n: int


class LatencyFinding(_Finding, frozen=True, kw_only=True):
    """Latencies of answered requests of one group of missions, seconds."""

    label: str
    requests: int
    p50: float
    p95: float
    p99: float
    worst: float
    tail: tuple[tuple[float, float], ...]  # (seconds, share of requests that took longer)
    drawn: bool = True  # in the figure too


class SpeedFinding(_Finding, frozen=True, kw_only=True):
    """Missions an hour of all workers together, and where a mission's seconds went (means)."""

    label: str
    missions: int
    an_hour: float
    reset: float
    inject: float
    workload: float
    settle: float
    target: float | None = None


class EffectFinding(_Finding, frozen=True, kw_only=True):
    """Whether anything but the plan mattered: order, worker.  ``p``: the least, corrected for how
    many were looked at; None where nothing could be tested.
    """

    what: str
    words: str
    p: float | None


class Findings(_Finding, frozen=True, kw_only=True):
    """All of it."""

    head: Head
    verdicts: tuple[VerdictFinding, ...]
    strata: tuple[StratumFinding, ...] = ()
    kinds: tuple[FaultKindFinding, ...] = ()
    silence: Silence
    crossing: dict[str, str] = {}  # by kind of dose: where measured R_sys = R_M, in words
    curves: tuple[CurveFinding, ...] = ()
    points: tuple[Point, ...] = ()
    reach: tuple[PowerFinding, ...] = ()
    widths: tuple[Width, ...] = ()
    nodes: tuple[NodeFinding, ...] = ()
    doses: tuple[DoseFinding, ...] = ()
    shots: tuple[CommonCauseFinding, ...] = ()
    breaks: tuple[BreakEvenFinding, ...] = ()
    latencies: tuple[LatencyFinding, ...] = ()
    speeds: tuple[SpeedFinding, ...] = ()
    idle_timeouts: Share | None = None  # missions of k = 0 that timed out
    effects: tuple[EffectFinding, ...] = ()
    notes: tuple[str, ...] = ()  # what the reader must know: voids above 1 %, partial prefix
