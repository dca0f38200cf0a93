"""The record of a soak: its plan, each fault with its proof, the promises, and the host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from deploy.host.files import write_json
from faultinject.host_facts import Host
from faultinject.soak.guest_memory import MemoryMatches
from faultinject.soak.plan import Episode, SoakFaultKind
from faultinject.soak.round_plan import RoundPlan

__all__ = [
    "InjectedFault", "KindSummary", "LoadSummary", "Promise", "RoundRecord", "RoundSummary",
    "SoakHost", "SoakRecord", "SoakSpec", "UnexplainedFailure", "append_round", "save", "summarize",
]  # fmt: skip


class SoakSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run."""

    faults: int = 200
    seed: int = 1
    clients: int = 8
    rate: float = 200.0  # requests per second of all clients
    state: int = 1 << 20  # bytes of filler in the state, so that a transfer takes time
    durability: Literal["fsync", "os"] = "fsync"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    rejuvenate: bool = False  # guests are replaced by fresh ones, too
    together: str = ""  # TOGETHER: ``faults`` rounds in which these two kinds coincide


class InjectedFault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault as it was applied.  Times in seconds; ``at`` since the load began.

    ``seen``: the observation of the node right before.  ``overlapped``: according to it a repair or
    a transfer was in progress.  ``longest_pause`` is the longest wait of a client for a reply and
    ``rate`` the replies per second, both until the next fault or recovery.  ``recovered_after``:
    until the node had recovered (None where another fault came before).
    """

    number: int
    kind: SoakFaultKind
    target: str
    seconds: float
    trigger: str = msgspec.field(name="moment")
    at: float
    proof: str
    overlapped: bool
    seen: str
    longest_pause: float
    rate: float
    recovered_after: float | None


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round: a corrupted state and a killed voter at almost the same time.  In seconds.

    ``offset``: from the corruption to the SIGKILL, as measured.  ``noticed_after``: from the
    corruption to the voter's log line about it.  ``timeline``: the voter's log of the round, with
    times since the corruption.  ``wrong``: wrong replies that clients got.  ``read_back``: whether
    every corrupted key had its right value, read through the vote.  ``markers``: markers that
    passed afterwards with all guests voting.  ``checkpoints``: checkpoint files that were compared
    with the model.  ``interrupted``: whether the voter died after a marker and before its
    checkpoint was fetched.  ``memory``: copies of marked values by guest, at the end.
    """

    number: int
    guest: str
    key: str
    trigger: str = msgspec.field(name="moment")
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
    recovered_after: float
    longest_pause: float


class RoundSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of all rounds.  In seconds."""

    rounds: int
    proven: int  # corruptions that were read back from a guest's memory
    noticed: dict[str, int]  # by detector
    unnoticed_median: float | None
    unnoticed_longest: float | None
    wrong: int  # released replies
    restored: int  # guests and checkpoints with a corrupted state, over all rounds
    checkpoints: int  # compared with the model, byte for byte
    interrupted: int  # rounds in which the voter died between a marker and its checkpoint
    kills: dict[str, int]  # before, within 50 ms of, and after the moment of notice


class UnexplainedFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that left the vote without a fault; ``at`` in seconds since the load began."""

    guest: str
    at: float
    reason: str


class KindSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All faults of one kind.  In seconds."""

    kind: str
    count: int
    overlapped: int
    pause_median: float
    pause_longest: float
    recovery_median: float | None
    recovery_longest: float | None


class LoadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The clients' requests and their outcomes.  Latencies in seconds."""

    requests: int
    replies: int
    kinds: dict[str, int]
    correct: int  # byte for byte as the oracle expects
    wrong: int
    misplaced: int
    increments: int  # acknowledged
    replayed: int  # replies from the deduplication table
    errors: dict[str, int]
    messages: list[str]  # of the first few errors
    unknown: int  # writes whose outcome is unknown
    unknown_found: int  # writes without a reply that later replies proved executed
    p50: float
    p99: float
    longest: float
    rate: float


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """A promise, whether it held, and the evidence."""

    promise: str
    held: bool
    seen: str


class SoakHost(Host, frozen=True, kw_only=True):
    """The host, and the image of the guests."""

    image: str


class SoakRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One whole run."""

    spec: SoakSpec
    seconds: float
    host: SoakHost
    promises: list[Promise]
    load: LoadSummary
    kinds: list[KindSummary]
    faults: list[InjectedFault]
    unexplained: list[UnexplainedFailure]
    """Replicas that left the vote although no fault had hit them."""
    waits: list[str]
    """Waits before a fault, beyond the plan, because of the node's limits."""
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
        """Number of faults that were injected while a repair or a transfer was in progress."""
        return sum(fault.overlapped for fault in self.faults)


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
        times = [fault.recovered_after for fault in some if fault.recovered_after is not None]
        result.append(
            KindSummary(
                kind=str(kind),
                count=len(some),
                overlapped=sum(fault.overlapped for fault in some),
                pause_median=median(fault.longest_pause for fault in some),
                pause_longest=max(fault.longest_pause for fault in some),
                recovery_median=median(times) if times else None,
                recovery_longest=max(times) if times else None,
            )
        )
    return result


def save(record: SoakRecord, path: Path) -> None:
    """Store a record as JSON, atomically.  Raises OSError."""
    write_json(path, msgspec.to_builtins(record) | {"held": record.held})


def append_round(one: RoundRecord, path: Path) -> None:
    """Append a round to a file of JSON lines, so that an interrupted run keeps it.

    Raises OSError.
    """
    with path.open("ab") as file:
        file.write(msgspec.json.encode(one) + b"\n")
