"""What goes into the engine and what comes out: frozen values, nothing else.

Replicas are named by index (0 to n-1) and epoch (the random number of a handshake); an event of
an epoch that is over is ignored.  A ticket is the shell's number for one client request.
"""

from __future__ import annotations

import msgspec

from voter.core.entries import Base, Entry, Once, Record

__all__ = [
    "Admit", "Answered", "Append", "Cancel", "Changed", "Checkpointed", "Digested", "Disconnect",
    "Drain", "Effect", "Event", "Expel", "Fail", "Failure", "Fetch", "FetchFailed", "Fetched",
    "Full", "Greeted", "Heard", "Lost", "Mark", "Misbehaved", "Once", "OpenSession", "Piece",
    "Ping", "Record", "RefusedOrder", "Release", "ReplicaAnswer", "ReplicaEvent", "Restore",
    "Restored", "Send", "SessionOpened", "Submit", "Synced", "Tick", "Voided",
]  # fmt: skip


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened."""


class ReplicaEvent(Event, frozen=True, gc=False):
    """Something that a replica or its link did, in the incarnation that ``epoch`` names."""

    replica: int
    epoch: int


class ReplicaAnswer(ReplicaEvent, frozen=True, gc=False):
    """Something that a replica sent about the request, marker or checkpoint at ``seq``."""

    seq: int


class Tick(Event, frozen=True, gc=False):
    """Time passes: ``now`` in seconds of a steady clock, ``wall_ns`` in nanoseconds since 1970."""

    now: float
    wall_ns: int


class Submit(Event, frozen=True, gc=False):
    """A client asks."""

    ticket: int
    request: bytes
    caller: bytes = b""
    read_only: bool = False
    once: Once | None = None  # never of a request that is read-only


class OpenSession(Event, frozen=True, gc=False):
    """A native client asks for a session.  Answered by SessionOpened, or by Fail."""

    ticket: int
    caller: bytes


class Synced(Event, frozen=True, gc=False):
    """The journal is durable up to and including the ``position``-th Append since the start."""

    position: int


class Full(Event, frozen=True, gc=False):
    """The journal has no room for new requests (``full``), or has room again."""

    full: bool
    reason: str = ""


class Cancel(Event, frozen=True, gc=False):
    """The client of a ticket no longer waits; what was ordered stays ordered."""

    ticket: int


class Greeted(ReplicaEvent, frozen=True, gc=False):
    """A handshake is complete; versions have been checked."""

    incarnation: int
    fresh: bool
    last_seq: int
    history: bytes
    replies_from: int = 0  # it has its replies to all writes from here on; 0: to none


class Lost(ReplicaEvent, frozen=True, gc=False):
    """A link ended."""

    reason: str


class Misbehaved(ReplicaEvent, frozen=True, gc=False):
    """A replica sent what no honest agent sends (garbage, wrong kinds, too much)."""

    reason: str


class Answered(ReplicaAnswer, frozen=True, gc=False):
    """A replica's reply to one ordered request."""

    reply: bytes


class Digested(ReplicaAnswer, frozen=True, gc=False):
    """A replica's digest of its state at a marker."""

    digest: bytes


class RefusedOrder(ReplicaAnswer, frozen=True, gc=False):
    """A replica says that it cannot apply what it was sent."""

    reason: str


class Restored(ReplicaAnswer, frozen=True, gc=False):
    """A replica holds the checkpoint it was sent, and tells its digest."""

    digest: bytes


class Fetched(ReplicaAnswer, frozen=True, gc=False):
    """The whole state that the keeper held at a marker has arrived; ``digest`` is its hash, as
    the link has worked it out.
    """

    state: bytes | bytearray
    digest: bytes


class Piece(ReplicaAnswer, frozen=True, gc=False):
    """A part of the state that is fetched has arrived: ``size`` bytes of it are here now."""

    size: int


class FetchFailed(ReplicaAnswer, frozen=True, gc=False):
    """The keeper could not give the state (too large, or not kept)."""

    reason: str


class Heard(ReplicaEvent, frozen=True, gc=False):
    """A sign of life (PONG)."""


class Admit(Event, frozen=True, gc=False):
    """The operator or supervisor vouches for a replica that was expelled."""

    replica: int


class Expel(Event, frozen=True, gc=False):
    """The operator or supervisor takes a replica out of the vote."""

    replica: int
    reason: str


class Drain(Event, frozen=True, gc=False):
    """Order nothing new from now on."""


# ------------------------------------------------------------------ effects


class Effect(msgspec.Struct, frozen=True, gc=False):
    """Something the shell must do."""


class Append(Effect, frozen=True, gc=False):
    """Write an entry to the journal, before any Send that follows goes out."""

    entry: Entry


class Send(Effect, frozen=True, gc=False):
    """Send an ordered request to these replicas."""

    replicas: tuple[int, ...]
    record: Record


class Mark(Effect, frozen=True, gc=False):
    """Send a checkpoint marker to these replicas; ``keeper`` (an index or None) keeps the state."""

    replicas: tuple[int, ...]
    seq: int
    keeper: int | None


class Restore(Effect, frozen=True, gc=False):
    """Send the last voted checkpoint to a replica."""

    replica: int
    seq: int
    history: bytes
    digest: bytes
    state: bytes | bytearray


class Fetch(Effect, frozen=True, gc=False):
    """Get the state kept at a marker from a replica, piece by piece."""

    replica: int
    epoch: int
    seq: int


class Ping(Effect, frozen=True, gc=False):
    """Ask for a sign of life."""

    replica: int


class Disconnect(Effect, frozen=True, gc=False):
    """Drop the link; connect again when the agent is there."""

    replica: int
    reason: str


class Release(Effect, frozen=True, gc=False):
    """Let a reply out: ``agreed`` replicas gave it, ``dissent`` gave another one.

    ``replayed``: it was released before, and is kept for retries; how it was voted is not.
    """

    ticket: int
    seq: int
    reply: bytes
    agreed: int
    dissent: tuple[int, ...]
    replayed: bool = False


class SessionOpened(Effect, frozen=True, gc=False):
    """Tell a native client its session's 16 bytes."""

    ticket: int
    session: bytes


class Failure:
    """Why a request gets no reply (the words of DESIGN.md)."""

    NOT_EXECUTED = "not-executed"
    OUTCOME_UNKNOWN = "outcome-unknown"
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    TOO_LARGE = "too-large"
    SESSION_EXPIRED = "session-expired"
    KEY_REUSED = "key-reused"


class Fail(Effect, frozen=True, gc=False):
    """Tell a client that there is no reply, and whether it may have been executed."""

    ticket: int
    failure: str
    detail: str
    seq: int = 0


class Changed(Effect, frozen=True, gc=False):
    """A replica's standing changed, or it dissented: for logs, metrics and the supervisor."""

    replica: int
    before: str
    after: str
    reason: str
    seq: int


class Voided(Effect, frozen=True, gc=False):
    """A write has killed or hung too many replicas too often: from now on all skip it."""

    seq: int


class Checkpointed(Effect, frozen=True, gc=False):
    """A state was voted and fetched: the log before it is gone.  Keep it on the disk.

    ``base`` is all that must be known besides the state to go on from here.
    """

    base: Base
    state: bytes | bytearray
