"""The plan of one mission, and the observations of its run.  Pure data.

A mission is one trial: it begins from a clean start.  The requests within it are correlated, so
they are never counted as trials.

``MissionRow`` holds observations, and one judgement that is made when the mission ends:
``GuestResult.failed``.  Which stratum a mission counts for, and its outcome, follow
from them by a rule (``faultinject.campaign.assessment``), applied whenever rows are read.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from faultinject.faults import Injection
from faultinject.results.outcome import Design

__all__ = [
    "HOST_TARGETS",
    "GuestResult",
    "InjectionResult",
    "MissionPlan",
    "MissionRow",
    "RequestResult",
    "NodeSpec",
    "Timings",
]

HOST_TARGETS = frozenset({"voter", "function"})
"""Targets on the host, under the guests: the voter, and F (the function on the host).  The name
``function`` for F is part of kept plans."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class MissionPlan(_Data, frozen=True, kw_only=True):
    """One mission as planned: a pure function of spec, seed and ``index``.

    ``order``: its place, from 0, in the random order in which missions run.  ``stratum``: the
    planned stratum.  ``k``: guests hit.  ``function_k``: further guests, whose function f is hit.
    ``host_function_hit``: F, the function on the host, is hit.  ``seed``: seed of the workload.
    """

    index: int
    order: int
    stratum: str
    design: Design
    repair: bool
    k: int
    voter_hit: bool
    seed: int
    length: int
    injections: tuple[Injection, ...] = msgspec.field(default=(), name="hits")
    function_k: int = 0
    host_function_hit: bool = False
    vote: str = ""  # policy over the first guests; "": the node's, over all
    alike: bool | None = None  # whether the lying guests return the same wrong bytes; None: under 2


class InjectionResult(_Data, frozen=True, kw_only=True):
    """The result of one injection.

    ``applied``: a read-back proved that the fault acts.  ``proof``: what was read back, or why the
    fault was not applied.  ``used``: whether anything met the fault before the mission ended; None
    if that cannot be known.
    """

    target: str
    kind: str
    applied: bool
    used: bool | None
    proof: str
    seconds: float  # to apply it


class GuestResult(_Data, frozen=True, kw_only=True):
    """The state of a guest at the end of a mission, as the voter reports it.

    ``failed``: the guest dissented, did not vote at the end, or its service was another incarnation
    than at the start.  False if the voter was lost (nobody knows), and in the plain design (nobody
    watches the guest).  It is judged when the mission ends, from the voter's view of
    each incarnation and the catalogue's ``fails``.
    """

    name: str
    state: str
    reason: str
    dissents: int = 0
    failed: bool = False


class Timings(_Data, frozen=True, kw_only=True):
    """Seconds that a mission took.

    ``reset``: to a clean start (guests reverted, a new voter, all guests voting).  ``inject``: to
    apply the faults.  ``workload``: for the requests, without ``inject``.  ``settle``: to observe
    the results and end the voter.
    """

    reset: float
    inject: float
    workload: float
    settle: float

    @property
    def total(self) -> float:
        """Return the sum of all parts."""
        return self.reset + self.inject + self.workload + self.settle


class RequestResult(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one request.

    ``code``: "right" or "wrong" (the oracle's answer on the reply), or the client's failure code.
    ``masked``: the voter released the reply although a replica dissented.  ``problem``: a message
    for people, kept for the first request of each failure code in a mission, and for every wrong
    reply.  ``reply``: the first bytes of a wrong reply, as Latin-1: 120 bytes of a mission's first
    20, 16 bytes (the status line) of the others.
    """

    code: str = "right"
    masked: bool = False
    problem: str = ""
    reply: str = ""


class MissionRow(_Data, frozen=True, kw_only=True):
    """The observations of one mission.

    ``lost``: why the mission could not be run ("": it was run).  ``voter_alive``: the voter
    answered on its control socket at the end (True in the plain design, which has no voter).
    ``latencies``: seconds, one a request in their order, -1 if the request was not answered.
    ``began``: seconds since the epoch.
    """

    index: int
    lost: str = ""
    requests: tuple[RequestResult, ...] = ()
    voter_alive: bool = True
    injections: tuple[InjectionResult, ...] = msgspec.field(default=(), name="hits")
    guests: tuple[GuestResult, ...] = ()
    latencies: tuple[float, ...] = ()
    timings: Timings | None = None
    began: float = 0.0
    worker: str = ""
    attempt: int = 1


class NodeSpec(_Data, frozen=True, kw_only=True):
    """The node that missions need."""

    service: str = "kv"  # kv, static, poisoned, or a Python file next to the campaign file
    function: Literal["none", "guest", "host"] = "none"  # where requests are authenticated: C1 of
    # the paper's Figure 5 is "guest", C2 is "host"
    vote: str = "2/3"  # the policy
    guests: Annotated[int, msgspec.Meta(ge=1, le=64)] = 3  # as many as the policy counts
    memory: int = 128  # MiB of a guest
    accel: Literal["auto", "kvm", "tcg"] = "auto"  # accelerator of the guests
    deadline: Annotated[float, msgspec.Meta(le=3600)] = 6.0  # seconds for the result of a request
    hang: float = 4.0  # seconds without a sign of life after which a guest is lost
    ssh: bool = False  # a shell in the guests, which some faults need
    keys: int = 6  # keys of the workload
    size: int = 64  # bytes of a stored value
    mix: dict[str, float] = {}  # set by the workload; not to be given here
