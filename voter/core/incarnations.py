"""Incarnations: how a replica joins, catches up, is admitted, and how its incarnation ends.

Every recovery uses only the last voted checkpoint and the log since then, never what one replica
claims.

**Joining.**  A replica that connects (Greeted) reports its last write and the hash of its history.
If the log continues from there, the replica keeps its state and becomes a LEARNER.  Otherwise it
gets the checkpoint (RESTORING), proves by its digest that it holds it, and becomes a LEARNER then.
The voter sends a learner the log in a bounded window.  At the end of the log it goes *live*: it
gets each request as it is ordered.  Once it has answered all writes logged before that, it has
caught up.  From then on a voter's ballots count; the replies of learners and observers by role are
compared.  A change of roles moves a replica that has caught up to another state (``assigned``).

**Who may not keep its state.**  A suspect replica: its state may be damaged.  A replica that may
have applied a write that was voided since.  A replica that has applied a write whose poll is not
settled and no longer has its reply: it could not vote on it.  All of these get the checkpoint.

**A lost replica is not a faulty one.**  A closed link, a hang or a lag makes it ABSENT: it may
rejoin with its state.  A dissent or a protocol violation makes it EXPELLED and suspect: only a
fresh incarnation may come back.  Its ballots are discarded in both cases (polls.py).

**Writes that kill.**  If a replica is lost while unsettled writes are under way at it, any of them
may be the cause.  So they are sent one at a time when they are replayed.  If m replicas are lost
again, each with the same write alone under way, that write is voided: all replicas skip it from
then on.  Every replica that may have applied it is ended too, and restored from the checkpoint.
Only losses of voters count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from voter.core import events as ev
from voter.core.checkpoints import Checkpoints
from voter.core.comparisons import Comparisons
from voter.core.engine_time import EngineTime
from voter.core.entries import Record, Void
from voter.core.events import Changed, Disconnect, Effect, Ping, Restore, Voided
from voter.core.journal_state import JournalState
from voter.core.limits import Limits
from voter.core.membership import Membership
from voter.core.order import LogEntry, OrderLog, tag
from voter.core.poll import Poll
from voter.core.polls import Polls
from voter.core.release_gate import ReleaseGate
from voter.core.replica import CAUGHT_UP, Cause, Replica, Role, State
from voter.core.throttle import Throttle

__all__ = ["Incarnations"]


@dataclass
class Incarnations:
    """What moves replicas through their states.  It has no state of its own: see Replica."""

    limits: Limits
    time: EngineTime
    log: OrderLog
    journal: JournalState
    members: Membership
    polls: Polls
    checkpoints: Checkpoints
    gate: ReleaseGate
    throttle: Throttle
    comparisons: Comparisons
    effects: list[Effect]

    # ---------------------------------------------------------------- joining

    def greet(self, event: ev.Greeted) -> None:
        """Begin an incarnation: continue it from the log, or from the checkpoint."""
        replica = self.members[event.replica]
        if replica.role is Role.RETIRED:
            self.effects.append(Disconnect(replica.index, "retired"))
            return
        self.end(replica, Cause.GONE, "connected again", replica.cursor, disconnect=False)
        if replica.state is State.EXPELLED and not event.fresh:
            self.effects.append(Disconnect(replica.index, "expelled, and not a fresh start"))
            return
        replica.reset()
        replica.epoch, replica.incarnation = event.epoch, event.incarnation
        replica.heard_at(self.time.now)
        replica.suspect = replica.suspect and not event.fresh
        start = self._find_start(replica, event)
        if start is None:
            self._restore(replica)
        else:
            self.members.change(replica, Cause.BEHIND, "catches up from the log", event.last_seq)
            replica.cursor = max(start, self.log.checkpoint.seq)
            self.feed(replica)

    def _find_start(self, replica: Replica, event: ev.Greeted) -> int | None:
        """Return the write after which the log continues a replica; None if it does not.

        If the voter restarted, the replica may have applied writes whose polls are not settled.
        It is sent those again, and repeats its replies if it still has them.
        """
        last = event.last_seq
        if replica.suspect or not self.log.continues(last, event.history):
            return None
        if last >= min(self.log.voided, default=inf):
            return None
        first = self.polls.first_unsettled()
        if last < first:
            return last
        return int(first) - 1 if 0 < event.replies_from <= first else None

    def _restore(self, replica: Replica) -> None:
        """Send a replica the checkpoint."""
        point = self.log.checkpoint
        self.members.change(replica, Cause.FOREIGN, "is sent the last checkpoint", point.seq)
        replica.heard_at(self.time.now)
        replica.cursor = point.seq
        replica.restored = point.digest
        self.effects.append(
            Restore(replica.index, point.seq, point.history, point.digest or b"", point.state)
        )

    def restored(self, replica: Replica, event: ev.Restored) -> None:
        """Feed the log to a replica that holds the checkpoint, if its digest is right."""
        if replica.state is not State.RESTORING:
            return
        replica.heard_at(self.time.now)
        if event.seq != replica.cursor or replica.restored not in (None, event.digest):
            self.expel(replica, "its restored state is not the checkpoint it was sent", event.seq)
            return
        replica.suspect = False
        self.members.change(replica, Cause.RESTORED, "catches up from the log", event.seq)
        self.feed(replica)

    def feed(self, replica: Replica) -> None:
        """Send a learner the next writes of the log; admit it once it has caught up."""
        limits = self.limits
        if not replica.live:
            if replica.cursor < self.log.checkpoint.seq:
                if not replica.outstanding:
                    self._restore(replica)
                return
            missing = self.log.after(replica.cursor, limits.window - replica.requests)
            if missing:
                self.polls.split()
            for entry in missing:
                if replica.outstanding_bytes > limits.window_bytes:
                    return
                record, poll = entry.record, self.polls.open.get(entry.record.seq)
                unsettled = poll is not None and poll.winner is None
                alone = entry.killed and not record.void and unsettled
                if alone and replica.outstanding:
                    return
                self.members.send_to(replica, poll, record)
                replica.cursor = record.seq
                if alone:
                    return
            if replica.cursor != self.log.last_write:
                return
            replica.live = True
            replica.join_seq = replica.cursor
            self.members.refresh()
        if not replica.outstanding or replica.outstanding[0][0] > replica.join_seq:
            self._admit(replica)

    def feed_all(self) -> None:
        """Feed the learners that are not live: the log has changed."""
        for replica in self.members:
            if replica.state is State.LEARNER and not replica.live:
                self.feed(replica)

    def _admit(self, replica: Replica) -> None:
        """Let a replica that has caught up do what its role says."""
        self._take_role(replica, self.journal.take_seq())

    def _take_role(self, replica: Replica, seq: int) -> None:
        """Move a replica that has caught up to the state of its role."""
        if replica.role is Role.VOTER:
            self.members.change(replica, Cause.ADMITTED, "votes", seq)
        elif replica.role is Role.LEARNER:
            self.members.change(replica, Cause.STANDING_BY, "caught up", seq)
        else:
            self.members.change(replica, Cause.OBSERVING, "observes", seq)
        self.polls.recount |= replica.role is Role.VOTER
        self.members.refresh()

    def assigned(self, replica: Replica, seq: int) -> None:
        """Move a replica that has got another role, at ``seq``, to the state that follows."""
        if replica.role is Role.RETIRED:
            if replica.epoch:
                self.end(replica, Cause.RETIRED, "retired", seq)
            else:
                self.members.change(replica, Cause.RETIRED, "retired", seq)
        elif replica.state is State.RETIRED:
            self.members.change(replica, Cause.ASSIGNED, "not connected yet", seq)
        elif replica.state in CAUGHT_UP:
            self._take_role(replica, seq)
            self.polls.recount = True
        self.members.refresh()

    # ----------------------------------------------------------------- ending

    def lost(self, replica: Replica, event: ev.Lost) -> None:
        """End the incarnation of a replica whose link has ended."""
        self.end(replica, Cause.GONE, event.reason, 0)

    def refused(self, replica: Replica, event: ev.RefusedOrder) -> None:
        """End the incarnation of a replica that cannot apply what it was sent.

        If it cannot make a digest, nobody knows its state: it is suspect.
        """
        replica.suspect |= any(seq == event.seq for seq, _ in replica.markers)
        self.end(replica, Cause.GONE, f"refused: {event.reason}", event.seq)

    def readmit(self, event: ev.Readmit) -> None:
        """Allow a replica to come back without a fresh start (from the checkpoint, if suspect)."""
        replica = self.members[event.replica]
        if replica.state in (State.EXPELLED, State.ABSENT):
            self.members.change(replica, Cause.READMITTED, "may rejoin", 0)

    def expel_on_request(self, event: ev.Expel) -> None:
        """Take a replica out of the vote, connected or not."""
        replica = self.members[event.replica]
        if replica.epoch:
            self.expel(replica, event.reason, 0)
        elif replica.state is State.ABSENT:
            replica.suspect = True
            self.members.change(replica, Cause.EXPELLED, event.reason, 0)

    def compare(
        self, replica: Replica, seq: int, record: Record | None, right: bytes, value: bytes
    ) -> None:
        """Compare a late reply (or digest) with ``right``, the winning tag."""
        agrees = tag(value) == right
        if replica.role is not Role.VOTER:
            self.comparisons.late(replica, seq, record, right, value)
        if not agrees:
            self.dissented(replica, seq)

    def dissented(self, replica: Replica, seq: int) -> None:
        """Expel a replica whose answer differs from the majority's.

        Only report it if one reply wins, or if the replica is an observer by role, or was one when
        the request was ordered: it may still answer what it was sent then.
        """
        replica.dissents += 1
        watched = replica.role is Role.OBSERVER or seq < replica.voter_from
        if self.members.policy.compares and not watched:
            self.expel(replica, "dissent", seq)
        else:
            state = str(replica.state)
            self.effects.append(Changed(replica.index, state, state, "dissent", seq))

    def expel(self, replica: Replica, reason: str, seq: int) -> None:
        """End the incarnation of a replica that is no longer trusted."""
        self.end(replica, Cause.EXPELLED, reason, seq)

    def end(
        self, replica: Replica, cause: Cause, reason: str, seq: int, *, disconnect: bool = True
    ) -> None:
        """End a replica's incarnation, and those of all that must end with it.

        A loss may void one write, and so end further incarnations.  Those are ended next, before
        what was pending: the effects of one loss stay together.
        """
        pending = [(replica, cause, reason, seq)]
        while pending:
            replica, cause, reason, seq = pending.pop(0)
            if not replica.epoch:
                continue
            under_way = self._end_one(replica, cause, reason, seq)
            if disconnect:
                self.effects.append(Disconnect(replica.index, reason))
            counts = cause is Cause.GONE and replica.role is Role.VOTER
            if counts and (poll := self._attribute_loss(replica, under_way)):
                reason, seq = "may have applied a write that was voided", poll.seq
                applied = [other for other in self.members if poll.sent >> other.index & 1]
                for other in applied:
                    other.suspect = True
                pending[:0] = [(other, Cause.GONE, reason, seq) for other in applied]
                disconnect = True

    def _end_one(self, replica: Replica, cause: Cause, reason: str, seq: int) -> list[int]:
        """End one incarnation; return what was under way."""
        replica.incarnations_ended += 1
        replica.suspect = replica.suspect or cause is Cause.EXPELLED
        self.members.change(replica, cause, reason, seq)
        self.polls.withdraw(replica)
        under_way = self.members.followers.under_way(replica)
        replica.reset()
        self.checkpoints.keeper_lost(replica)
        self.members.refresh()
        return under_way

    def _attribute_loss(self, replica: Replica, under_way: list[int]) -> Poll | None:
        """Note with which unsettled requests a replica was lost; return the poll of one to void.

        The first time, any of them may be the cause.  Later each of them is sent alone.
        """
        bit, need = 1 << replica.index, self.members.policy.need
        for seq in under_way:
            poll = self.polls.open.get(seq)
            if poll is None or poll.winner is not None:
                continue
            if (entry := poll.entry) is None:
                poll.killed = True
                continue
            if entry.killed & bit and len(under_way) == 1:
                entry.killed_again |= bit
            entry.killed |= bit
            if entry.killed_again.bit_count() >= need and not entry.record.void:
                self._void_request(poll, entry)
                return poll
        return None

    def _void_request(self, poll: Poll, entry: LogEntry) -> None:
        """Let all replicas skip a write from now on.

        The replies to it and to all requests ordered after it wait until that is durable.
        """
        poll.record = self.log.void(entry)
        self.journal.append(Void(poll.seq))
        self.polls.require_position(poll.seq, self.journal.last_write)
        self.gate.require_position(poll.seq, self.journal.last_write)
        self.effects.append(Voided(poll.seq))

    # --------------------------------------------------------------- liveness

    def heard(self, replica: Replica, _event: ev.Heard) -> None:
        """Take the answer to a ping as a sign of life."""
        if not replica.pinged:
            self.expel(replica, "answered a ping that was not sent", 0)
            return
        replica.heard_at(self.time.now)
        replica.pinged = False

    def watch(self, gap: float) -> None:
        """End the incarnations that hang or lag; ping the idle ones.

        If the voter itself was delayed, it extends every deadline and suspects no replica: the
        replies may lie unread in the sockets.  ``gap``: seconds since the last call.
        """
        limits, now, behind = self.limits, self.time.now, dict[int, int]()
        for replica in self.members:
            if not replica.epoch:
                continue
            outstanding = replica.outstanding
            if replica.state is State.LEARNER:
                answered = outstanding[0][0] - 1 if outstanding else replica.cursor
                behind[replica.index] = self.log.count_after(answered)
            if gap > limits.hang / 2:
                replica.heard_at(replica.heard + gap)
            silent = now - replica.heard
            patience = limits.hang
            if replica.state is State.RESTORING:
                patience += len(self.log.checkpoint.state) / limits.restore_rate
            waits = outstanding or replica.pinged or replica.state is State.RESTORING
            if waits and silent > patience:
                self.end(replica, Cause.GONE, f"hang: silent for {silent:.1f} s", 0)
            elif (
                replica.requests - self.polls.unsettled > limits.lag
                or replica.outstanding_bytes - self.polls.pending_bytes - self.throttle.held_bytes
                > limits.lag_bytes
            ):
                self.end(replica, Cause.GONE, f"lag: {replica.requests} behind", 0)
            elif not waits and silent > limits.ping:
                replica.pinged = True
                self.effects.append(Ping(replica.index))
        self.throttle.update(now, behind, self.log.writes, self.members.voters(behind))

    def watch_checkpoint(self, gap: float) -> None:
        """End replicas whose digest or state is overdue; place a marker if one is due."""
        checkpoints = self.checkpoints
        for replica in self.members:
            if checkpoints.is_digest_overdue(replica, gap):
                self.end(replica, Cause.GONE, "hang: its digest is overdue", replica.markers[0][0])
        marker = checkpoints.marker
        if checkpoints.is_keeper_overdue(gap) and marker is not None and marker.keeper is not None:
            reason = "hang: the state it kept is overdue"
            self.end(self.members[marker.keeper], Cause.GONE, reason, marker.seq)
        checkpoints.place_if_due()
