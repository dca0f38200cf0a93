"""The findings of a campaign as data, and their file, ``findings.json``.

Probabilities are in [0, 1], times in seconds; intervals are at the campaign's confidence.  Where an
estimator's own struct says it all (``PointComparison``, ``FailedGuests``, ``Interval``), it is the
finding.  Reading is strict: an unknown field belongs to another version and is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from faultinject.estimate.doses import Fit, JointTest
from faultinject.estimate.equivalence import PointComparison
from faultinject.estimate.hypothesis_tests import Correlation, FailedGuests
from faultinject.estimate.intervals import Interval
from faultinject.estimate.power import DosePower, PooledPower
from faultinject.results import accelerator
from faultinject.results.outcome import Design, Outcome, Question
from guests.errors import CodedError

__all__ = [
    "FILE", "CampaignSummary", "CommonCauseFinding", "DesignFinding", "DesignPoint", "DoseFinding",
    "Findings", "FindingsFileError", "PooledFinding", "Proportion", "StratumFinding", "Tone",
    "VerdictFinding", "WrongReplies", "WrongReply", "WrongReplyCounts", "finite_only",
    "read_findings",
    "storable_findings",
]  # fmt: skip

FILE = "findings.json"
T = TypeVar("T")

Tone = Literal["good", "bad", "open", "expected", "alarm"]
"""``good``: as the paper assumes.  ``bad``: not so.  ``open``: undecided.  ``expected``: wrong
replies that no vote can mask.  ``alarm``: a wrong reply that the vote should have masked."""


class _Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Proportion(_Finding, frozen=True, kw_only=True):
    """``count`` of ``of`` trials with its Clopper-Pearson interval."""

    count: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """The proportion; None without trials."""
        return self.count / self.of if self.of else None

    def complement(self) -> Proportion:
        """The trials in which it did not occur."""
        return Proportion(
            count=self.of - self.count, of=self.of, low=1 - self.high, high=1 - self.low
        )


class CampaignSummary(_Finding, frozen=True, kw_only=True):
    """Which campaign it is.  ``done`` of ``planned`` missions have a row.  ``used`` are in the
    estimates: of a partial campaign, the longest complete prefix of the plan's random order.
    ``excluded`` of these were no trial.  ``lying``: of the weights of the guests' faults, the share
    that make a guest return wrong replies.  ``flips``: whether bits of running guests were flipped.
    """

    title: str
    question: Question
    seed: int
    planned: int
    done: int
    used: int
    excluded: int
    trials: int
    confidence: float  # 0.95
    vote: str  # of the node: "2/3"
    accel: str
    lying: float = 0.0
    flips: bool = False

    @property
    def policy(self) -> tuple[int, int]:
        """m and n: m of n guests must agree."""
        m, n = map(int, self.vote.split("/"))
        return m, n

    @property
    def limits(self) -> str:
        """What the accelerator means for the validity of the results; "" if nothing."""
        return accelerator.limits(self.accel, flips=self.flips)

    @property
    def partial(self) -> bool:
        """Whether missions of the plan are missing."""
        return self.done < self.planned


class VerdictFinding(_Finding, frozen=True, kw_only=True):
    """The answer to one question, in one sentence, and the evidence for it.

    ``about``: the question.  ``tests``: whether the campaign tests the voter or the paper's model.
    """

    about: Literal["voter", "points", "designs", "wrong replies", "doses", "common causes"]
    tone: Tone
    answer: str
    detail: str
    tests: Literal["voter", "model"]


class StratumFinding(_Finding, frozen=True, kw_only=True):
    """One stratum.  ``paper``: the proportion of failed missions that the paper assumes (None: it
    assumes nothing, or this is a part of a stratum).  ``silent``: missions with a wrong reply that
    a client believes; its upper limit includes those that are unclear.  ``met``: failed missions,
    of those in which every fault was met before the end (or that cannot be known).  ``slow``:
    missions in which some answered request took longer than a second.
    """

    name: str
    label: str  # "f_1", "g_0": the symbol of its failing (f) or succeeding (g) proportion
    design: Design
    k: int
    voter_hit: bool
    repair: bool
    alike: bool | None  # of a part of a stratum: whether the lying guests return the same bytes
    excluded: int
    outcomes: dict[Outcome, int]
    failed: Proportion
    silent: Proportion
    met: Proportion
    slow: Proportion
    paper: float | None
    function_k: int = 0  # further guests, whose function f is hit
    host_function_hit: bool = False
    vote: str = ""  # where it is not the node's


class WrongReply(_Finding, frozen=True, kw_only=True):
    """A mission in which a wrong reply was released; ``event``: the reply that made its outcome.

    ``arranged``: the injector made a majority err alike, by equal lies or a poison request.
    ``covered``: the vote should have masked it.
    """

    mission: int
    stratum: str
    hits: str
    event: str
    outcome: Outcome
    arranged: bool = False
    covered: bool = False


class WrongReplyCounts(_Finding, frozen=True, kw_only=True):
    """Missions with a wrong reply, by what a client would believe (see ``Outcome``).

    ``statuses``: by the status of the reply that made the outcome; "0": none that can be read.
    """

    missions: int = 0  # all, with and without a wrong reply
    silent: int = 0
    unclear: int = 0
    declared: int = 0
    statuses: dict[str, int] = {}


class WrongReplies(_Finding, frozen=True, kw_only=True):
    """Missions of the voted node in which a wrong reply was released, of all that were run.

    ``covered``: those that the vote should have masked, of all such missions: no more guests were
    hit than the vote tolerates (1 of n tolerates no wrong guest), and F was not hit.  There must be
    none.  ``beyond``: those that no vote can mask, of all other missions.  ``arranged``: the
    injector made enough guests for a majority err alike.  ``uncompared``: the vote was 1 of n,
    which compares nothing.  ``common_cause``: one event hit all guests, and equal wrong replies
    were not arranged.
    ``voted``, ``plain``: what clients would believe, with the voter and without.  ``listed``: the
    covered first, the arranged last.
    """

    share: Proportion
    covered: Proportion
    beyond: Proportion
    arranged: int = 0
    uncompared: int = 0
    common_cause: int = 0
    voted: WrongReplyCounts = WrongReplyCounts()
    plain: WrongReplyCounts = WrongReplyCounts()
    listed: tuple[WrongReply, ...] = ()


class DesignPoint(_Finding, frozen=True, kw_only=True):
    """A design at an operating point: R_sys ``recombined`` from strata, and as the paper has it.

    ``silent``: probability of a wrong reply that a client believes (or, in old rows, may believe),
    the voter not failing.  ``breakeven``:
    the R_V above which the design is better than the plain node; None where not finite.
    """

    rm: float
    rv: float
    rh: float
    plain: float
    recombined: Interval
    silent: Interval
    paper: float
    breakeven: Interval | None = None


class DesignFinding(_Finding, frozen=True, kw_only=True):
    """A design, m of n.  By number of guests hit: the proportions of missions that failed and with
    a wrong reply that a client believes (``silent``, as in a stratum), and the failures that the
    paper assumes (0 up to n - m, then 1).
    ``voter``: missions that failed with the voter hit too.
    """

    vote: str
    m: int
    n: int
    repair: bool
    failed: tuple[Proportion, ...]
    silent: tuple[Proportion, ...]
    paper: tuple[float, ...]
    points: tuple[DesignPoint, ...]
    voter: tuple[Proportion | None, ...] = ()


class DoseFinding(_Finding, frozen=True, kw_only=True):
    """R_M and R_sys measured under the same faults: one dose of soft errors, or (``shared``) one
    common cause.  ``model``: R_sys predicted by the paper over the interval of R_M.
    """

    kind: str
    flips: int
    shared: bool = False
    plain: Proportion  # missions of the plain node that succeeded: R_M
    voted: Proportion  # missions of the voted node that succeeded: R_sys
    model: Interval
    verdict: Fit
    outcomes: dict[Outcome, int] = {}  # of the voted node
    plain_outcomes: dict[Outcome, int] = {}
    failed_guests: FailedGuests | None = None  # of the voted node's missions; None: not counted
    power: DosePower | None = None  # of the comparison with the model; None: not compared
    test_power: float | None = None  # of the G-test, to find an intraclass correlation of .1

    @property
    def label(self) -> str:
        """A short name for figures."""
        return self.kind if self.shared else f"{self.flips:,}"


class PooledFinding(_Finding, frozen=True, kw_only=True):
    """All ``doses`` of one kind of soft errors together: do the guests' failures depend?

    ``joint``: test that R_sys follows from R_M.  ``departure``: mean of R_sys minus the model.
    ``correlation``: of the guests' failures, from the doses ``counted`` (flips) at which the number
    of failed guests can be tested; None where there is none.  ``power``: what these would detect.
    """

    kind: str
    doses: int
    confidence: float
    joint: JointTest
    departure: Interval
    correlation: Correlation | None
    counted: tuple[int, ...]
    power: PooledPower


class CommonCauseFinding(_Finding, frozen=True, kw_only=True):
    """A common cause.  ``failed[j]``: trials in which exactly j guests failed.  ``independent[j]``:
    that proportion for independent guests failing equally often.  ``test``: of independence, with
    the classes of doses: those with too few guests left for a vote are one.  ``together``: it is
    significant (Bonferroni over the causes that can be tested), and that last class has more trials
    than expected.  ``fatal``: P(too few guests left for a vote | event).  ``voted``
    and ``plain``: missions that failed, of the voted node and of one guest without a voter.
    ``wrong``: of the voted node.
    """

    kind: str
    failed: tuple[Proportion, ...]
    independent: tuple[float, ...]
    test: FailedGuests
    together: bool = False
    fatal: Interval
    fatal_independent: float
    voted: Proportion
    plain: Proportion | None
    wrong: WrongReplyCounts = WrongReplyCounts()


class Findings(_Finding, frozen=True, kw_only=True):
    """The findings of one campaign: the content of ``findings.json``."""

    campaign: CampaignSummary
    verdicts: tuple[VerdictFinding, ...]
    strata: tuple[StratumFinding, ...] = ()
    points: tuple[PointComparison, ...] = ()
    designs: tuple[DesignFinding, ...] = ()
    doses: tuple[DoseFinding, ...] = ()
    pooled: tuple[PooledFinding, ...] = ()
    common_causes: tuple[CommonCauseFinding, ...] = ()
    wrong_replies: WrongReplies
    idle_timeouts: Proportion | None = None  # missions with nothing hit that timed out


class FindingsFileError(CodedError):
    """A file of results cannot be used; the message says why and how to make it again."""

    error_code = "TV0539"


def storable_findings(findings: Findings) -> Findings:
    """Return what ``findings.json`` stores: findings without any non-finite number."""
    known = {name: getattr(findings, name) for name in Findings.__struct_fields__}
    for name in ("points", "doses", "common_causes"):
        known[name] = finite_only(known[name])
    known["designs"] = tuple(
        msgspec.structs.replace(each, points=finite_only(each.points)) for each in findings.designs
    )
    return Findings(**known)


def finite_only(found: Iterable[T]) -> tuple[T, ...]:
    """Return those whose numbers are all finite; in a campaign under way some are not yet."""
    return tuple(each for each in found if _finite(msgspec.to_builtins(each)))


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def read_findings(path: Path) -> Findings:
    """Read a report's ``findings.json``.  Raises FindingsFileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Findings)
    except (OSError, msgspec.MsgspecError) as error:
        raise FindingsFileError(
            f"{path}: {error}; create it again: trivisor campaign report {path.parent}"
        ) from error
