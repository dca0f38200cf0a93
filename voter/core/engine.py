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
from voter.core.events import Effect, Event, Failure
from voter.core.lifecycle import Lifecycle
from voter.core.limits import Limits
from voter.core.order import TAG_SIZE, tag
from voter.core.replica import Replica, State
from voter.core.vote import LOST, WON, count

__all__ = ["Engine", "Limits"]


class Engine(Lifecycle):
    """The pure core of the voter.  Feed it events in the order they happened; carry out the
    effects in order.
    """

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

    def _submit(self, event: ev.Submit) -> None:
        """Order a request and send it to all live replicas, or refuse it before it has a place."""
        problem = self._why_not(event)
        if problem is not None:
            self._effects.append(ev.Fail(event.ticket, *problem))
            return
        record, entry = self.log.order(event.request, event.caller, event.read_only, self._wall_ns)
        poll = Poll(record.seq, event.ticket, record, entry)
        self._open[record.seq] = poll
        self._unsettled += 1
        size = poll.size = len(event.request)
        self._pending_bytes += size
        self._tickets[event.ticket] = poll
        live = self.members.live
        for index in live:
            self._expect(self.members.replicas[index], poll, size)
        self._effects.append(ev.Send(live, record))
        self._since_marker += 1
        if self._mark is None and (
            self._since_marker >= self.limits.marker_every or self.log.bytes > self._mark_at
        ):
            self._place_marker()

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
        if self._unsettled >= limits.pending or self._pending_bytes > limits.pending_bytes:
            return Failure.OVERLOAD, "too many requests wait for their vote"
        if self.log.bytes > limits.log_bytes and not event.read_only:
            return Failure.OVERLOAD, "the log is full: no checkpoint could be voted and fetched yet"
        return None

    def _cancel(self, event: ev.Cancel) -> None:
        poll = self._tickets.pop(event.ticket, None)
        if poll is not None:
            poll.ticket = None

    # --------------------------------------------------------------- votes

    def _answered(self, event: ev.Answered) -> None:
        self._cast(event.replica, event.epoch, event.seq, event.reply, is_digest=False)

    def _digested(self, event: ev.Digested) -> None:
        self._cast(event.replica, event.epoch, event.seq, event.digest, is_digest=True)

    def _cast(self, index: int, epoch: int, seq: int, value: bytes, *, is_digest: bool) -> None:
        """Take a replica's reply (or digest) as its ballot for ``seq``."""
        replica = self.members.replicas[index]
        if epoch != replica.epoch:
            return
        outstanding = replica.outstanding
        if not outstanding or outstanding[0][0] != seq:
            self._convict(replica, "answered what was not asked (or out of order)", seq)
            return
        poll = self._open.get(seq)
        if poll is not None and is_digest is not (poll.record is None):
            self._convict(replica, "answered a request with a digest, or the other way round", seq)
            return
        replica.outstanding_bytes -= outstanding.popleft()[1]
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
            self._teach(replica)

    def _keep(self, poll: Poll, ballot: bytes, value: bytes) -> None:
        """Hold a long reply until its poll is settled, as far as the limit for all of them allows.

        Only a vote that is won by a change of membership needs it: any other is won by a reply that
        has just come.
        """
        if poll.value is not None or poll.seq not in self._open:
            return
        if len(value) + self._kept_bytes <= self.limits.ballot_bytes:
            kept = poll.kept = poll.kept or {}
            if kept.setdefault(ballot, value) is value:
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
            if value is not None or poll.ticket is None or not poll.due:
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
        if poll.ticket is not None and value is not None:
            self._tickets.pop(poll.ticket, None)
            released = ev.Release(poll.ticket, poll.seq, value, agreed, tuple(dissent))
            self._effects.append(released)
            poll.ticket = None
        elif poll.ticket is not None:
            self._fail(poll, Failure.OUTCOME_UNKNOWN, "executed; its reply was too long to be kept")
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
        self._drop(poll)
        if record is None:
            self._since_marker = self.limits.marker_every
        elif poll.ticket is not None:
            del self._tickets[poll.ticket]
            self._submit(ev.Submit(poll.ticket, record.request, record.caller, read_only=True))

    def _fail(self, poll: Poll, failure: str, detail: str) -> None:
        """Tell the client of a poll that there will be no reply."""
        if poll.ticket is not None:
            self._tickets.pop(poll.ticket, None)
            self._effects.append(ev.Fail(poll.ticket, failure, detail, poll.seq))
            poll.ticket = None

    def _review(self) -> None:
        """The electors have changed: count all unsettled polls again, oldest first."""
        for poll in [poll for poll in self._open.values() if poll.value is None]:
            if poll.seq in self._open and poll.value is None:
                self._decide(poll)
            if self._dirty:
                return

    _handlers: ClassVar[dict[type[Event], Callable[[Any, Any], None]]] = {
        ev.Submit: _submit,
        ev.Answered: _answered,
        ev.Digested: _digested,
        ev.Cancel: _cancel,
        ev.Tick: Lifecycle._tick,
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
    }
