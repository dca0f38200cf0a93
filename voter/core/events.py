"""The engine's input (events) and output (effects): frozen values, nothing else.

A replica is identified by its index (0 to n-1).  Each handshake has a random number, the *epoch* of
the incarnation that begins with it.  Events of an incarnation that is over are ignored.  A *ticket*
is the runner's number for one client request.
"""

from __future__ import annotations

import msgspec

from voter.core.entries import Base, Entry, Once, Record

__all__ = [
    "Answered", "AnsweredAll", "Append", "Cancel", "ChangeRoles", "Changed", "Checkpointed",
    "ClockChanged", "Differed", "Digested", "Disconnect", "Drain", "Effect", "Event", "Expel",
    "Fail", "Failure", "Fetch", "FetchFailed", "Fetched", "Full", "Greeted", "Heard", "Lost",
    "Mark", "OpenSession", "Piece", "Ping", "ProtocolViolation", "Push", "Readmit",
    "RefusedOrder", "Release", "ReleaseAll", "ReplicaAnswer", "ReplicaEvent", "Restore",
    "Restored", "RoleAssigned", "RolesChanged", "RolesRefused", "Send", "SendAll",
    "SessionOpened", "Submit", "SubmitAll", "Synced", "TakeCheckpoint", "Tick", "Voided",
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
    """A client sends a request."""

    ticket: int
    request: bytes
    caller: bytes = b""
    read_only: bool = False
    once: Once | None = None  # never with a read-only request


class SubmitAll(Event, frozen=True, gc=False):
    """Clients send requests at the same time: those of one turn of the runner's loop."""

    requests: list[Submit]


class OpenSession(Event, frozen=True, gc=False):
    """A native client asks for a session.  Answered by SessionOpened, or by Fail."""

    ticket: int
    caller: bytes


class Synced(Event, frozen=True, gc=False):
    """The journal is durable up to this journal position (Appends since the start)."""

    position: int


class Full(Event, frozen=True, gc=False):
    """The journal has no room for new requests (``full``), or has room again."""

    full: bool
    reason: str = ""


class Cancel(Event, frozen=True, gc=False):
    """The client of a ticket no longer waits; what was ordered stays ordered."""

    ticket: int


class Greeted(ReplicaEvent, frozen=True, gc=False):
    """A handshake is complete, and versions match.  The replica reports the state it holds."""

    incarnation: int
    fresh: bool
    last_seq: int
    history: bytes
    replies_from: int = 0  # it still has its replies to all writes from here on; 0: none


class Lost(ReplicaEvent, frozen=True, gc=False):
    """A link has ended."""

    reason: str


class ProtocolViolation(ReplicaEvent, frozen=True, gc=False):
    """A replica sent what no correct agent sends (garbage, a wrong kind of frame, too much)."""

    reason: str


class Answered(ReplicaAnswer, frozen=True, gc=False):
    """A replica's reply to one ordered request."""

    reply: bytes


class AnsweredAll(ReplicaAnswer, frozen=True, gc=False):
    """A replica's replies to consecutive requests; ``seq`` is the first one's.

    ``replies``: a REPLIES payload, as the replica sent it.
    """

    replies: bytes


class Digested(ReplicaAnswer, frozen=True, gc=False):
    """A replica's digest of its state at a marker."""

    digest: bytes


class RefusedOrder(ReplicaAnswer, frozen=True, gc=False):
    """A replica cannot apply what it was sent."""

    reason: str


class Restored(ReplicaAnswer, frozen=True, gc=False):
    """A replica holds the checkpoint that it was sent; this is its digest of that state."""

    digest: bytes


class Fetched(ReplicaAnswer, frozen=True, gc=False):
    """The keeper's state at a marker has arrived; ``digest`` is its hash, computed by the link."""

    state: bytes | bytearray
    digest: bytes


class Piece(ReplicaAnswer, frozen=True, gc=False):
    """A piece of the state that is fetched has arrived; ``size`` bytes have arrived in total."""

    size: int


class FetchFailed(ReplicaAnswer, frozen=True, gc=False):
    """The keeper cannot send the state (too large, or not kept)."""

    reason: str


class Heard(ReplicaEvent, frozen=True, gc=False):
    """A replica has answered a Ping."""


class Readmit(Event, frozen=True, gc=False):
    """The operator or supervisor allows an expelled replica to come back with its state."""

    replica: int


class Expel(Event, frozen=True, gc=False):
    """The operator or supervisor takes a replica out of the vote."""

    replica: int
    reason: str


class ChangeRoles(Event, frozen=True, gc=False):
    """The supervisor changes roles: those of the replicas in ``roles``, by name.

    ``version``: the change applies only to the table with this version.  Answered by RolesChanged
    once the change is durable, or by RolesRefused.
    """

    ticket: int
    version: int
    roles: dict[str, str]
    reason: str
    active: int = 0  # so many voters must be active after the change, if that is more than usual
    voters: int = 0  # so many voters there are to be, if not n: at least m


class TakeCheckpoint(Event, frozen=True, gc=False):
    """The supervisor wants a checkpoint, however short the log is: the next tick begins it."""


class Drain(Event, frozen=True, gc=False):
    """The operator or supervisor wants no new requests to be ordered."""


# ------------------------------------------------------------------ effects


class Effect(msgspec.Struct, frozen=True, gc=False):
    """Something the runner must do."""


class Append(Effect, frozen=True, gc=False):
    """Write an entry to the journal, before any Send that follows goes out."""

    entry: Entry


class Send(Effect, frozen=True, gc=False):
    """Send an ordered request to these replicas; hold it for those in ``later`` until a Push."""

    replicas: tuple[int, ...]
    record: Record
    later: tuple[int, ...] = ()


class SendAll(Effect, frozen=True, gc=False):
    """Send consecutive requests, at least two and of one agreed time, to these replicas.

    Hold them for those in ``later`` until a Push.
    """

    replicas: tuple[int, ...]
    records: list[Record]
    later: tuple[int, ...] = ()


class Push(Effect, frozen=True, gc=False):
    """Send these replicas what is held for them."""

    replicas: tuple[int, ...]


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
    """Fetch the state that a replica kept at a marker, piece by piece."""

    replica: int
    epoch: int
    seq: int


class Ping(Effect, frozen=True, gc=False):
    """Ask an idle replica whether it is alive."""

    replica: int


class Disconnect(Effect, frozen=True, gc=False):
    """Close the link; connect again when the agent is there."""

    replica: int
    reason: str


class Release(Effect, frozen=True, gc=False):
    """Release a reply: ``agreed`` replicas gave it, ``dissent`` gave another one.

    ``replayed``: it was released before and kept for retries; the counts of its vote were not.
    """

    ticket: int
    seq: int
    reply: bytes
    agreed: int
    dissent: tuple[int, ...]
    replayed: bool = False


class ReleaseAll(Effect, frozen=True, gc=False):
    """Release the replies to a batch."""

    releases: list[Release]


class SessionOpened(Effect, frozen=True, gc=False):
    """Send a native client the 16 bytes of its new session."""

    ticket: int
    session: bytes


class Failure:
    """Why a request gets no reply, and what that says about its execution."""

    NOT_EXECUTED = "not-executed"  # it was not executed: try again
    OUTCOME_UNKNOWN = "outcome-unknown"  # it may have been executed
    OVERLOAD = "overload"  # it was not executed: try again later
    TIMEOUT = "timeout"  # it may have been executed, or may still be
    TOO_LARGE = "too-large"  # it was not executed
    SESSION_EXPIRED = "session-expired"  # it may have been executed
    KEY_REUSED = "key-reused"  # it was not executed: another request has its key


class Fail(Effect, frozen=True, gc=False):
    """Report that there will be no reply; ``failure`` says whether the request was executed.

    ``wait``: seconds until the cause may have passed; 0: soon, inf: not without an operator.
    """

    ticket: int
    failure: str
    detail: str
    seq: int = 0
    wait: float = 0.0


class Changed(Effect, frozen=True, gc=False):
    """A replica has changed its state, or dissented: for logs, metrics and the supervisor."""

    replica: int
    before: str
    after: str
    reason: str
    seq: int


class RoleAssigned(Effect, frozen=True, gc=False):
    """A replica has another role from now on.  The connection of a retired one must end."""

    replica: int
    before: str
    after: str
    reason: str
    seq: int


class RolesChanged(Effect, frozen=True, gc=False):
    """Report that a change of roles is durable: it was made at ``seq`` (0: there was none)."""

    ticket: int
    version: int
    seq: int


class RolesRefused(Effect, frozen=True, gc=False):
    """Report that a change of roles was not made, and why.

    ``problem``: ``not-found`` (no such replica or role), ``stale-roles`` (the table has another
    version), ``roles`` (impossible) or ``not-executed`` (the journal cannot take it now).
    """

    ticket: int
    problem: str
    detail: str


class Differed(Effect, frozen=True, gc=False):
    """A reply of a replica that is no voter differs from the released one, or its digest does.

    ``released``: None if it is no longer kept, and ``other`` likewise.  ``request``: empty for a
    digest.  ``behind``: seconds from the vote's end to the replica's reply; 0 if it was first.
    """

    replica: int
    seq: int
    request: bytes
    released: bytes | None
    other: bytes | None
    behind: float


class Voided(Effect, frozen=True, gc=False):
    """A request has killed or hung too many replicas: from now on all replicas skip it."""

    seq: int


class ClockChanged(Effect, frozen=True, gc=False):
    """The wall clock was set, by ``wall_ns``, or agreed time stepped towards it, by ``step_ns``."""

    wall_ns: int
    step_ns: int


class Checkpointed(Effect, frozen=True, gc=False):
    """A state was voted and fetched, and replaces the log before it.  Store it.

    ``base``: what a voter must know, besides the state, to resume from here.
    """

    base: Base
    state: bytes | bytearray
