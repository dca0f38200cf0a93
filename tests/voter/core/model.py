"""A model of a node: the real engine, and replicas that are a few lines each.

The replicas do what the agent does: they apply requests in order, hold a history, keep and restore
states.  A test can make them faulty.  The node carries out the engine's effects, delivers the
replicas' messages when the test wants it, and checks the engine's promises at every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from typing import Any

from guests.protocol.wire import EMPTY_HISTORY, decode_replies, encode_replies
from voter.core import Engine, Limits, Policy
from voter.core import events as ev
from voter.core.batch import Batch
from voter.core.comparisons import KEPT_BYTES
from voter.core.entries import Record
from voter.core.events import Effect, Event, Failure
from voter.core.followers import HOLD_MOST, HOLD_TIME, WATCHED_TIME
from voter.core.poll import Poll
from voter.core.replica import Role, State

__all__ = ["FAULTS", "FIRST_CHANGE", "Node", "Replica", "apply", "digest_of", "make_engine"]

FAULTS = (
    "lie",  # its replies are wrong
    "lie-long",  # its replies are wrong and long
    "lie-digest",  # the digest of its state is wrong
    "lie-state",  # the state that it sends for a checkpoint is wrong
    "lie-restored",  # the digest after a restore is wrong
    "corrupt",  # its state is damaged
    "silent",  # it takes everything and sends nothing
    "wrong-seq",  # it answers what was not asked
    "twice",  # it answers twice
    "swap",  # it answers a request with a digest
    "refuse",  # it reports that it cannot apply a request
    "alive",  # it sends signs of life that were not requested
    "withhold",  # it votes, but never sends the state that it kept
    "no-digest",  # it votes, but never sends its digest
)


REPLIES = 50
"""Replies to writes that a replica keeps."""
FIRST_CHANGE = 1 << 32
"""The ticket of the first change of roles is the next one."""
HANG = 2.0
"""Seconds without progress after which a replica is lost in these tests."""


def make_engine(
    vote: str = "2/3",
    *,
    limits: Limits | None = None,
    observers: int = 0,
    spares: int = 0,
    follow: bool = False,
) -> Engine:
    """Return an engine with replicas g1 to gn: voters, then observers, then retired ones."""
    policy = Policy.parse(vote)
    names = [f"g{number + 1}" for number in range(policy.of + observers + spares)]
    others = [Role.OBSERVER] * observers + [Role.RETIRED] * spares
    return Engine(
        policy,
        names,
        secret=b"secret",
        limits=limits or Limits(hang=HANG, digest=HANG),
        roles=dict(zip(names[policy.of :], others, strict=True)),
        follow=follow,
    )


def digest_of(state: bytes | bytearray) -> bytes:
    """Return the digest of a state, as a service computes it."""
    return blake2b(state, digest_size=32).digest()


def with_digest(state: bytes) -> tuple[bytes, bytes]:
    """Return a state and its digest, as a link computes it."""
    return state, digest_of(state)


def apply(state: bytes, record: Record) -> tuple[bytes, bytes]:
    """Apply a record as a correct service does: return the state after it, and the reply.

    The state is a hash of all writes.  So a write that is left out, changed or applied twice shows
    in each later reply.  A request that begins with L has a long reply.  One that begins with P
    kills the replica that applies it.
    """
    if record.void:
        return state, b"voided"
    after = state
    if not record.read_only:
        after = blake2b(state + record.request + record.history, digest_size=12).digest()
    reply = after.hex().encode() + record.request[:8]
    return after, reply * 12 if record.request.startswith(b"L") else reply


class Replica:
    """A replica and its link, as the runner shows them to the engine."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.incarnation = 0
        self.fault: str | None = None
        self.slow = False  # its digests come when all else is done, or by ``send_digest``
        self.dead = False
        self.epoch = 0  # of its link; 0 if it has none
        self.held: list[tuple[float, Effect]] = []  # since when its link holds which orders
        self.inbox: deque[Effect] = deque()
        self.outbox: deque[Event] = deque()
        self.restart()

    def restart(self) -> None:
        """Begin a new incarnation, with an empty state and no link."""
        self.incarnation += 1
        self.state = b""
        self.last_seq = 0
        self.history = EMPTY_HISTORY
        self.fresh = True
        self.kept: tuple[int, bytes] | None = None
        self.replies: dict[int, tuple[bytes, bool, bytes]] = {}  # history, void, reply; by place
        self.dead = False
        self.applied: list[int] = []  # writes and reads, since the start or the last restore
        self.cut()

    def cut(self) -> None:
        """End the link; what was under way in it is lost."""
        self.epoch = 0
        self.held.clear()
        self.inbox.clear()
        self.outbox.clear()
        self.late_digest: ev.Digested | None = None  # not ready yet

    @property
    def replies_from(self) -> int:
        """The first write of those whose replies are still held (0: none)."""
        return next(iter(self.replies), 0)

    def push(self) -> None:
        """Send what the link holds."""
        self.inbox.extend(effect for _, effect in self.held)
        self.held.clear()

    @property
    def busy(self) -> bool:
        """Whether it has something to do or to send."""
        return bool(self.inbox or self.outbox or self.late_digest)

    def send_digest(self) -> None:
        """Send the digest that was not ready."""
        assert self.late_digest is not None
        if self.fault != "silent":
            self.outbox.extend(self._twist(self.late_digest))
        self.late_digest = None

    def work(self) -> None:
        """Take the next message, and put the answers into the outbox."""
        message = self.inbox.popleft()
        if self.fault == "silent":
            return
        if self.fault == "corrupt":
            self.state = b"corrupt %d" % self.index
        for event in self._act(message):
            self.outbox.extend(self._twist(event))

    def _act(self, message: Effect) -> Iterator[Event]:
        index, epoch = self.index, self.epoch
        if isinstance(message, ev.SendAll):
            replies, last = [], None
            for record in message.records:
                for last in self._act(ev.Send((index,), record)):
                    if isinstance(last, ev.Answered):
                        replies.append(last.reply)
                if self.dead or not isinstance(last, ev.Answered):
                    break
            if replies and not self.dead:
                first = message.records[0].seq
                yield ev.AnsweredAll(index, epoch, first, encode_replies(replies))
            if isinstance(last, ev.RefusedOrder):
                yield last
        elif isinstance(message, ev.Send):
            record = message.record
            if not record.read_only and record.seq <= self.last_seq:
                history, void, reply = self.replies.get(record.seq, (b"", False, b""))
                if (history, void) == (record.history, record.void):
                    yield ev.Answered(index, epoch, record.seq, reply)
                else:
                    yield ev.RefusedOrder(index, epoch, record.seq, "no reply to it is held")
                return
            if record.prev != self.history:
                yield ev.RefusedOrder(index, epoch, record.seq, "the history before is another")
                return
            self.fresh = False
            if record.request.startswith(b"P") and not record.void:
                self.dead = True
                return
            self.state, reply = apply(self.state, record)
            self.applied.append(record.seq)
            if not record.read_only:
                self.last_seq, self.history = record.seq, record.history
                self.replies[record.seq] = (record.history, record.void, reply)
                if len(self.replies) > REPLIES:
                    del self.replies[self.replies_from]
            yield ev.Answered(index, epoch, record.seq, reply)
        elif isinstance(message, ev.Mark):
            self.kept = (message.seq, self.state) if message.keeper == index else None
            self.late_digest = ev.Digested(index, epoch, message.seq, digest_of(self.state))
            if not self.slow:
                self.send_digest()
        elif isinstance(message, ev.Ping):
            yield ev.Heard(index, epoch)
        elif isinstance(message, ev.Restore):
            self.state, self.fresh, self.applied = bytes(message.state), False, []
            self.replies, self.late_digest = {}, None
            self.last_seq, self.history = message.seq, message.history
            yield ev.Restored(index, epoch, message.seq, digest_of(message.state))
        elif isinstance(message, ev.Fetch):
            if self.kept is None or self.kept[0] != message.seq:
                yield ev.FetchFailed(index, epoch, message.seq, "not kept")
            else:
                yield ev.Fetched(index, epoch, message.seq, *with_digest(self.kept[1]))

    def _twist(self, event: Any) -> Iterator[Event]:
        """Change an answer as the fault demands.  No two lying replicas send the same lie."""
        fault, index, epoch = self.fault, self.index, self.epoch
        lie = b"lie %d of %d" % (getattr(event, "seq", 0), index)
        if isinstance(event, ev.Answered):
            if fault == "lie":
                event = ev.Answered(index, epoch, event.seq, lie)
            elif fault == "lie-long":
                event = ev.Answered(index, epoch, event.seq, lie * 50)
            elif fault == "wrong-seq":
                event = ev.Answered(index, epoch, event.seq + 1, event.reply)
            elif fault == "swap":
                event = ev.Digested(index, epoch, event.seq, event.reply)
            elif fault == "refuse":
                event = ev.RefusedOrder(index, epoch, event.seq, "no")
            elif fault == "twice":
                yield event
        elif isinstance(event, ev.AnsweredAll):
            if fault == "lie":  # in one reply
                *replies, _ = decode_replies(event.replies)
                event = ev.AnsweredAll(index, epoch, event.seq, encode_replies([*replies, lie]))
            elif fault == "wrong-seq":
                event = ev.AnsweredAll(index, epoch, event.seq + 1, event.replies)
            elif fault == "cut-reply":  # two frames
                one, *others = decode_replies(event.replies)
                yield ev.AnsweredAll(index, epoch, event.seq, encode_replies([one]))
                event = ev.AnsweredAll(index, epoch, event.seq + 1, encode_replies(others))
            elif fault == "twice":
                yield event
        elif isinstance(event, ev.Digested):
            if fault == "lie-digest":
                event = ev.Digested(index, epoch, event.seq, digest_of(lie))
            elif fault == "no-digest":
                return
        elif isinstance(event, ev.Fetched):
            if fault == "lie-state":
                event = ev.Fetched(index, epoch, event.seq, *with_digest(lie))
            elif fault == "withhold":
                return
        elif isinstance(event, ev.Restored) and fault == "lie-restored":
            event = ev.Restored(index, epoch, event.seq + 1, lie)
        yield event
        if fault == "alive":
            yield ev.Heard(index, epoch)


class Node:
    """An engine and its replicas; the promises are checked at each step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.need = engine.members.policy.need
        self.replicas = [Replica(replica.index) for replica in engine.members]
        self.now = 100.0
        self.epochs = 0
        self.tickets = 0
        self.changes = 0  # of roles
        self.records: dict[int, Record] = {}
        self.expected: dict[int, bytes] = {}  # reply of a correct service, by place
        self.requests: dict[int, bytes] = {}
        self.open: set[int] = set()  # tickets without a result
        self.results: dict[int, ev.Release | ev.Fail] = {}
        self.checkpoints: list[int] = []
        self.batched: set[int] = set()  # places of requests that were sent in batches
        self._state = b""  # of the correct service
        # An independent record, to check the engine:
        self._states: list[str] = [replica.state for replica in engine.members]
        self.differences: list[ev.Differed] = []
        self.answers: dict[int, ev.RolesChanged | ev.RolesRefused] = {}  # to changes of roles
        self._values: dict[int, dict[int, bytes]] = {}
        self.tick(0.0)

    # ------------------------------------------------------------- inputs

    def feed(self, event: Event) -> list[Effect]:
        """Give the engine an event; check and carry out the effects."""
        self._record(event)
        effects = self.engine.receive(event)
        for effect in effects:
            self._carry_out(effect)
        self.check_bounds()
        return effects

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.feed(ev.Tick(self.now, int(self.now * 1e9)))

    def submit(self, request: bytes, *, read_only: bool = False) -> int:
        """Submit a request; return its ticket."""
        self.tickets += 1
        self.open.add(self.tickets)
        self.requests[self.tickets] = request
        before = self.engine.log.seq
        effects = self.feed(ev.Submit(self.tickets, request, b"me", read_only))
        effects = [effect for effect in effects if not isinstance(effect, ev.Push)]
        if isinstance(effects[0], ev.Fail):
            # Fail-safe: a refused request gets no place and is sent to nobody.
            assert effects[0].failure in (Failure.NOT_EXECUTED, Failure.OVERLOAD)
            assert self.engine.log.seq == before
            assert len(effects) == 1
        else:
            assert isinstance(effects[0], ev.Send)
        return self.tickets

    def submit_all(self, requests: list[tuple[bytes, bool]]) -> None:
        """Submit the requests (and whether each only reads) of one turn."""
        events = []
        for request, read_only in requests:
            self.tickets += 1
            self.open.add(self.tickets)
            self.requests[self.tickets] = request
            events.append(ev.Submit(self.tickets, request, b"me", read_only))
        self.feed(ev.SubmitAll(events))

    def cancel(self, ticket: int) -> None:
        """The client of a ticket no longer waits."""
        self.open.discard(ticket)
        self.feed(ev.Cancel(ticket))

    def connect(self, index: int) -> None:
        """Greet a replica that has no link."""
        replica = self.replicas[index]
        assert not replica.epoch
        if self.engine.members[index].role is Role.RETIRED:
            return  # its link does not connect
        self.epochs += 1
        replica.epoch = self.epochs
        self.feed(
            ev.Greeted(
                index,
                replica.epoch,
                replica.incarnation,
                replica.fresh,
                replica.last_seq,
                replica.history,
                replica.replies_from,
            )
        )

    def change_roles(
        self, version: int | None = None, active: int = 0, voters: int = 0, /, **roles: str
    ) -> ev.RolesChanged | ev.RolesRefused | None:
        """Change roles; return the answer, if it has come."""
        self.changes += 1
        if version is None:
            version = self.engine.members.roles_version
        ticket = FIRST_CHANGE + self.changes
        self.feed(ev.ChangeRoles(ticket, version, roles, "a test", active, voters))
        return self.answers.get(ticket)

    def lose(self, index: int) -> None:
        """Cut a link; the replica keeps its state."""
        replica = self.replicas[index]
        epoch = replica.epoch
        replica.cut()
        if epoch:
            self.feed(ev.Lost(index, epoch, "link closed"))

    def crash(self, index: int) -> None:
        """Kill a replica; it restarts with an empty state."""
        self.lose(index)
        self.replicas[index].restart()

    def work(self, index: int) -> None:
        """Let a replica take its next message, which may kill it."""
        self.replicas[index].work()
        if self.replicas[index].dead:
            self.crash(index)

    def deliver(self, index: int) -> None:
        """Deliver the next message of a replica."""
        self.feed(self.replicas[index].outbox.popleft())

    def busy(self) -> list[int]:
        """Return the replicas that have something to do or to send."""
        return [replica.index for replica in self.replicas if replica.busy]

    def run_one(self, index: int) -> None:
        """Let one replica work and send until it has nothing to do."""
        replica = self.replicas[index]
        while replica.busy:
            if replica.outbox:
                self.deliver(index)
            elif replica.inbox:
                self.work(index)
            else:
                replica.send_digest()

    def run(self, most: int = 100_000) -> None:
        """Let all replicas work and send until none has anything to do."""
        while busy := self.busy() or self._push_held():
            for index in busy:
                replica = self.replicas[index]
                if replica.inbox:
                    self.work(index)
                elif replica.late_digest:
                    replica.send_digest()
                while replica.outbox:
                    self.deliver(index)
                most -= 1
            assert most > 0, "the node never comes to rest"

    def _push_held(self) -> list[int]:
        """Let the time pass after which no order is held; return the replicas that got some."""
        if any(replica.held for replica in self.replicas):
            self.tick(HOLD_TIME)
        if any(replica.held for replica in self.replicas):
            self.tick(WATCHED_TIME - HOLD_TIME)  # of replicas without a vote
        return self.busy()

    def start(self) -> Node:
        """Connect all replicas, and let them be admitted."""
        for replica in self.replicas:
            self.connect(replica.index)
        self.run()
        assert self.engine.status == "ready"
        return self

    def heal(self) -> None:
        """Bring all replicas back without faults, as links and the supervisor do."""
        for replica in self.replicas:
            if replica.fault is not None:
                replica.fault = None
                self.crash(replica.index)
        for _ in range(40):
            self.run()
            for replica in self.replicas:
                if not replica.epoch:
                    if self._states[replica.index] == State.EXPELLED:
                        replica.restart()
                    self.connect(replica.index)
            self.run()
            self.tick(0.3)

    # ------------------------------------------------------------- effects

    def _record(self, event: Event) -> None:
        """Record what a replica sent, if its incarnation has not ended."""
        if isinstance(event, ev.Answered | ev.Digested):
            if event.epoch == self.engine.members[event.replica].epoch:
                value = event.reply if isinstance(event, ev.Answered) else event.digest
                self._values.setdefault(event.seq, {})[event.replica] = value
        elif isinstance(event, ev.AnsweredAll):
            for seq, reply in enumerate(decode_replies(event.replies), event.seq):
                self._record(ev.Answered(event.replica, event.epoch, seq, reply))
        elif isinstance(event, ev.Greeted):
            self._void(event.replica)

    def _void(self, index: int) -> None:
        for values in self._values.values():
            values.pop(index, None)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, ev.Send):
            self._order(effect)
            self._post(effect.replicas, effect)
        elif isinstance(effect, ev.SendAll):
            for record in effect.records:
                self.batched.add(record.seq)
                self._order(ev.Send(effect.replicas, record))
            self._post(effect.replicas, effect)
        elif isinstance(effect, ev.Mark):
            self._post(effect.replicas, effect)
        elif isinstance(effect, ev.Push):
            for index in effect.replicas:
                self.replicas[index].push()
        elif isinstance(effect, ev.Restore | ev.Fetch | ev.Ping):
            self._post((effect.replica,), effect)
        elif isinstance(effect, ev.Disconnect):
            self.replicas[effect.replica].cut()
        elif isinstance(effect, ev.Changed):
            self._states[effect.replica] = effect.after
            if effect.after in (State.ABSENT, State.EXPELLED, State.RETIRED):
                self._void(effect.replica)
        elif isinstance(effect, ev.RolesChanged | ev.RolesRefused):
            self.answers[effect.ticket] = effect
        elif isinstance(effect, ev.Differed):
            self.differences.append(effect)
        elif isinstance(effect, ev.ReleaseAll):
            for release in effect.releases:
                self._released(release)
        elif isinstance(effect, ev.Release):
            self._released(effect)
        elif isinstance(effect, ev.Fail):
            self._settle(effect)
        elif isinstance(effect, ev.Checkpointed):
            self.checkpoints.append(effect.base.seq)
            assert digest_of(effect.state) == effect.base.digest

    def _post(self, indexes: tuple[int, ...], effect: Effect) -> None:
        for index in indexes:
            replica = self.replicas[index]
            if replica.epoch and isinstance(effect, ev.Send | ev.SendAll) and index in effect.later:
                replica.held.append((self.now, effect))
            elif replica.epoch:
                replica.push()
                replica.inbox.append(effect)

    def _order(self, effect: ev.Send) -> None:
        """Order: each place has one record, for all replicas; new places count upwards."""
        record = effect.record
        known = self.records.setdefault(record.seq, record)
        if record.void and not known.void:
            self._void_record(record)
        else:
            assert known == record
        if record.seq not in self.expected:
            assert record.seq > max(self.expected, default=0)
            self._state, self.expected[record.seq] = apply(self._state, record)

    def _void_record(self, record: Record) -> None:
        """Compute the correct replies again: all replicas skip this record from now on."""
        known = self.records[record.seq]
        assert (known.request, known.prev, known.history) == (
            record.request,
            record.prev,
            record.history,
        )
        self.records[record.seq] = record
        self._state = b""
        for seq, each in self.records.items():
            self._state, self.expected[seq] = apply(self._state, each)

    def _released(self, effect: ev.Release) -> None:
        """Agreement: m distinct active replicas gave this reply, and it is correct."""
        values = self._values.get(effect.seq, {})
        agreed = [
            index
            for index, value in values.items()
            if value == effect.reply and self._states[index] == State.ACTIVE
        ]
        assert len(agreed) >= self.need, f"released after {values}"
        voters = [r.index for r in self.engine.members if r.role is Role.VOTER]
        others = {index for index in voters if values.get(index, effect.reply) != effect.reply}
        if (
            effect.seq in self.batched
        ):  # a replica that lies in one reply does not agree to the others
            assert self.need <= effect.agreed <= len(agreed)
            assert set(effect.dissent) >= others
        else:
            assert effect.agreed == len(agreed)
            assert sorted(effect.dissent) == sorted(others)
        if self.engine.members.policy.compares:
            assert effect.reply == self.expected[effect.seq]
        assert self.records[effect.seq].request == self.requests[effect.ticket]
        self._settle(effect)

    def _settle(self, effect: ev.Release | ev.Fail) -> None:
        assert effect.ticket in self.open, "a second result, or one for nobody"
        self.open.discard(effect.ticket)
        self.results[effect.ticket] = effect

    # -------------------------------------------------------------- checks

    def check_bounds(self) -> None:
        """Bounded: nothing grows past its limit, and nothing finished is kept."""
        engine, limits = self.engine, self.engine.limits
        polls = engine.polls.open.values()
        unsettled = [poll for poll in polls if poll.winner is None]
        batches = engine.polls.batches
        undecided = [batch for batch in batches.values() if batch.winner is None]
        requests = len(unsettled) + sum(len(batch.records) for batch in undecided)
        assert engine.polls.unsettled == requests <= limits.pending + 1
        waiting = sum(len(event.request) for event in engine.throttle.held.values())
        assert engine.polls.pending_bytes == sum(
            each.size for each in chain[Poll | Batch](unsettled, undecided)
        )
        assert engine.throttle.held_bytes == waiting
        assert engine.polls.reply_bytes == sum(
            len(value) for poll in polls for value in (poll.long_replies or {}).values()
        ) + sum(len(value) for batch in batches.values() for value in batch.ballots.values())
        assert engine.polls.reply_bytes <= limits.ballot_bytes
        assert engine.log.bytes == sum(entry.size for entry in engine.log)
        for each in self.replicas:
            orders = [effect for _, effect in each.held]
            held = sum(len(e.records) if isinstance(e, ev.SendAll) else 1 for e in orders)
            assert held < HOLD_MOST
            votes = engine.members[each.index].role is Role.VOTER
            longest = HOLD_TIME if votes else WATCHED_TIME
            assert all(self.now - since < longest for since, _ in each.held)
        expected = {seq: poll.unanswered for seq, poll in (engine.polls.open | batches).items()}
        due = dict.fromkeys(expected, 0)
        for replica in engine.members:
            assert replica.outstanding_bytes == sum(size for _, size in replica.outstanding)
            assert (replica.epoch == 0) == (
                replica.state in (State.ABSENT, State.EXPELLED, State.RETIRED)
            )
            assert (replica.role is Role.RETIRED) == (replica.state is State.RETIRED)
            assert replica.state is not State.ACTIVE or replica.role is Role.VOTER
            assert replica.state is not State.STANDBY or replica.role is Role.LEARNER
            assert replica.state is not State.OBSERVER or replica.role is Role.OBSERVER
            for seq, _ in (*replica.outstanding, *replica.markers):
                if seq in due:
                    due[seq] += 1
        assert expected == due
        assert all(
            each.winner is None or each.unanswered
            for each in chain[Poll | Batch](polls, batches.values())
        )
        voters = [replica for replica in engine.members if replica.role is Role.VOTER]
        policy = engine.members.policy
        assert policy.need <= len(voters) <= policy.of
        comparisons = engine.comparisons
        assert comparisons.kept_bytes == sum(each.size for each in comparisons.kept) <= KEPT_BYTES
        assert set(engine.polls.tickets) <= self.open
        assert engine.members.active == tuple(
            r.index for r in engine.members if r.state is State.ACTIVE
        )

    def check_order(self) -> None:
        """Order: every replica without a fault has applied each request once, in order."""
        for replica in self.replicas:
            if replica.fault is None:
                assert replica.applied == sorted(set(replica.applied))

    def check_alive(self) -> None:
        """Liveness: a write is accepted (once a full log is truncated) and answered."""
        for _ in range(20):
            ticket = self.submit(b"are you there?")
            self.run()
            if isinstance(self.results.get(ticket), ev.Release):
                return
            self.tick(0.6)
            self.run()
            self.tick(0.6)
            self.run()
        raise AssertionError(f"no write is answered: {self.results[ticket]}")

    def check_idle(self) -> None:
        """Nothing is left once all requests are answered and all replicas are active."""
        engine = self.engine
        assert engine.status == "ready", [(r.state, r.reason) for r in engine.members]
        assert not self.open, "a request was never answered"
        assert not engine.polls.open
        assert not engine.polls.tickets
        assert engine.polls.unsettled == engine.polls.pending_bytes == engine.polls.reply_bytes == 0
        if engine.members.policy.compares:
            used = [r for r in self.replicas if self._states[r.index] != State.RETIRED]
            assert {replica.state for replica in used} == {self._state}
