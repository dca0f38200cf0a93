"""The engine: ``receive(event) -> effects``.  All of the voter's decisions are made here.

Follow one request: ``_submit`` gives it a place (order.py) and sends it to the live replicas;
``_answered`` casts each reply as a ballot; ``_decide`` counts (vote.py); ``_settle`` releases.
How replicas come and go is in ``lifecycle.py``, which this class builds on.

Promises (DESIGN.md; each is tested by name): Agreement, Order, Fail-safe, Liveness, Bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from voter.core import events as ev
from voter.core.books import Poll
from voter.core.dedup import Finding
from voter.core.durable import Past
from voter.core.entries import Record, Settled
from voter.core.events import Effect, Event, Failure
from voter.core.lifecycle import Lifecycle
from voter.core.limits import Limits
from voter.core.order import TAG_SIZE, tag
from voter.core.replica import Replica, State
from voter.core.vote import LOST, WON, count

__all__ = ["Engine", "Limits"]

_NOT_KEPT = "executed; its reply was too long to be kept"
_REFUSALS = {
    Finding.EXPIRED: Failure.SESSION_EXPIRED,
    Finding.REUSED: Failure.KEY_REUSED,
    Finding.CROWDED: Failure.OVERLOAD,
}


class Engine(Lifecycle):
    """The pure core of the voter.  Feed it events in the order they happened; carry out the
    effects in order.
    """

    def begin(self, past: Past) -> list[Effect]:
        """Take up the order where the journal leaves it, before any event.  Only if journaled."""
        self._recall(past)
        self._reserve_places()
        effects, self._effects = self._effects, []
        return effects

    def receive(self, event: Event) -> list[Effect]:
        """Take one event; return what is to be done about it, in order."""
        self._handlers[type(event)](self, event)
        while self._dirty:
            self._dirty = False
            self._review()
        effects = self._effects
        self._effects = []
        return effects

    # ------------------------------------------------------------ requests

    def _submit(self, event: ev.Submit, *, passed: bool = False) -> None:
        """Order a request and send it to all live replicas, or refuse it before it has a place.

        A write may have to wait while a learner is far behind; ``passed``: it has waited.
        """
        once = None if event.read_only else event.once
        if once is not None and self._is_retry(event, once):
            return
        problem = self._why_not(event)
        if problem is not None:
            self._effects.append(ev.Fail(event.ticket, *problem))
            return
        if not event.read_only and (self._waiting or not self._throttle.spend()) and not passed:
            self._waiting[event.ticket] = event
            self._pending_bytes += len(event.request)
            return
        record, entry = self.log.order(
            event.request, event.caller, event.read_only, self._wall_ns, once
        )
        poll = Poll(record.seq, event.ticket, record, entry)
        if entry is not None:
            self._append(record)
            self._written = self._position
            if once is not None:
                self.once.note(once, event.caller, record.seq, record.time_ns)
        poll.needs = self._written
        self._open[record.seq] = poll
        self._unsettled += 1
        size = poll.size = len(event.request)
        self._pending_bytes += size
        self._tickets[event.ticket] = poll
        live = self.members.live
        for index in live:
            self._expect(self.members.replicas[index], poll, size)
        self._effects.append(ev.Send(live, record))
        self._reserve_places()
        self._since_marker += 1
        if self._mark is None and self._is_marker_due():
            self._place_marker()

    def _let_pass(self) -> None:
        """Order writes that wait, as far as the throttle lets them."""
        while self._waiting and self._throttle.spend():
            ticket, event = next(iter(self._waiting.items()))
            del self._waiting[ticket]
            self._pending_bytes -= len(event.request)
            self._submit(event, passed=True)

    def _tick(self, event: ev.Tick) -> None:
        """Time passes."""
        super()._tick(event)
        if self._waiting:
            self._let_pass()

    def _is_retry(self, event: ev.Submit, once: ev.Once) -> bool:
        """Answer a request that was ordered before, or never may be; tell whether that was so.

        What is settled is released again, also while nothing new is taken; what is under way is
        joined.
        """
        now = max(self._wall_ns, self.log.time_ns)
        found = self.once.look(once, event.caller, now)
        if found.finding is Finding.NEW:
            return False
        refusal = _REFUSALS.get(found.finding)
        held = self._held.get(found.seq) if refusal is None else None
        poll = held[0] if held else self._open.get(found.seq)
        if refusal is not None:
            self._effects.append(ev.Fail(event.ticket, refusal, found.words, found.seq))
        elif held is None and found.reply is not None:
            released = ev.Release(event.ticket, found.seq, found.reply, 0, (), replayed=True)
            self._effects.append(released)
        elif poll is not None and (held or poll.value is None):
            poll.tickets.append(event.ticket)
            self._tickets[event.ticket] = poll
            if not held:
                self._decide(poll)  # if its vote cannot be met now, that is said at once
        else:
            failure = ev.Fail(event.ticket, Failure.OUTCOME_UNKNOWN, _NOT_KEPT, found.seq)
            self._effects.append(failure)
        return True

    def _why_not(self, event: ev.Submit) -> tuple[str, str] | None:
        """Why a request may not be ordered now (failure and words), or None if it may."""
        limits = self.limits
        if self._draining:
            return Failure.NOT_EXECUTED, "the node is draining: no new requests are taken"
        if not self.members.can_vote:
            return Failure.NOT_EXECUTED, (
                f"no majority: {len(self.members.active)} of {self.members.policy.of} replicas "
                f"are active, {self.members.policy.need} must agree"
            )
        if self.pending >= limits.pending or self._pending_bytes > limits.pending_bytes:
            return Failure.OVERLOAD, "too many requests wait for their vote"
        if self._full and not event.read_only:
            return Failure.NOT_EXECUTED, f"nothing can be written down: {self._full}"
        if not self._has_place():
            return Failure.OVERLOAD, "the journal is behind: the disk does not keep up"
        if self.grown > limits.log_bytes and not event.read_only:
            return Failure.OVERLOAD, "the log is full: no checkpoint could be voted and fetched yet"
        return None

    def _cancel(self, event: ev.Cancel) -> None:
        waits = self._waiting.pop(event.ticket, None)
        if waits is not None:
            self._pending_bytes -= len(waits.request)
        poll = self._tickets.pop(event.ticket, None)
        if poll is not None:
            poll.tickets.remove(event.ticket)

    # --------------------------------------------------------------- votes

    def _answered(self, event: ev.Answered) -> None:
        """Take a replica's reply: it must be to the oldest request that it has not answered."""
        replica, seq = self.members.replicas[event.replica], event.seq
        if event.epoch != replica.epoch:
            return
        outstanding = replica.outstanding
        if not outstanding or outstanding[0][0] != seq:
            self._convict(replica, "answered what was not asked (or out of order)", seq)
            return
        replica.outstanding_bytes -= outstanding.popleft()[1]
        self._cast(replica, seq, event.reply)

    def _digested(self, event: ev.Digested) -> None:
        """Take a replica's digest: it comes when it is ready, replies may overtake it."""
        replica = self.members[event.replica]
        if event.epoch == replica.epoch and self._tells(replica, event.seq):
            self._cast(replica, event.seq, event.digest)

    def _cast(self, replica: Replica, seq: int, value: bytes) -> None:
        """Take a replica's reply (or digest) as its ballot for ``seq``."""
        poll, index = self._open.get(seq), replica.index
        replica.heard = self._now
        if poll is None:
            self._check_replayed(replica, seq, value)
        elif poll.value is not None:
            poll.due -= 1
            if not poll.due:
                del self._open[seq]
            self._compare(replica, poll, tag(value))
        else:
            poll.due -= 1
            ballot = poll.ballots[index] = tag(value)
            if replica.state is State.ACTIVE or not poll.due:
                self._decide(poll, ballot, value)
            if ballot is not value:
                self._keep(poll, ballot, value)
        if replica.state is State.LEARNER:
            self._throttle.earn(index)
            self._teach(replica)
            if self._waiting:
                self._let_pass()

    def _keep(self, poll: Poll, ballot: bytes, value: bytes) -> None:
        """Hold a long reply until its poll is settled, as far as the limit for all of them allows.

        Only a vote that is won by a change of membership needs it: any other is won by a reply that
        has just come.
        """
        if poll.value is not None or poll.seq not in self._open:
            return
        if len(value) + self._kept_bytes <= self.limits.ballot_bytes:
            kept = poll.kept = poll.kept or {}
            if ballot not in kept:
                kept[ballot] = value
                self._kept_bytes += len(value)

    def _decide(self, poll: Poll, cast: bytes = b"", value: bytes | None = None) -> None:
        """Count the ballots of a poll that is not settled, and act if it is won or lost.

        ``cast`` is the ballot that has just come and ``value`` its reply, unless it is the electors
        that have changed.
        """
        electors = [index for index in self.members.active if poll.sent >> index & 1]
        result, winner = count(poll.ballots, electors, self.members.policy.need)
        if result is WON and winner is not None:
            if value is None or winner != cast:
                kept = poll.kept or {}
                value = kept.get(winner) if len(winner) == TAG_SIZE else winner
            wanted = poll.tickets or (poll.record is not None and poll.record.once is not None)
            if value is not None or not wanted or not poll.due:
                self._settle(poll, winner, value)  # else: one that has still to answer brings it
        elif result is LOST:
            self._lose(poll, electors)

    def _settle(self, poll: Poll, winner: bytes, value: bytes | None) -> None:
        """A value has m ballots: release it, and convict whoever said otherwise.

        ``winner`` is its tag; ``value`` is None if it was too long to be kept.
        """
        ballots = poll.ballots
        poll.ballots = {}
        poll.value = winner
        self._unsettled -= 1
        self._pending_bytes -= poll.size
        if poll.kept:
            self._forget_kept(poll)
        dissent: list[int] = []
        agreed = 0
        active = self.members.active
        for index, ballot in ballots.items():
            if ballot != winner:
                dissent.append(index)
            elif index in active:
                agreed += 1
        if poll.entry is not None:
            poll.entry.tag = winner
            once = poll.entry.record.once
            # A full disk has no room for long replies.  The entry itself must be there: an open
            # vote could still be voided after a restart, although its reply was released.
            kept = None if once is None or (self._full and len(winner) == TAG_SIZE) else value
            self._append(Settled(poll.seq, winner, kept))
            if once is not None:
                self.once.settle(once, value, poll.seq)
        if poll.record is not None and value is not None:
            self._let_out(poll, ev.Release(0, poll.seq, value, agreed, tuple(dissent)))
        elif poll.tickets:
            self._fail(poll, Failure.OUTCOME_UNKNOWN, _NOT_KEPT)
        for index in dissent:
            self._dissented(self.members.replicas[index], poll.seq)
        if not poll.due:
            self._open.pop(poll.seq, None)
        if poll.record is None:
            self._marker_voted(poll.seq, winner, ballots)

    def _compare(self, replica: Replica, poll: Poll, ballot: bytes) -> None:
        """A ballot that came after the release: it must say the same."""
        if ballot != poll.value:
            self._dissented(replica, poll.seq)
        if poll.record is None:
            self._keeper_told(replica, poll.seq, agrees=ballot == poll.value)

    def _lose(self, poll: Poll, electors: list[int]) -> None:
        """No value can get m ballots any more.

        If that is because the active replicas contradict each other, none of them can be trusted:
        all are expelled, to be rebuilt from checkpoint and log.  Otherwise too few of those that
        it was sent to are left.  Then a write, which all that come later are sent too, stays in
        the order, and its client is told that the outcome is unknown.  A read or a marker, which
        changes nothing, is dropped, and ordered again if those that came since can vote on it.
        """
        active = self.members.active
        said = {poll.ballots[index] for index in electors if index in poll.ballots}
        if len(said) > 1 and len(electors) == len(active):
            for index in active:
                self._convict(
                    self.members.replicas[index], "no majority: replicas disagree", poll.seq
                )
            return
        record = poll.record
        if record is not None and not record.read_only:
            detail = "too few replicas are left to agree on a reply"
            self._fail(poll, Failure.OUTCOME_UNKNOWN, detail)
            return
        if record is None:
            self._drop(poll)
            self._since_marker = self.limits.marker_every
        else:
            self._read_again(poll, record)

    def _read_again(self, poll: Poll, record: Record) -> None:
        """Order a read anew: all that are live now can vote on it."""
        self._drop(poll)
        for ticket in poll.tickets:
            del self._tickets[ticket]
            self._submit(ev.Submit(ticket, record.request, record.caller, read_only=True))

    def _can_be_hedged(self, poll: Poll, record: Record) -> bool:
        """Whether one silent replica can hold a read up although others could answer it.

        They are active, and the read was ordered before they were; m of those that have it must
        answer.  A write is sent to them from the log; a read is ordered again, once at most: a
        replica that comes and goes must not hold it up for ever.
        """
        members = self.members
        have = sum(poll.sent >> index & 1 for index in members.active)
        return (
            record.read_only
            and not poll.again
            and have <= members.policy.need < len(members.active)
            and self._why_not(ev.Submit(0, record.request, read_only=True)) is None
        )

    def _fail(self, poll: Poll, failure: str, detail: str) -> None:
        """Tell the client of a poll that there will be no reply."""
        for ticket in poll.tickets:
            self._tickets.pop(ticket, None)
            self._effects.append(ev.Fail(ticket, failure, detail, poll.seq))
        poll.tickets = []

    def _review(self) -> None:
        """The electors have changed: count all unsettled polls again, oldest first."""
        for poll in [poll for poll in self._open.values() if poll.value is None]:
            if poll.seq in self._open and poll.value is None:
                self._decide(poll)
            if self._dirty:
                return
            record, waits = poll.record, poll.seq in self._open and poll.value is None
            if waits and record is not None and self._can_be_hedged(poll, record):
                self._read_again(poll, record)
                for ticket in poll.tickets:
                    self._tickets[ticket].again = True

    _handlers: ClassVar[dict[type[Event], Callable[[Any, Any], None]]] = {
        ev.Submit: _submit,
        ev.Answered: _answered,
        ev.Digested: _digested,
        ev.Cancel: _cancel,
        ev.Tick: _tick,
        ev.Greeted: Lifecycle._greeted,
        ev.Restored: Lifecycle._restored,
        ev.Fetched: Lifecycle._fetched,
        ev.FetchFailed: Lifecycle._fetch_failed,
        ev.Piece: Lifecycle._piece,
        ev.Heard: Lifecycle._heard,
        ev.Lost: Lifecycle._lost,
        ev.Misbehaved: Lifecycle._misbehaved,
        ev.RefusedOrder: Lifecycle._refused_order,
        ev.Admit: Lifecycle._pardon,
        ev.Expel: Lifecycle._expel,
        ev.Drain: Lifecycle._drain,
        ev.Synced: Lifecycle._synced_upto,
        ev.Full: Lifecycle._filled,
        ev.OpenSession: Lifecycle._open_session,
    }
