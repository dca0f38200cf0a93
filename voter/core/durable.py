"""What is on the disk, and what waits for it: releases are held until all they build on is durable.

A reply is let out once the journal is durable up to the last write that was ordered before it,
itself included.  A read waits too: what it saw must not vanish with the host's power.
"""

from __future__ import annotations

import msgspec

from voter.core import events as ev
from voter.core.books import Books, Marker, Poll
from voter.core.entries import Base, Entry, Opened, Places, Record, Settled, Void
from voter.core.events import Failure
from voter.core.order import Checkpoint

__all__ = ["PLACES", "Durable", "Past"]

PLACES = 1 << 16
"""Places in the order that are set aside at a time: reads and markers leave no other trace."""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a voter that was here before has left: a checkpoint, and what happened since."""

    base: Base = Base()
    state: bytes | bytearray = b""
    entries: list[Entry] = []


class Durable(Books):
    """The part of the engine that speaks with the journal."""

    # ----------------------------------------------------- going on from a past

    def _recall(self, past: Past) -> None:
        """Take up the order where the journal leaves it.

        Writes whose vote is not known to be won are open again: replicas that have applied them
        are asked for their replies once more.
        """
        base, log = past.base, self.log
        log.checkpoint = Checkpoint(base.seq, base.history, base.digest, past.state)
        log.seq, log.history, log.time_ns = base.seq, base.history, base.time_ns
        self.once.load(base.sessions)
        suspects, places = set(base.suspects), base.places
        for entry in past.entries:
            if isinstance(entry, Record):
                log.add(entry)
                if entry.once is not None:
                    self.once.note(entry.once, entry.caller, entry.seq, entry.time_ns)
            elif isinstance(entry, Settled):
                self._recall_settled(entry)
            elif isinstance(entry, Void):
                self._recall_void(entry)
            elif isinstance(entry, Opened):
                self._recall_opened(entry, base.seq)
            elif isinstance(entry, Places):
                places = max(places, entry.upto)
            elif entry.suspect:
                suspects.add(entry.replica)
            else:
                suspects.discard(entry.replica)
        log.seq = max(log.seq, places)
        for write in log:
            if write.tag is None:
                poll = self._open[write.record.seq] = Poll(
                    write.record.seq, None, write.record, write
                )
                poll.size = len(write.record.request)
                self._unsettled += 1
                self._pending_bytes += poll.size
        for replica in self.members:
            replica.suspect = replica.told = replica.name in suspects

    def _recall_settled(self, entry: Settled) -> None:
        write = self.log.find(entry.seq)
        if write is not None:
            write.tag = entry.tag
            if write.record.once is not None:
                self.once.settle(write.record.once, entry.reply, entry.seq)

    def _recall_opened(self, entry: Opened, since: int) -> None:
        """Open a session again; but one of before the base that the base does not have is over.

        Opened again it would have forgotten what was executed in it.
        """
        self.log.time_ns = max(self.log.time_ns, entry.time_ns)
        if int.from_bytes(entry.session[:8]) > since:
            self.once.open(entry.session, entry.caller, entry.time_ns)

    def _recall_void(self, entry: Void) -> None:
        write = self.log.find(entry.seq)
        if write is not None:
            write.record = msgspec.structs.replace(write.record, void=True)
            self._voids.append(entry.seq)

    def _base(self, mark: Marker) -> Base:
        """Return what must be known besides the state at a marker to go on from there."""
        return Base(
            seq=mark.seq,
            history=mark.history,
            digest=mark.digest,
            time_ns=self.log.time_ns,
            places=max(self._places, mark.seq),
            suspects=[replica.name for replica in self.members if replica.suspect],
            sessions=self.once.export(),
        )

    # ------------------------------------------------------------- the journal

    def _reserve_places(self) -> None:
        """Set more places aside long before those set aside are used up."""
        if self._journaled and self.log.seq + PLACES // 2 > self._places:
            self._places = self.log.seq + PLACES
            self._append(Places(self._places))
            self._places_at = self._position

    def _take_place(self) -> int:
        """Use up one place for what is no request, and set more aside in time."""
        seq = self.log.take_place()
        self._reserve_places()
        return seq

    def _has_place(self) -> bool:
        """Whether the next place is one that is set aside on the disk."""
        if not self._journaled or self.log.seq < self._places_durable:
            return True
        if self._synced >= self._places_at:
            self._places_durable = self._places
        return self.log.seq < self._places_durable

    # ------------------------------------------------------- releases that wait

    def _let_out(self, poll: Poll, verdict: ev.Release) -> None:
        """Release a reply to all who wait for it, as soon as it is durable."""
        once = poll.record.once if poll.record is not None else None
        if poll.needs > self._synced and (poll.tickets or once is not None):
            self._held[poll.seq] = (poll, verdict)  # whoever asks again meanwhile joins it
            return
        for ticket in poll.tickets:
            self._tickets.pop(ticket, None)
            self._effects.append(msgspec.structs.replace(verdict, ticket=ticket))
        poll.tickets = []

    def _synced_upto(self, event: ev.Synced) -> None:
        """The journal is durable up to a position: let out what waited for it."""
        synced = self._synced = max(self._synced, event.position)
        for poll, verdict in [held for held in self._held.values() if held[0].needs <= synced]:
            del self._held[poll.seq]
            self._let_out(poll, verdict)
        self._effects += [opened for at, opened in self._opening if at <= synced]
        self._opening = [waiting for waiting in self._opening if waiting[0] > synced]

    def _filled(self, event: ev.Full) -> None:
        """The disk has no room for new writes, or has room again."""
        self._full = event.reason or "the disk is full" if event.full else ""

    # ----------------------------------------------------------------- sessions

    def _open_session(self, event: ev.OpenSession) -> None:
        """Give a native client a session: a name that was never given before."""
        problem = self._full
        if self._draining:
            problem = "the node is draining"
        elif not self._has_place():
            problem = "the journal is behind"
        elif self.grown > self.limits.log_bytes:
            problem = "the log is full: no checkpoint could be voted and fetched yet"
        if problem:
            text = f"no session can be opened: {problem}"
            self._effects.append(ev.Fail(event.ticket, Failure.NOT_EXECUTED, text))
            return
        seq = self._take_place()
        session = seq.to_bytes(8) + self.log.token(seq)
        now = max(self._wall_ns, self.log.time_ns)
        self.once.open(session, event.caller, now)
        self._append(Opened(session, event.caller, now))
        opened = ev.SessionOpened(event.ticket, session)
        if self._position > self._synced:
            self._opening.append((self._position, opened))
        else:
            self._effects.append(opened)
