"""One trial: what is planned for a mission, and the row that tells what became of it.  Pure data.

A trial is a mission from a clean start; requests within it are correlated and never trials.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from faultinject.faults import Injection
from faultinject.results.outcome import Design, Outcome, StationFacts

__all__ = [
    "Design",
    "GuestFate",
    "HitResult",
    "MissionPlan",
    "Outcome",
    "MissionRow",
    "StationFacts",
    "StationSpec",
    "Timings",
]


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class MissionPlan(_Data, frozen=True, kw_only=True):
    """One mission as planned: a pure function of spec, seed and ``index``.

    ``stratum``: the name of the stratum that it is a trial of.  ``k``: guests hit; ``function_k``:
    further guests, whose function f is hit.  ``host_function_hit``: F is.  ``seed``: of the
    workload.  ``order``: its place in the random order in which missions are run, from 0.
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
    hits: tuple[Injection, ...] = ()
    function_k: int = 0
    host_function_hit: bool = False
    vote: str = ""  # of the first so many guests; "": the station's, of all
    alike: bool | None = None  # whether the liars lie alike; None with fewer than two


class HitResult(_Data, frozen=True, kw_only=True):
    """What became of a hit.  ``applied``: it was read back that it acts.  ``used``: whether what it
    broke was met before the mission's end (None: cannot be known).  ``proof``: in words.
    """

    target: str
    kind: str
    applied: bool
    used: bool | None
    proof: str
    seconds: float  # to apply it


class GuestFate(_Data, frozen=True, kw_only=True):
    """How a guest stood at the mission's end, as the voter says (``state``, ``reason``), how often
    it dissented; for NV ``state`` is the mission's outcome.  ``failed``: it dissented, did not vote
    at the end, or its service had ended and was another incarnation (False if the voter was lost:
    nobody knows).
    """

    name: str
    state: str
    reason: str
    dissents: int = 0
    failed: bool = False


class Timings(_Data, frozen=True, kw_only=True):
    """Seconds that a mission took: ``reset`` to a clean start (guests put back, a new voter, all
    voting), ``inject``, ``workload`` (without ``inject``), ``settle`` (looking at what became of
    it, ending the voter).
    """

    reset: float
    inject: float
    workload: float
    settle: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.reset + self.inject + self.workload + self.settle


class MissionRow(_Data, frozen=True, kw_only=True):
    """A mission that was run.

    ``outcome`` None: no trial (``void`` says why: a fault that was not applied, the host could not
    make a clean start).  Latencies in seconds, of answered requests, one a request in their order
    (-1: not answered).  ``began``: seconds since the epoch.
    """

    index: int
    outcome: Outcome | None
    void: str = ""
    words: str = ""  # the first thing that went wrong, in words
    correct: int = 0  # requests answered rightly
    wrong: int = 0
    refused: int = 0
    unanswered: int = 0
    masked: int = 0  # requests released although a replica dissented
    hits: tuple[HitResult, ...] = ()
    guests: tuple[GuestFate, ...] = ()
    latencies: tuple[float, ...] = ()
    timings: Timings | None = None
    began: float = 0.0
    worker: str = ""
    attempt: int = 1


class StationSpec(_Data, frozen=True, kw_only=True):
    """What a station must be able to do.  ``vote``: as "2/3".  Memory in MiB of a guest.

    ``deadline``: seconds for a request's verdict; ``hang``: the voter's ``limits.hang``.  ``ssh``:
    faults inside the guest are wanted.  ``keys`` and ``size``: of the workload, keys used and bytes
    of a stored value; ``mix``: its kinds of requests with their weights, the usual ones if none are
    given.  ``function``: whether requests must be signed, and who sees to it: nobody,
    each guest (C1 of the paper's Figure 5), or once the host (C2).
    """

    service: str = "kv"
    function: Literal["none", "guest", "host"] = "none"
    vote: str = "2/3"
    guests: int = 3
    memory: int = 128
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    deadline: float = 6.0
    hang: float = 4.0
    ssh: bool = False
    keys: int = 6
    size: int = 64
    mix: dict[str, float] = {}
