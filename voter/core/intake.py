"""Intake: how a client's request is ordered, and why it may not be.

Before a request gets its sequence number, three checks are made.  What they refuse was not
executed.

1. **Retries** (dedup.py).  A request with a session number or an Idempotency-Key that was ordered
   before is never ordered again.  If its reply is known, the reply is released again, even while
   no new requests are taken.  If its poll is open, or its reply waits for the journal, the client
   joins those that wait.
2. **Refusals.**  The node drains, has no majority or holds too much, or the disk is full or behind.
3. **The throttle** (throttle.py) may hold a write back while a learner catches up.

Then the request is ordered (order.py), journaled if it is a write, and sent to all live replicas.
Requests that come together are checked and ordered one by one, and sent as a batch (batch.py).
The effects come in this order, so the runner writes the journal before it sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from guests.protocol.wire import MOST_ORDERS
from voter.core import events as ev
from voter.core.batch import Batch
from voter.core.checkpoints import Checkpoints
from voter.core.dedup import DedupTable, Finding, Found
from voter.core.engine_time import EngineTime
from voter.core.entries import Once, Opened, Record
from voter.core.events import Effect, Fail, Failure, Release
from voter.core.journal_state import JournalState
from voter.core.limits import Limits
from voter.core.membership import Membership
from voter.core.order import ENTRY_OVERHEAD, LogEntry, OrderLog
from voter.core.poll import Poll
from voter.core.polls import Polls
from voter.core.release_gate import ReleaseGate
from voter.core.suspects import Suspects, Verdict
from voter.core.throttle import Throttle

__all__ = ["NOT_KEPT", "Intake"]

BATCH_BYTES = 1 << 16
"""Bytes of the requests and callers of a batch, unless one alone has more."""
_LOG_FULL = "the log is full: no checkpoint could be voted and fetched yet"
_SUSPECT = "replicas were lost with this read: it waits to be tried on one of them alone"
NOT_KEPT = "executed; its reply was too long to keep"


@dataclass
class Intake:
    """The way of clients' requests into the order."""

    limits: Limits
    time: EngineTime
    log: OrderLog
    journal: JournalState
    members: Membership
    polls: Polls
    gate: ReleaseGate
    dedup: DedupTable
    throttle: Throttle
    checkpoints: Checkpoints
    suspects: Suspects
    effects: list[Effect]
    draining: bool = False

    @property
    def pending(self) -> int:
        """Requests that are not ordered yet, not settled, or not released."""
        return self.polls.unsettled + self.gate.pending + len(self.throttle.held)

    def submit(self, event: ev.Submit, *, held: bool = False) -> Poll | None:
        """Order a request and send it to all live replicas, or refuse it, or hold it back.

        Return the open poll that it joins, if it is a retry.  ``held``: the throttle has held the
        request back before, and lets it pass now.
        """
        once = None if event.read_only else event.once
        if once is not None:
            found = self.dedup.lookup(once, event.caller, self._agreed_time())
            if found.finding is not Finding.NEW:
                return self._answer_retry(event, found)
        verdict = self.suspects.judge(event.request) if event.read_only else Verdict.FREE
        if (problem := self.find_problem(event.read_only)) is not None:
            failure, detail, wait = problem
            self.effects.append(Fail(event.ticket, failure, detail, wait=wait))
        elif verdict is Verdict.WAIT:
            self.effects.append(Fail(event.ticket, Failure.NOT_EXECUTED, _SUSPECT))
        elif event.read_only or (not self.throttle.held and self.throttle.spend()) or held:
            self._order(event, once, verdict)
        else:
            self.throttle.hold(event)
        return None

    def submit_all(self, events: list[ev.Submit]) -> list[Poll]:
        """Order requests and send them to all live replicas, as ``submit`` does for one.

        Those that are ordered without further ado are sent in batches.  Return the open polls that
        retries join.
        """
        joined: list[Poll] = []
        batch, frame = Batch(), 0
        # Usually there is room for all of them: then it is checked once.
        sizes = sum(len(event.request) + ENTRY_OVERHEAD for event in events)
        free = self.find_problem(False, len(events), sizes) is None
        for event in events:
            read_only, size = event.read_only, len(event.request)
            once = None if read_only else event.once
            count, frame = len(batch.records), frame + size + len(event.caller)
            if count == MOST_ORDERS or frame > BATCH_BYTES:
                batch, count, frame = self._send_batch(batch), 0, size + len(event.caller)
            if (
                (self.suspects.reads if read_only else self.throttle.on or self.throttle.held)
                or (once is not None and self._is_known(once, event.caller))
                or (not free and self.find_problem(read_only, count, batch.size) is not None)
            ):
                batch = self._send_batch(batch)
                if (poll := self.submit(event)) is not None:
                    joined.append(poll)
                continue
            record, entry = self._assign(event, once)
            batch.records.append(record)
            batch.entries.append(entry)
            batch.tickets.append(event.ticket)
            batch.size += size
        self._send_batch(batch)
        return joined

    def _is_known(self, once: Once, caller: bytes) -> bool:
        return self.dedup.lookup(once, caller, self._agreed_time()).finding is not Finding.NEW

    def _send_batch(self, batch: Batch) -> Batch:
        """Open the poll on requests that were just ordered, and send them; return an empty batch.

        One request alone is no batch.
        """
        records, position = batch.records, self.journal.last_write
        if len(records) > 1:
            batch.seq, batch.needed_position = records[0].seq, position
            self.polls.add_batch(batch)
            self.members.send_batch(batch)
        elif records:
            (record,), (entry,) = records, batch.entries
            poll = Poll(record.seq, record, entry, batch.tickets, position, batch.size)
            self.polls.add(poll)
            self.members.send_to_live(poll, record)
        if records:
            self.journal.reserve()
            self.checkpoints.count_requests(len(records))
        return Batch()

    def _agreed_time(self) -> int:
        return max(self.time.agreed_ns, self.log.time_ns)

    def _order(self, event: ev.Submit, once: Once | None, verdict: Verdict) -> None:
        """Give a request its sequence number, and send it to all live replicas.

        A read that is a suspect is sent to one active replica instead.
        """
        record, entry = self._assign(event, once, void=verdict is Verdict.VOID)
        journal, polls = self.journal, self.polls
        size = len(event.request)
        poll = Poll(record.seq, record, entry, [event.ticket], journal.last_write, size)
        polls.add(poll)
        if verdict is Verdict.TRY:
            poll.trial = poll.retried = True
            index = self.suspects.begin_trial(event.request)
            self.members.send_to(self.members[index], poll, record)
        else:
            self.members.send_to_live(poll, record)
        journal.reserve()
        self.checkpoints.count_requests(1)

    def _assign(
        self, event: ev.Submit, once: Once | None, *, void: bool = False
    ) -> tuple[Record, LogEntry | None]:
        """Give a request its place in the order; journal it, if it is a write."""
        record, entry = self.log.order(
            event.request, event.caller, event.read_only, self.time.agreed_ns, once, void=void
        )
        if entry is not None:
            self.journal.append(record)
            if once is not None:
                self.dedup.record(once, event.caller, record.seq, record.time_ns)
        return record, entry

    def _answer_retry(self, event: ev.Submit, found: Found) -> Poll | None:
        """Refuse or answer a retry, or let it join its poll; return the poll if it is open."""
        self.polls.split()
        self.gate.split()
        refused = found.finding not in (Finding.PENDING, Finding.DONE)
        waiting = self.gate.replies.get(found.seq) if not refused else None
        poll = waiting[0] if waiting else self.polls.open.get(found.seq)
        if refused:
            failure = found.finding.value
            self.effects.append(Fail(event.ticket, failure, found.detail, found.seq, found.wait))
        elif waiting is None and found.reply is not None:
            self.effects.append(Release(event.ticket, found.seq, found.reply, 0, (), replayed=True))
        elif poll is not None and (waiting or poll.winner is None):
            self.polls.join(poll, event.ticket)
            return None if waiting else poll
        else:
            failure = Failure.OUTCOME_UNKNOWN
            self.effects.append(Fail(event.ticket, failure, NOT_KEPT, found.seq))
        return None

    def find_problem(
        self, read_only: bool, requests: int = 0, size: int = 0
    ) -> tuple[str, str, float] | None:
        """Return why no request may be ordered now (as in Fail), or None if one may.

        ``requests`` of together ``size`` bytes are ordered before it, and have no poll yet.
        """
        limits, members, journal = self.limits, self.members, self.journal
        if self.draining:
            return Failure.NOT_EXECUTED, "the node is draining: no new requests are taken", inf
        if not members.can_vote:
            return (
                Failure.NOT_EXECUTED,
                (
                    f"no majority: {len(members.active)} of {members.policy.of} replicas "
                    f"are active, {members.policy.need} must agree"
                ),
                0.0,
            )
        if (
            self.pending + requests >= limits.pending
            or self.polls.pending_bytes + self.throttle.held_bytes + size > limits.pending_bytes
        ):
            return Failure.OVERLOAD, "too many requests wait for their vote", 0.0
        if journal.full and not read_only:
            return Failure.NOT_EXECUTED, f"the journal cannot be written: {journal.full}", inf
        if not journal.has_reserved_seq(requests):
            return Failure.OVERLOAD, "the journal is behind: the disk does not keep up", 0.0
        if not read_only and journal.reclaimable + size > limits.log_bytes:
            return Failure.OVERLOAD, _LOG_FULL, 0.0
        return None

    def is_held_up(self, poll: Poll) -> bool:
        """Whether one silent replica can delay a read although others could answer it.

        The others became active after the read was ordered, so they do not have it, and at most m
        replicas do.  (A write is sent to them from the log.)  Such a read is ordered again, but
        only once: a replica that comes and goes must not delay it for ever.
        """
        members = self.members
        have = sum(poll.sent >> index & 1 for index in members.active)
        return (
            poll.record is not None
            and poll.record.read_only
            and not poll.retried
            and have <= members.policy.need < len(members.active)
            and self.find_problem(read_only=True) is None
        )

    def cancel(self, event: ev.Cancel) -> None:
        """Forget a client that no longer waits; what was ordered stays ordered."""
        self.throttle.cancel(event.ticket)
        self.polls.split()
        self.gate.split()
        self.polls.leave(event.ticket)

    def open_session(self, event: ev.OpenSession) -> None:
        """Open a session for a native client, under a name that was never used before."""
        problem = self.journal.full
        if self.draining:
            problem = "the node is draining"
        elif not self.journal.has_reserved_seq():
            problem = "the journal is behind"
        elif self.journal.reclaimable > self.limits.log_bytes:
            problem = _LOG_FULL
        if problem:
            text = f"no session can be opened: {problem}"
            self.effects.append(Fail(event.ticket, Failure.NOT_EXECUTED, text))
            return
        seq = self.journal.take_seq()
        session = seq.to_bytes(8) + self.log.token(seq)
        now = self._agreed_time()
        self.dedup.open(session, event.caller, now)
        self.journal.append(Opened(session, event.caller, now))
        self.gate.report_when_durable(ev.SessionOpened(event.ticket, session))

    def drain(self, _event: ev.Drain) -> None:
        """Order nothing new from now on."""
        self.draining = True
        self.members.followers.push()
