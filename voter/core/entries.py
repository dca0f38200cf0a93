"""The journal's entries, in the order they happened, and the base that they follow.

They are written as MessagePack arrays (by msgspec).  So the order of the fields is the format: if a
field is added, removed, moved or changed in its meaning, FORMAT must be raised.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "FORMAT", "OLDEST_FORMAT", "Base", "ClockStep", "Entry", "Kept", "MembershipChange", "Once",
    "Opened", "Record", "RoleChange", "ScopeBase",
    "SequenceReservation", "Settled", "Void",
]  # fmt: skip

FORMAT, OLDEST_FORMAT = 4, 2
"""Version of the journal: of all structs here, and of its files (``voter.journal.format``); and the
oldest version that this voter reads."""


class Once(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The identity of a request that must be executed once, however often it is sent.

    In a native session ``scope`` is ``b"s"`` and the session's 16 bytes, ``key`` the request's
    number as 8 bytes, big endian, and ``done`` the number up to which the client has all replies.
    For HTTP ``scope`` is ``b"k"`` and the caller, ``key`` the Idempotency-Key.  ``fingerprint`` is
    a hash of method, target and body: a key with another fingerprint is refused.
    """

    scope: bytes
    key: bytes
    fingerprint: bytes
    done: int = 0


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A request with its sequence number.  Only writes are journaled."""

    seq: int
    request: bytes
    caller: bytes
    time_ns: int
    prev: bytes  # 8-byte hash of the writes before it
    history: bytes  # for a write: hash after it; always: the seed of the request's random source
    read_only: bool
    void: bool = False  # it kills or hangs replicas: all replicas skip it
    once: Once | None = None


class Settled(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """The vote on a write was won; ``tag`` is the tag of its reply (``order.tag``).

    The reply itself is kept if the request has a key or session number, for retries.
    """

    seq: int
    tag: bytes
    reply: bytes | None = None


class Void(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """A write kills or hangs replicas: all replicas skip it."""

    seq: int


class Opened(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """A native client opened a session."""

    session: bytes
    caller: bytes
    time_ns: int


class MembershipChange(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """A replica changed its state, at sequence number ``seq`` (0: at none)."""

    seq: int
    replica: str
    before: str
    after: str
    reason: str
    suspect: bool


class SequenceReservation(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """Sequence numbers up to ``upto`` may have been used: a restarted voter continues after it.

    Reads and markers use numbers too, and are not journaled.
    """

    upto: int


class ClockStep(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """Agreed time stepped by ``step_ns``, to ``time_ns``.  No request became older by that."""

    time_ns: int
    step_ns: int


class RoleChange(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """The replicas got other roles, at sequence number ``seq``.

    ``version`` counts the changes of this journal from 1.  ``roles`` holds the role of every
    replica by name, also of those whose role did not change.
    """

    seq: int
    version: int
    roles: dict[str, str]
    reason: str


Entry = (
    Record
    | Settled
    | Void
    | Opened
    | MembershipChange
    | SequenceReservation
    | ClockStep
    | RoleChange
)


class Kept(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request in the deduplication table, and its reply (None: not settled, or not kept)."""

    key: bytes
    fingerprint: bytes
    seq: int
    time_ns: int
    reply: bytes | None


class ScopeBase(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A scope of the deduplication table: a native session, or the keys of an HTTP caller."""

    scope: bytes
    caller: bytes
    used_ns: int
    done: int
    kept: list[Kept]


class Base(msgspec.Struct, frozen=True, array_like=True):
    """What a checkpoint holds besides the state; at first all empty (``digest`` is None)."""

    seq: int = 0
    history: bytes = bytes(8)
    digest: bytes | None = None
    time_ns: int = 0
    reserved: int = 0
    suspects: list[str] = []
    sessions: list[ScopeBase] = []
    roles_version: int = 0  # 0: the roles were never changed
    roles: dict[str, str] = {}
