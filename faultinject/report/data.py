"""Everything that the report page and its figures show: the stored findings and more."""

from __future__ import annotations

import msgspec

from faultinject.campaign.planning.detectable import Detectable
from faultinject.estimate.crossing import Crossing
from faultinject.estimate.intervals import Interval
from faultinject.estimate.precision import Precision
from faultinject.estimate.sampling import SamplingComparison
from faultinject.results.findings import Findings, Proportion
from faultinject.results.outcome import NodeFacts, Outcome

__all__ = [
    "CauseAtFrequency", "Curve", "Effect", "FaultKindResult", "Latencies", "MissionTimes",
    "ReportData", "RunDetails",
]  # fmt: skip


class _Data(msgspec.Struct, frozen=True, kw_only=True):
    pass


class RunDetails(_Data, frozen=True, kw_only=True):
    """How and on what the campaign was run.  Times in seconds since the epoch; 0: not known."""

    service: str
    requests: int  # per mission
    workers: int
    began: float
    ended: float
    spec: str  # its text
    spec_hash: str
    facts: tuple[NodeFacts, ...]  # one per host
    versions: tuple[tuple[str, str], ...]  # of the software that ran it and drew the page
    directory: str  # its name


class Curve(_Data, frozen=True, kw_only=True):
    """Over a grid of R_M: the break-even R_V and the relative unreliability U / U_paper.

    The bands hold for all R_M simultaneously.  A break-even above 1 means that no R_V is enough.
    ``..._given``: the same given f_0 = 0; empty where a failure with nothing hit was observed.
    """

    repair: bool
    rm: tuple[float, ...]
    paper: tuple[float, ...]  # the bound: 1 / (3 R_M - 2 R_M^2) for 2-of-3
    breakeven: tuple[Interval, ...]
    relative: tuple[Interval, ...]
    breakeven_given: tuple[Interval, ...] = ()
    relative_given: tuple[Interval, ...] = ()
    relative_margin: float
    breakeven_margin: float
    margin_from: float  # the range of R_M to which the margins apply
    margin_to: float


class FaultKindResult(_Data, frozen=True, kw_only=True):
    """Missions of the strata by kind of fault.  ``alone``: it was the only hit.  Otherwise the
    mission counts under each kind of fault in it.
    """

    kind: str
    hit: str  # "1 guest", "voter and guests"
    layer: str
    alone: bool
    repair: bool
    outcomes: dict[Outcome, int]
    failed: Proportion
    unused: int  # missions whose fault was never activated: trials, with a correct outcome
    not_applied: int  # missions in which the fault was not confirmed to act
    masked: int  # missions in which a dissenting reply was outvoted


class CauseAtFrequency(_Data, frozen=True, kw_only=True):
    """The voted node if a common cause occurs in the proportion ``frequency`` of missions (an
    assumption), in addition to independent failures: ``rsys`` over ``rm``, a guest's reliability
    with the cause included.

    ``cause``: its name without the vote, ``m`` of ``n``.  ``at``: R_sys at R_M = .9;
    ``at_independent``: R_sys there for independent guests; ``beta``: the share of a guest's
    failures there that the cause has.
    """

    kind: str
    cause: str
    frequency: float
    rm: tuple[float, ...]
    rsys: tuple[Interval, ...]
    at: Interval
    at_independent: float
    beta: Interval
    m: int
    n: int


class Latencies(_Data, frozen=True, kw_only=True):
    """Latencies of answered requests of one group of missions, seconds."""

    label: str
    requests: int
    p50: float
    p95: float
    p99: float
    worst: float
    tail: tuple[tuple[float, float], ...]  # (seconds, proportion of requests that took longer)
    drawn: bool = True  # in the figure too


class MissionTimes(_Data, frozen=True, kw_only=True):
    """Missions per hour of all workers together, and mean seconds per phase of a mission."""

    label: str
    missions: int
    per_hour: float
    reset: float
    inject: float
    workload: float
    settle: float
    target: float | None = None


class Effect(_Data, frozen=True, kw_only=True):
    """A test for an influence that should not exist: of the order of missions, or the worker.

    ``p_value``: the smallest over the strata, Bonferroni-corrected; None where untestable.
    """

    factor: str
    conclusion: str
    p_value: float | None


class ReportData(Findings, frozen=True, kw_only=True):
    """The stored findings, and what only the page shows."""

    run: RunDetails
    kinds: tuple[FaultKindResult, ...] = ()
    crossings: dict[str, Crossing] = msgspec.field(default_factory=dict)  # by kind of dose
    curves: tuple[Curve, ...] = ()
    precision: tuple[Precision, ...] = ()
    sampling: tuple[SamplingComparison, ...] = ()
    detectable: tuple[Detectable, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()  # by stratum: what shows at least once
    at_frequency: tuple[CauseAtFrequency, ...] = ()
    latencies: tuple[Latencies, ...] = ()
    times: tuple[MissionTimes, ...] = ()
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()  # excluded missions above 1 %, partial prefix and the like
