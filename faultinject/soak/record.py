"""What is kept of a soak: its plan, each fault with its proof, the promises, what it ran on."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from deploy.host.files import write_json
from faultinject.soak.guest_memory import MemoryMatches
from faultinject.soak.plan import Episode, SoakFaultKind
from faultinject.soak.together import RoundPlan

__all__ = [
    "UnexplainedFailure",
    "InjectedFault",
    "SoakHostFacts",
    "KindSummary",
    "LoadSummary",
    "Promise",
    "SoakRecord",
    "RoundRecord",
    "RoundSummary",
    "SoakSpec",
    "append_round",
    "host_facts",
    "save",
    "summarize",
]


class SoakSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for."""

    faults: int = 200
    seed: int = 1
    clients: int = 8
    rate: float = 200.0  # requests a second, of all clients together
    state: int = 1 << 20  # bytes of filler in the state, so that a transfer takes time
    durability: Literal["fsync", "os"] = "fsync"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    together: str = ""  # TOGETHER: ``faults`` rounds in which these two kinds coincide


class InjectedFault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault as it was.  Seconds; ``at`` since the load began.

    ``overlapped``: a repair or a transfer was under way, by ``seen``, what was seen of the node
    right before.  ``longest_pause``: the longest wait of a client for a reply, ``rate``: replies a
    second, both from this fault to the next or until all vote again; ``whole_after``: to all three
    voting and nothing under way (None where the next fault came before).
    """

    number: int
    kind: SoakFaultKind
    target: str
    seconds: float
    moment: str
    at: float
    proof: str
    overlapped: bool
    seen: str
    longest_pause: float
    rate: float
    whole_after: float | None


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round: a corrupted state and a killed voter at almost the same time.  Seconds.

    ``offset``: from the corruption to the SIGKILL, as it was.  ``noticed_after``: from the
    corruption to the voter's log line about it.  ``timeline``: the voter's log of the round, its
    times counted from the corruption.  ``wrong``: wrong replies that clients got.  ``read_back``:
    whether every corrupted key had its right value, read through the vote.  ``markers``: markers
    that passed afterwards with all guests voting.  ``checkpoints``: checkpoint files that were
    compared with the oracle.  ``interrupted``: whether the voter died after a marker and before
    its checkpoint was fetched.  ``memory``: by guest, what its memory held at the end.
    """

    number: int
    guest: str
    key: str
    aim: str
    lead: float
    planned_offset: float
    offset: float
    corruption: str
    kill: str
    interrupted: bool
    noticed_by: str
    noticed_after: float | None
    noticed_as: str
    timeline: list[str]
    wrong: int
    read_back: bool
    markers: int
    checkpoints: int
    memory: dict[str, MemoryMatches]
    whole_after: float
    longest_pause: float


class RoundSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of all rounds.  Seconds."""

    rounds: int
    proven: int  # corruptions that were read back from a guest's memory
    noticed: dict[str, int]  # by what
    unnoticed_median: float | None
    unnoticed_longest: float | None
    wrong: int  # released replies
    restored: int  # guests and checkpoints with a corrupted state, over all rounds
    checkpoints: int  # compared with the oracle, byte for byte
    interrupted: int  # rounds in which the voter died between a marker and its checkpoint
    kills: dict[str, int]  # before, within 50 ms of, and after the moment of notice


class UnexplainedFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that left the vote; ``at`` in seconds since the load began."""

    guest: str
    at: float
    reason: str


class KindSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All faults of one kind.  Seconds."""

    kind: str
    count: int
    overlapped: int
    pause_median: float
    pause_longest: float
    whole_median: float | None
    whole_longest: float | None


class LoadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients did and got.  Latencies in seconds."""

    requests: int
    replies: int
    kinds: dict[str, int]
    correct: int  # byte for byte what the oracle says
    wrong: int
    misplaced: int
    increments: int  # acknowledged
    told_again: int  # replies from the retry table
    errors: dict[str, int]
    told: list[str]
    unknown: int  # writes of which it is not known whether they were executed
    unknown_found: int  # of those that had no reply: proved executed by later replies
    p50: float
    p99: float
    longest: float
    rate: float


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """A promise, whether it held, and what was seen."""

    promise: str
    held: bool
    seen: str


class SoakHostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What absolute figures depend on."""

    cpu: str
    cores: int
    kernel: str
    python: str
    accel: str
    image: str
    load_before: float  # load average over one minute when the run began

    def __str__(self) -> str:
        return (
            f"{self.cores} x {self.cpu}, Linux {self.kernel}, Python {self.python}, "
            f"{self.accel}, load {self.load_before:.1f} before"
        )


class SoakRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run, whole."""

    spec: SoakSpec
    seconds: float
    host: SoakHostFacts
    promises: list[Promise]
    load: LoadSummary
    kinds: list[KindSummary]
    faults: list[InjectedFault]
    falls: list[UnexplainedFailure]
    """Replicas that left the vote although no fault had hit them."""
    waits: list[str]
    """What had to be waited for before a fault, beyond the plan: limits that the node states."""
    plan: tuple[Episode, ...]
    rounds: list[RoundRecord] = []
    summary: RoundSummary | None = None
    """Of the rounds, if there are any."""
    round_plan: tuple[RoundPlan, ...] = ()

    @property
    def held(self) -> bool:
        """Whether every promise held."""
        return all(promise.held for promise in self.promises)

    @property
    def overlapped(self) -> int:
        """Faults that came while a repair or a transfer was under way."""
        return sum(fault.overlapped for fault in self.faults)


def host_facts(accel: str, image: str, load_before: float) -> SoakHostFacts:
    """Return the facts of this host."""
    cpu = platform.processor() or "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return SoakHostFacts(
        cpu=cpu,
        cores=os.cpu_count() or 1,
        kernel=platform.release(),
        python=platform.python_version(),
        accel=accel,
        image=image,
        load_before=load_before,
    )


def summarize(faults: Iterable[InjectedFault]) -> list[KindSummary]:
    """Return a summary for each kind that occurred, in the order of the kinds."""
    by_kind: defaultdict[SoakFaultKind, list[InjectedFault]] = defaultdict(list)
    for fault in faults:
        by_kind[fault.kind].append(fault)
    result = []
    for kind in SoakFaultKind:
        if kind not in by_kind:
            continue
        some = by_kind[kind]
        whole = [fault.whole_after for fault in some if fault.whole_after is not None]
        result.append(
            KindSummary(
                kind=str(kind),
                count=len(some),
                overlapped=sum(fault.overlapped for fault in some),
                pause_median=median(fault.longest_pause for fault in some),
                pause_longest=max(fault.longest_pause for fault in some),
                whole_median=median(whole) if whole else None,
                whole_longest=max(whole) if whole else None,
            )
        )
    return result


def save(record: SoakRecord, path: Path) -> None:
    """Store a record as JSON: written aside, synced, renamed.  Raises OSError."""
    write_json(path, msgspec.to_builtins(record) | {"held": record.held})


def append_round(one: RoundRecord, path: Path) -> None:
    """Append a round to a file of JSON lines, so that an interrupted run leaves it.

    Raises OSError.
    """
    with path.open("ab") as file:
        file.write(msgspec.json.encode(one) + b"\n")
