"""The engine's books: what is open, who owes which answer, and how a replica is struck off.

``lifecycle`` and ``engine`` build on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from voter.core import events as ev
from voter.core.dedup import Table
from voter.core.entries import Entry as JournalEntry
from voter.core.entries import Moved, Record, Settled, Void
from voter.core.events import Effect
from voter.core.limits import Limits
from voter.core.membership import Membership
from voter.core.order import Entry, Log
from voter.core.replica import Cause, Replica
from voter.core.throttle import Throttle
from voter.core.vote import Policy

__all__ = ["Books", "Marker", "Poll"]

ENTRY_BYTES = 100
"""Bytes reckoned for a journal entry that is not a write, besides the reply that it may hold."""


class Poll:
    """One vote under way: on a request, or (``record`` None) on the digest at a marker.

    ``ballots`` holds the tag of what each replica answered, ``kept`` the long replies themselves
    as far as there is room.  ``value`` is None until it is won, then the winning tag.  ``sent``
    is a bit mask of the replicas it was sent to, ``due`` counts those that have not answered.
    ``tickets``: the clients that wait for it.  ``needs``: the journal must be durable up to this
    position before the reply is let out.  ``again``: a read that was ordered a second time, so
    that a replica which had come back since could vote on it.
    """

    __slots__ = (
        "again", "ballots", "due", "entry", "kept", "needs", "record", "sent", "seq", "size",
        "tickets", "value",
    )  # fmt: skip

    def __init__(
        self, seq: int, ticket: int | None, record: Record | None, entry: Entry | None
    ) -> None:
        self.seq = seq
        self.tickets = [] if ticket is None else [ticket]
        self.needs = 0
        self.again = False
        self.record = record
        self.entry = entry
        self.ballots: dict[int, bytes] = {}
        self.kept: dict[bytes, bytes] | None = None
        self.value: bytes | None = None
        self.sent = 0
        self.due = 0
        self.size = 0


class Marker:
    """The checkpoint marker under way: where it stands, who keeps the state, the voted digest."""

    __slots__ = ("digest", "fetched", "fetching", "history", "keeper", "seq")

    def __init__(self, seq: int, history: bytes, keeper: int | None) -> None:
        self.seq = seq
        self.history = history
        self.keeper = keeper
        self.digest: bytes | None = None
        self.fetching: float | None = None  # engine time at which the fetch began
        self.fetched = 0  # bytes of the state that are here


class Books:
    """State of the engine, and what keeps it consistent when a replica or a vote is given up."""

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        *,
        secret: bytes,
        limits: Limits | None = None,
        observers: frozenset[str] = frozenset(),
        journaled: bool = False,
    ) -> None:
        """``secret``: up to 64 bytes that key the hash of the history (and so the seeds).

        ``journaled``: what is ordered is written down (Append), and waited for (Synced).

        Raises ValueError if the number of replicas that vote is not the policy's n.
        """
        if len(names) - len(observers) != policy.of or len(set(names)) != len(names):
            raise ValueError(f"vote {policy} needs {policy.of} replicas with different names")
        self.limits = limits or Limits()
        self.members = Membership(
            policy,
            [Replica(i, name, observer=name in observers) for i, name in enumerate(names)],
        )
        self.log = Log(secret)
        self._now = 0.0
        self._looked = 0.0  # engine time of the last look at who hangs
        self._wall_ns = 0
        self._effects: list[Effect] = []
        self._open: dict[int, Poll] = {}  # not settled, or settled and not answered by all
        self._tickets: dict[int, Poll] = {}
        self._unsettled = 0
        self._pending_bytes = 0
        self._kept_bytes = 0
        self._dirty = False
        self._draining = False
        self._mark: Marker | None = None
        self._since_marker = 0
        self._marked = 0.0  # engine time of the last marker (at first, of the first tick)
        self._mark_rest = 0.0  # engine time before which requests call for no other
        self._mark_at = self.limits.log_bytes // 4  # size of the log that calls for the next one
        self._last_keeper = -1
        self._voids: list[int] = []  # places of voided writes in the log
        self.once = Table(self.limits)
        self._throttle = Throttle(self.limits)
        self._waiting: dict[int, ev.Submit] = {}  # writes that the throttle holds back, by ticket
        self._journaled = journaled
        self._position = 0  # entries appended to the journal
        self._written = 0  # position of the last write's
        self._synced = 0 if journaled else inf  # the journal is durable up to here
        self._held: dict[int, tuple[Poll, ev.Release]] = {}  # voted, and not durable yet
        self._opening: list[tuple[int, ev.SessionOpened]] = []  # sessions, the same
        self._places = 0  # the last place that is set aside
        self._places_at = 0  # position of the entry that says so
        self._places_durable = 0
        self._noise = 0  # bytes of entries that are not writes, since the last checkpoint
        self._moves = 0  # changes of membership written since the last checkpoint
        self._full = ""  # why nothing new can be written; empty if it can

    @property
    def pending(self) -> int:
        """Requests that are not ordered yet, not settled, or not released."""
        return self._unsettled + len(self._held) + len(self._waiting)

    @property
    def grown(self) -> int:
        """Bytes that a checkpoint would free: of the log, and of the journal's other entries."""
        return self.log.bytes + self._noise

    @property
    def throttled(self) -> bool:
        """Whether writes are held back for a learner."""
        return self._throttle.on

    @property
    def standing(self) -> str:
        """``ready``, ``degraded``, ``refusing`` or ``draining``."""
        return "draining" if self._draining else self.members.standing

    def _append(self, entry: JournalEntry) -> None:
        """Have an entry written before anything that follows is sent."""
        if self._journaled:
            self._position += 1
            self._effects.append(ev.Append(entry))
            if isinstance(entry, Settled):
                self._noise += ENTRY_BYTES + len(entry.reply or b"")
            elif not isinstance(entry, Record):
                self._noise += ENTRY_BYTES

    def _first_unsettled(self) -> float:
        """Place of the first write whose vote is not won (infinite if there is none).

        A replica that has applied it cannot vote on it again unless it is built anew.
        """
        return next((p.seq for p in self._open.values() if p.entry and p.value is None), inf)

    def _expect(self, replica: Replica, poll: Poll | None, size: int, seq: int = 0) -> None:
        """Note that something is sent to a replica, which must answer it in this order."""
        if not replica.outstanding:
            replica.heard = self._now
        if poll is not None:
            poll.sent |= 1 << replica.index
            poll.due += 1
            seq = poll.seq
        replica.outstanding.append((seq, size))
        replica.outstanding_bytes += size

    def _move(self, replica: Replica, cause: Cause, reason: str, seq: int) -> None:
        before = replica.state
        replica.move(cause, reason)
        self._effects.append(ev.Changed(replica.index, before, replica.state, reason, seq))
        # Of one that comes and goes without end only so many: it must not fill the disk.
        trusted = replica.suspect is replica.told
        if self._journaled and (self._moves < self.limits.moves or not trusted):
            replica.told = replica.suspect
            self._moves += 1
            name, suspect = replica.name, replica.suspect
            self._append(Moved(seq, name, before, replica.state, reason[:200], suspect))

    def _dissented(self, replica: Replica, seq: int) -> None:
        """A replica said something other than the majority."""
        replica.dissents += 1
        if self.members.policy.compares and not replica.observer:
            self._convict(replica, "dissent", seq)
        else:
            state = str(replica.state)
            self._effects.append(ev.Changed(replica.index, state, state, "dissent", seq))

    def _convict(self, replica: Replica, reason: str, seq: int) -> None:
        self._go(replica, Cause.CONVICTED, reason, seq)

    def _go(
        self, replica: Replica, cause: Cause, reason: str, seq: int, *, disconnect: bool = True
    ) -> None:
        """End a replica's incarnation: its votes are void, its link is dropped."""
        if not replica.epoch:
            return
        replica.expulsions += 1
        replica.suspect = replica.suspect or cause is Cause.CONVICTED
        self._move(replica, cause, reason, seq)
        for sent, _ in (*replica.outstanding, *replica.markers):
            poll = self._open.get(sent)
            if poll is not None:
                poll.due -= 1
                if not poll.due and poll.value is not None:
                    del self._open[sent]
        for poll in self._open.values():
            poll.ballots.pop(replica.index, None)
            poll.sent &= ~(1 << replica.index)
        under_way = [seq for seq, _ in replica.outstanding] if cause is Cause.GONE else []
        replica.forget()
        mark = self._mark
        if mark is not None and mark.keeper == replica.index:
            mark.keeper = None
            if mark.digest is not None:
                self._mark = None
        self.members.refresh()
        if disconnect:
            self._effects.append(ev.Disconnect(replica.index, reason))
        self._dirty = True
        self._blame(replica, under_way)

    def _blame(self, replica: Replica, under_way: list[int]) -> None:
        """A replica was lost: note which unsettled writes it was at, and void one that kills.

        The first time it may have been any of them.  When they are replayed each is sent alone; one
        with which m replicas are lost again is voided, or it would kill them for ever.
        """
        bit = 1 << replica.index
        for seq in under_way:
            poll = self._open.get(seq)
            if poll is not None and poll.entry is not None and poll.value is None:
                entry = poll.entry
                if entry.killed & bit and len(under_way) == 1:
                    entry.killed_again |= bit
                entry.killed |= bit
                if entry.killed_again.bit_count() >= self.members.policy.need:
                    self._void(poll, entry)

    def _void(self, poll: Poll, entry: Entry) -> None:
        """Let all skip a write from now on; whoever may have applied it is built anew."""
        if entry.record.void:
            return
        entry.record = poll.record = msgspec.structs.replace(entry.record, void=True)
        self._append(Void(poll.seq))
        self._written = self._position  # what is told of it, and of all after it, waits for that
        for later in self._open.values():
            if later.seq >= poll.seq:
                later.needs = self._position
        self._voids.append(poll.seq)
        self._effects.append(ev.Voided(poll.seq))
        for replica in self.members:
            if poll.sent >> replica.index & 1:
                replica.suspect = True
                self._go(replica, Cause.GONE, "may have applied a write that was voided", poll.seq)

    def _drop(self, poll: Poll) -> None:
        """Forget a poll that has no effect on the state (a read, a marker)."""
        del self._open[poll.seq]
        self._unsettled -= 1
        self._pending_bytes -= poll.size
        self._forget_kept(poll)
        if self._mark is not None and self._mark.seq == poll.seq:
            self._mark = None

    def _forget_kept(self, poll: Poll) -> None:
        """Drop the long replies that were kept for a poll."""
        self._kept_bytes -= sum(map(len, (poll.kept or {}).values()))
        poll.kept = None
