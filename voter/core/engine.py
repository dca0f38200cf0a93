"""The engine: ``receive(event) -> effects``.  All of the voter's decisions are made here.

It is a pure state machine, composed of parts.  Each part declares the fields it owns in its own
file, which opens with its theory of operation.  The parts are wired below, once, and share one list
of effects.  A part uses those above it in this table, never those below it.  A contract in
``pyproject.toml`` enforces that:

=====================  ======================================================================
``OrderLog``           sequence numbers, agreed time, history; writes since the last checkpoint
``JournalState``       positions appended and synced, reserved sequence numbers, disk full
``Poll``               one vote: its ballots, its clients, the position its reply waits for
``Batch``              one vote on all requests of one turn; taken apart into Polls
``Followers``          which replicas get orders later, and how much is held for them
``Membership``         the replicas and their states; electors and live replicas
``Polls``              open polls with their ballots, clients by ticket, bytes pending and kept
``ReleaseGate``        replies and sessions that wait for the journal
``DedupTable``         what was executed, by session number and Idempotency-Key
``Checkpoints``        the marker under way, its keeper and fetch; when the next one is due
``Suspects``           reads that may kill or hang replicas, and which of them is tried alone
``Throttle``           writes held back for a learner
``Comparisons``        winning replies that replicas without a vote have still to answer
``Incarnations``       how replicas join, catch up and end (state: in each ``Replica``)
``RoleTable``          how replicas get another role (state: in ``Replica`` and ``Membership``)
``Intake``             how a request gets its sequence number; whether the node drains
=====================  ======================================================================

The engine itself conducts the vote.  Follow one request: ``Intake.submit`` gives it its
sequence number and sends it to the live replicas.  ``_answered`` takes each reply, and ``_cast``
makes it a ballot.  ``_decide`` counts the ballots (vote.py).  ``_settle`` journals the result, and
ReleaseGate releases the reply.

The order of the effects matters: the runner carries them out in this order.  When the electors
change, ``Polls.recount`` is set, and ``receive`` counts all open polls again until it stays unset.

ARCHITECTURE.md lists the promises that the engine keeps; each is tested by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from guests.protocol.wire import WireError, count_replies, decode_replies
from voter.core import events as ev
from voter.core.batch import Batch
from voter.core.checkpoints import Checkpoints
from voter.core.comparisons import Comparisons
from voter.core.dedup import DedupTable
from voter.core.engine_time import ClockChange, EngineTime
from voter.core.entries import ClockStep, Settled
from voter.core.events import Effect, Event, Failure, Release
from voter.core.followers import Followers
from voter.core.incarnations import Incarnations
from voter.core.intake import NOT_KEPT, Intake
from voter.core.journal_state import JournalState
from voter.core.limits import Limits
from voter.core.membership import Membership, make_replicas
from voter.core.order import TAG_SIZE, OrderLog, tag
from voter.core.poll import Poll
from voter.core.polls import Polls
from voter.core.release_gate import ReleaseGate
from voter.core.replica import Replica, Role, State
from voter.core.resume import Past, resume
from voter.core.roles import RoleTable
from voter.core.suspects import Suspects
from voter.core.throttle import Throttle
from voter.core.vote import LOST, PENDING, WON, Policy, count

__all__ = ["Engine"]

WATCH_INTERVAL = 0.01
"""Seconds of engine time between two checks for replicas that hang, lag or are overdue."""


class Engine:
    """The pure core of the voter.

    Feed it events in the order they happened; carry out the effects in their order.
    """

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        *,
        secret: bytes,
        limits: Limits | None = None,
        roles: Mapping[str, Role] | None = None,
        journaled: bool = False,
        follow: bool = False,
    ) -> None:
        """Wire the parts.

        ``roles``: of a new journal, by name (a voter if not given).  Later the journal's count.
        ``secret``: up to 64 bytes that key the hash of the history (and so the seeds).
        ``journaled``: emit Append effects, and wait for Synced events.
        ``follow``: send orders to m replicas first, and to the others in batches.
        Raises ValueError if the number of replicas that vote is not the policy's n.
        """
        limits = self.limits = limits or Limits()
        effects = self._effects = list[Effect]()
        time = self._time = EngineTime(limits.clock_step)
        replicas = make_replicas(policy, names, roles or {})
        log = self.log = OrderLog(secret)
        journal = self.journal = JournalState(log, effects, enabled=journaled)
        followers = Followers(policy.need, replicas, limits, time, effects, enabled=follow)
        self.followers = followers
        members = Membership(policy, replicas, limits, time, journal, followers, effects)
        self.members = members
        polls = self.polls = Polls(limits, replicas)
        gate = self.gate = ReleaseGate(journal, polls, effects)
        dedup = self.dedup = DedupTable(limits)
        checkpoints = self.checkpoints = Checkpoints(
            limits, time, log, journal, members, polls, dedup, effects
        )
        throttle = self.throttle = Throttle(limits)
        comparisons = self.comparisons = Comparisons(time, members, effects)
        incarnations = self.incarnations = Incarnations(
            limits, time, log, journal, members, polls, checkpoints, gate, throttle, comparisons,
            effects,
        )  # fmt: skip
        self.roles = RoleTable(limits, journal, members, polls, gate, incarnations, effects)
        suspects = self.suspects = Suspects(time, members)
        self.intake = Intake(
            limits, time, log, journal, members, polls, gate, dedup, throttle, checkpoints,
            suspects, effects,
        )  # fmt: skip
        self._watched = 0.0  # engine time of the last check (WATCH_INTERVAL)

    @property
    def pending(self) -> int:
        """Requests that are not ordered yet, not settled, or not released."""
        return self.intake.pending

    @property
    def status(self) -> str:
        """``ready``, ``degraded``, ``refusing`` or ``draining``."""
        return "draining" if self.intake.draining else self.members.status

    def begin(self, past: Past) -> list[Effect]:
        """Continue from the journal of a voter that ran before.  Call it first, if journaled.

        Raises ValueError if the journal's roles do not fit the replicas.
        """
        resume(past, self.log, self.dedup, self.polls, self.members)
        self.journal.reserve()
        if self.log.time_ns:
            self._change_clock(self._time.resume(self.log.time_ns))
        return self._take_effects()

    def receive(self, event: Event) -> list[Effect]:
        """Take one event, unless of an incarnation that is over; return the effects, in order."""
        kind = type(event)
        handle = self._replica_handlers.get(kind)
        if handle is None:
            self._handlers[kind](self, event)
        else:
            replica = self.members.replicas[event.replica]  # type: ignore[attr-defined]
            if event.epoch == replica.epoch:  # type: ignore[attr-defined]
                handle(self, replica, event)
        while self.polls.recount:
            self.polls.recount = False
            self._recount()
        return self._take_effects()

    def _take_effects(self) -> list[Effect]:
        effects = self._effects.copy()
        self._effects.clear()
        return effects

    # ------------------------------------------------------------ requests

    def _submit(self, event: ev.Submit, *, held: bool = False) -> None:
        """Take a request.  If it joins an open poll, count again: the poll may be lost by now."""
        joined = self.intake.submit(event, held=held)
        if joined is not None:
            self._decide(joined)

    def _submit_held(self) -> None:
        """Order writes that were held back, as far as the throttle lets them pass."""
        while (event := self.throttle.take()) is not None:
            self._submit(event, held=True)

    def _submit_all(self, event: ev.SubmitAll) -> None:
        for joined in self.intake.submit_all(event.requests):
            self._decide(joined)

    # --------------------------------------------------------------- ballots

    def _answered(self, replica: Replica, event: ev.Answered) -> None:
        """Take a replica's reply."""
        if event.seq in self.polls.batches:
            self.polls.split()
        self._answer(replica, event.seq, event.reply)

    def _answer(self, replica: Replica, seq: int, reply: bytes) -> None:
        """Take a reply: it must be to the oldest request that the replica has not answered."""
        outstanding = replica.outstanding
        if not outstanding or outstanding[0][0] != seq:
            reason = "answered a request that was not sent, or out of order"
            self.incarnations.expel(replica, reason, seq)
            return
        replica.answered()
        self._cast(replica, seq, reply)

    def _answered_all(self, replica: Replica, event: ev.AnsweredAll) -> None:
        """Take a replica's replies to a whole batch, or to consecutive requests one by one."""
        payload, outstanding = event.replies, replica.outstanding
        batch = self.polls.batches.get(event.seq)
        if (
            batch is not None
            and outstanding
            and outstanding[0][0] == event.seq
            and count_replies(payload) == len(batch.records)
            and len(payload) + self.polls.reply_bytes <= self.limits.ballot_bytes
        ):
            replica.answered(len(batch.records))
            replica.heard_at(self._time.now)
            self._cast_all(replica, batch, payload)
            return
        self.polls.split()
        try:
            for seq, reply in enumerate(decode_replies(payload), event.seq):
                if replica.epoch == event.epoch:
                    self._answer(replica, seq, reply)
        except WireError as error:
            self.incarnations.expel(replica, str(error), event.seq)

    def _cast_all(self, replica: Replica, batch: Batch, payload: bytes) -> None:
        """Take a replica's replies to a batch as its ballot.

        If no payload can win any more, the requests are voted on one by one.
        """
        polls = self.polls
        if batch.winner is not None:
            polls.late_answer(batch)
            if replica.role is not Role.VOTER:
                self.comparisons.late_all(replica, batch, payload)
            if tag(payload) != batch.winner:
                self.incarnations.dissented(replica, batch.find_difference(payload))
            return
        polls.keep_ballot(batch, replica.index, payload)
        electors = [index for index in self.members.active if batch.sent >> index & 1]
        result, winner = count(batch.ballots, electors, self.members.policy.need)
        if winner and (replies := batch.replies(winner)):
            self._settle_all(batch, winner, replies)
        elif result is not PENDING or not batch.unanswered:
            polls.split()
            polls.recount = True
        else:
            self.followers.compare(batch.ballots)

    def _settle_all(self, batch: Batch, winner: bytes, replies: list[bytes]) -> None:
        """Settle a batch, as ``_settle`` does one request."""
        ballots, active = self.polls.settle_batch(batch, winner, replies), self.members.active
        if batch.sent & self.members.watched:
            self.comparisons.settled_all(batch, replies, ballots)
        dissent = {i: payload for i, payload in ballots.items() if payload != winner}
        agreed = sum(index in active and index not in dissent for index in ballots)
        journal, dedup = self.journal, self.dedup
        for entry, reply_tag, reply in zip(batch.entries, batch.tags, replies, strict=True):
            if entry is not None:
                record, entry.tag = entry.record, reply_tag
                full = journal.full and len(reply_tag) == TAG_SIZE
                kept = None if record.once is None or full else reply
                journal.append(Settled(record.seq, reply_tag, kept))
                if record.once is not None:
                    dedup.settle(record.once, reply, record.seq)
        self.followers.settled(batch.seq, ballots, waiting=self.checkpoints.votes_wait)
        self.gate.release_all_when_durable(batch, replies, agreed, self.members.voters(dissent))
        for index, payload in dissent.items():
            self.incarnations.dissented(self.members[index], batch.find_difference(payload))

    def _digested(self, replica: Replica, event: ev.Digested) -> None:
        """Take a replica's digest: it comes when it is ready, replies may overtake it."""
        if self.checkpoints.accept_digest(replica, event.seq):
            self._cast(replica, event.seq, event.digest)
        else:
            reason = "sent a digest that was not requested"
            self.incarnations.expel(replica, reason, event.seq)

    def _cast(self, replica: Replica, seq: int, value: bytes) -> None:
        """Take a replica's reply (or digest) as its ballot for ``seq``.

        A late one is compared with the winner of its poll.  One that is replayed from the log is
        compared with the tag in the log.
        """
        poll = self.polls.open.get(seq)
        replica.heard_at(self._time.now)
        if poll is None:
            entry = self.log.find(seq)
            if entry is not None and entry.tag is not None:
                self.incarnations.compare(replica, seq, entry.record, entry.tag, value)
        elif poll.winner is not None:
            poll.unanswered -= 1
            if not poll.unanswered:
                del self.polls.open[seq]
            agrees = tag(value) == poll.winner
            if not agrees or replica.role is not Role.VOTER:
                self.incarnations.compare(replica, seq, poll.record, poll.winner, value)
            if poll.record is None:
                self.checkpoints.keeper_voted(replica, seq, agrees=agrees)
        else:
            poll.unanswered -= 1
            ballot = poll.ballots[replica.index] = tag(value)
            if replica.state is State.ACTIVE or not poll.unanswered:
                self._decide(poll, ballot, value)
            if ballot is not value:
                self.polls.keep_reply(poll, ballot, value)
        if replica.state is State.LEARNER:
            self.throttle.earn(replica.index)
            self.incarnations.feed(replica)
            self._submit_held()

    # ----------------------------------------------------------------- votes

    def _decide(self, poll: Poll, cast: bytes = b"", value: bytes | None = None) -> None:
        """Count the ballots of a poll that is not settled, and act if it is won or lost.

        ``cast`` and ``value`` are the ballot that has just come and its reply, if one has.
        """
        if poll.trial:
            self._judge(poll)
            return
        sent, members = poll.sent, self.members
        electors = [index for index in members.active if sent >> index & 1]
        result, winner = count(poll.ballots, electors, members.policy.need)
        if result is WON and winner is not None:
            if value is None or winner != cast:
                kept = poll.long_replies or {}
                value = kept.get(winner) if len(winner) == TAG_SIZE else winner
            wanted = poll.tickets or (poll.record is not None and poll.record.once is not None)
            if value is not None or not wanted or not poll.unanswered:
                self._settle(poll, winner, value)
            else:
                self.followers.push()  # a late answer brings the reply
        elif result is LOST:
            self._lose(poll, electors)
        else:
            self.followers.compare(poll.ballots)

    def _settle(self, poll: Poll, winner: bytes, value: bytes | None) -> None:
        """Release the reply that has m ballots, and expel each replica that answered differently.

        ``winner`` is its tag; ``value`` is None if it was too long to be kept.
        """
        long_replies = poll.long_replies
        ballots = self.polls.stop_counting(poll, winner)
        if poll.sent & self.members.watched:
            self.comparisons.settled(poll, value, ballots, long_replies or {})
        if poll.record is not None:
            self.followers.settled(poll.seq, ballots, waiting=self.checkpoints.votes_wait)
        dissent, agreed, active = list[int](), 0, self.members.active
        for index, ballot in ballots.items():
            if ballot != winner:
                dissent.append(index)
            elif index in active:
                agreed += 1
        if poll.entry is not None:
            poll.entry.tag = winner
            once = poll.entry.record.once
            # A full disk has no room for long replies.  The entry must be written nevertheless: an
            # unsettled write could be voided after a restart, although its reply was released.
            full = self.journal.full and len(winner) == TAG_SIZE
            self.journal.append(Settled(poll.seq, winner, None if once is None or full else value))
            if once is not None:
                self.dedup.settle(once, value, poll.seq)
        if poll.record is not None and value is not None:
            masked = self.members.voters(dissent) if dissent else ()
            release = Release(0, poll.seq, value, agreed, masked)
            self.gate.release_when_durable(poll, release)
        elif poll.tickets:
            self.gate.fail(poll, Failure.OUTCOME_UNKNOWN, NOT_KEPT)
        for index in dissent:
            self.incarnations.dissented(self.members[index], poll.seq)
        if not poll.unanswered:
            self.polls.open.pop(poll.seq, None)
        if poll.record is None:
            self.checkpoints.digest_voted(poll.seq, winner, ballots)

    def _lose(self, poll: Poll, electors: list[int]) -> None:
        """Act on a poll that no value can win any more.

        If the active replicas contradict each other, none of them can be trusted.  All are
        expelled, to be restored from checkpoint and log.

        Otherwise too few are left of the replicas that it was sent to.  A write stays in the order,
        since replicas that join later are sent it too; its client learns that the outcome is
        unknown.  A read or a marker changes nothing: it is dropped and ordered again.
        """
        active, record = self.members.active, poll.record
        said = {poll.ballots[index] for index in electors if index in poll.ballots}
        if len(said) > 1 and len(electors) == len(active):
            for index in active:
                reason = "no majority: replicas disagree"
                self.incarnations.expel(self.members[index], reason, poll.seq)
        elif record is None:
            self.polls.drop(poll)
            self.checkpoints.drop(poll)
        elif record.read_only:
            if poll.killed:
                self.suspects.add(record.request)
            self._order_again(poll)
        else:
            detail = "too few replicas are left to agree on a reply"
            self.gate.fail(poll, Failure.OUTCOME_UNKNOWN, detail)

    def _judge(self, poll: Poll) -> None:
        """Take the result of a read's trial: the one replica has answered it, or is lost."""
        if not poll.unanswered:
            if self.suspects.end_trial(answered=bool(poll.ballots), killed=poll.killed):
                self._effects.append(ev.Voided(poll.seq))
            self._order_again(poll)

    def _order_again(self, poll: Poll) -> list[int]:
        """Drop a read and order it again: all replicas that are live now can vote on it.

        Return the clients that wait for it.
        """
        record = poll.record
        assert record is not None
        self.polls.drop(poll)
        tickets = self.polls.take_tickets(poll)
        for ticket in tickets:
            self._submit(ev.Submit(ticket, record.request, record.caller, read_only=True))
        return tickets

    def _recount(self) -> None:
        """Count all unsettled polls again, oldest first, since the electors have changed."""
        polls = self.polls
        polls.split()
        for poll in [poll for poll in polls.open.values() if poll.winner is None]:
            if poll.seq in polls.open and poll.winner is None:
                self._decide(poll)
            if polls.recount:
                return
            if poll.seq in polls.open and poll.winner is None and self.intake.is_held_up(poll):
                for ticket in self._order_again(poll):
                    if ticket in polls.tickets:  # else a suspect, and refused
                        polls.tickets[ticket].retried = True

    # ---------------------------------------------------- checkpoints and time

    def _fetched(self, event: ev.Fetched) -> None:
        """Take a state that has arrived; feed learners, for the log has changed."""
        if not self.checkpoints.take_state(event):
            reason = "the state it sent does not hash to the voted digest"
            self.incarnations.expel(self.members[event.replica], reason, event.seq)
        self.incarnations.feed_all()

    def _tick(self, event: ev.Tick) -> None:
        """Take the time; check for replicas that hang, lag or are overdue."""
        self._change_clock(self._time.tick(event.now, event.wall_ns))
        gap = event.now - self._watched
        if not 0 < gap < WATCH_INTERVAL:
            self._watched = event.now
            self.incarnations.watch_checkpoint(gap)
            self.incarnations.watch(gap)
        self.followers.check()
        self._submit_held()

    def _change_clock(self, change: ClockChange) -> None:
        """Report that the wall clock was set; journal a step of agreed time, which ages nothing."""
        if change.step_ns:
            self.log.advance(time_ns=self._time.agreed_ns)
            self.dedup.step(change.step_ns)
            self.journal.append(ClockStep(self._time.agreed_ns, change.step_ns))
        if any(change):
            self._effects.append(ev.ClockChanged(change.wall_ns, change.step_ns))

    _handlers: ClassVar[dict[type[Event], Callable[[Any, Any], object]]] = {
        ev.Submit: _submit,
        ev.SubmitAll: _submit_all,
        ev.Cancel: lambda engine, event: engine.intake.cancel(event),
        ev.OpenSession: lambda engine, event: engine.intake.open_session(event),
        ev.TakeCheckpoint: lambda engine, event: engine.checkpoints.request(),
        ev.ChangeRoles: lambda engine, event: engine.roles.change(event),
        ev.Drain: lambda engine, event: engine.intake.drain(event),
        ev.Synced: lambda engine, event: engine.gate.sync(event),
        ev.Full: lambda engine, event: engine.journal.set_full(event),
        ev.Greeted: lambda engine, event: engine.incarnations.greet(event),
        ev.Readmit: lambda engine, event: engine.incarnations.readmit(event),
        ev.Expel: lambda engine, event: engine.incarnations.expel_on_request(event),
        ev.Piece: lambda engine, event: engine.checkpoints.piece(event),
        ev.FetchFailed: lambda engine, event: engine.checkpoints.fetch_failed(event),
        ev.Fetched: _fetched,
        ev.Tick: _tick,
    }
    _replica_handlers: ClassVar[dict[type[Event], Callable[[Any, Replica, Any], None]]] = {
        ev.Answered: _answered,
        ev.AnsweredAll: _answered_all,
        ev.Digested: _digested,
        ev.Restored: lambda engine, replica, event: engine.incarnations.restored(replica, event),
        ev.Heard: lambda engine, replica, event: engine.incarnations.heard(replica, event),
        ev.RefusedOrder: lambda engine, replica, event: engine.incarnations.refused(replica, event),
        ev.Lost: lambda engine, replica, event: engine.incarnations.lost(replica, event),
        ev.ProtocolViolation: lambda engine, replica, event: engine.incarnations.expel(
            replica, event.reason, 0
        ),
    }
