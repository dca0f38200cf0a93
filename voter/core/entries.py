"""What the journal keeps: entries in the order they happened, and the base that they go on from.

They are written as they are (MessagePack arrays, by msgspec): a field that is added, taken away or
changed in its meaning is a new FORMAT.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "FORMAT", "Base", "Entry", "Kept", "MembershipChange", "Once", "Opened", "Record", "ScopeBase",
    "SequenceReservation", "Settled", "Void",
]  # fmt: skip

FORMAT = 2
"""Version of the journal: of everything in this module, and of its files (``journal.format``)."""


class Once(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What makes a request be executed once, however often it is sent.

    For a native session ``scope`` is ``b"s"`` and the session's 16 bytes, ``key`` the request's
    number in it as 8 bytes, big endian, and ``done`` the number up to which the client has all its
    replies.  For HTTP ``scope`` is ``b"k"`` and the caller, ``key`` the Idempotency-Key.
    ``fingerprint`` is a hash of method, target and body: the same key with another one is refused.
    """

    scope: bytes
    key: bytes
    fingerprint: bytes
    done: int = 0


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """One place in the order."""

    seq: int
    request: bytes
    caller: bytes
    time_ns: int
    prev: bytes  # 8-byte hash of the writes before it
    history: bytes  # for a write: hash after it; always: the seed of the request's random source
    read_only: bool
    void: bool = False  # it kills or hangs replicas: all skip it
    once: Once | None = None


class Settled(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A vote was won: ``tag`` stands for the reply (see ``order.tag``).

    ``reply`` is there if the request was one to be executed once: a retry gets it.
    """

    seq: int
    tag: bytes
    reply: bytes | None = None


class Void(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """A write kills or hangs replicas: all skip it."""

    seq: int


class Opened(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """A native client got a session."""

    session: bytes
    caller: bytes
    time_ns: int


class MembershipChange(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """A change of membership, at its place in the order (0: none of its own)."""

    seq: int
    replica: str
    before: str
    after: str
    reason: str
    suspect: bool


class SequenceReservation(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """Places up to this one may be given: whoever goes on from the journal begins after it.

    Reads and markers take places too, and are not written.
    """

    upto: int


Entry = Record | Settled | Void | Opened | MembershipChange | SequenceReservation


class Kept(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request in the tables: what it was, and the released reply (None: not settled)."""

    key: bytes
    fingerprint: bytes
    seq: int
    time_ns: int
    reply: bytes | None


class ScopeBase(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A scope of the tables: a native session, or the keys of an HTTP caller."""

    scope: bytes
    caller: bytes
    used_ns: int
    done: int
    kept: list[Kept]


class Base(msgspec.Struct, frozen=True, array_like=True):
    """What the order goes on from: at first all empty (``digest`` then is None)."""

    seq: int = 0
    history: bytes = bytes(8)
    digest: bytes | None = None
    time_ns: int = 0
    reserved: int = 0
    suspects: list[str] = []
    sessions: list[ScopeBase] = []
