"""Durability: nothing is released before it is durable, and a restart resumes from the journal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.voter.core.model import HANG, Node, apply
from tests.voter.core.test_void import rejoin
from voter.core import Engine, Limits, Policy
from voter.core import events as ev
from voter.core.dedup import key_scope, session_scope
from voter.core.entries import (
    Base,
    Entry,
    MembershipChange,
    Once,
    Opened,
    Record,
    SequenceReservation,
    Settled,
    Void,
)
from voter.core.events import Effect, Failure
from voter.core.journal_state import RESERVED
from voter.core.replica import Role, State
from voter.core.resume import Past

LIMITS = Limits(hang=HANG, marker_every=5, checkpoint_bytes=1000)
DAY = 86_400.0
START = 10_000 * DAY


def make_journaled(past: Past, limits: Limits, spares: int = 0) -> tuple[Engine, list[Effect]]:
    names = ["g1", "g2", "g3", "g4", "g5"][: 3 + spares]
    engine = Engine(
        Policy(2, 3),
        names,
        secret=b"secret",
        limits=limits,
        roles=dict.fromkeys(names[3:], Role.RETIRED),
        journaled=True,
    )
    return engine, engine.begin(past)


class DurableNode(Node):
    """A node with a journal in memory: ``entries``, the first ``durable`` of which are synced."""

    def __init__(self, limits: Limits = LIMITS, *, spares: int = 0) -> None:
        self.spares = spares
        self.entries: list[Entry] = []
        self.offset = 0  # entries of earlier voters
        self.durable = 0
        self.base, self.kept_state = Base(), b""
        self.sessions: dict[int, bytes] = {}
        self.ahead = START  # seconds from the steady clock to the wall clock
        engine, effects = make_journaled(Past(), limits, spares)
        super().__init__(engine)
        for effect in effects:
            self._carry_out(effect)
        self.sync()

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, ev.Append):
            self.entries.append(effect.entry)
        elif isinstance(effect, ev.SessionOpened):
            self.sessions[effect.ticket] = effect.session
        else:
            if isinstance(effect, ev.Send) and not effect.record.read_only:
                places = [e.seq for e in self.entries if isinstance(e, Record)]
                assert effect.record.seq in places, "written before it is sent"
            if isinstance(effect, ev.Checkpointed):
                self.base, self.kept_state = effect.base, bytes(effect.state)
            super()._carry_out(effect)

    def _released(self, effect: ev.Release) -> None:
        """Check a release that may come later than its vote: the replicas may have changed."""
        assert effect.reply == self.expected[effect.seq]
        assert effect.replayed or self.need <= effect.agreed <= len(self.replicas)
        if effect.seq in self.records:
            assert self.records[effect.seq].request == self.requests[effect.ticket]
        self._settle(effect)

    def sync(self) -> None:
        """Sync all that was appended."""
        self.durable = len(self.entries)
        self.feed(ev.Synced(self.durable - self.offset))

    def finish(self) -> None:
        """Let the replicas answer all requests, and sync the journal."""
        self.run()
        self.sync()

    def restart(self, *, power: bool = False) -> None:
        """Restart the voter; with ``power`` the guests too, and what was not synced is lost."""
        for replica in self.replicas:
            replica.cut()
            if power:
                replica.restart()
        if power:
            del self.entries[self.durable :]
            self._state = b""
            for record in self.entries:
                if isinstance(record, Record):
                    self._state, _ = apply(self._state, record)
        self.offset = self.durable = len(self.entries)
        entries = [e for e in self.entries if not self._is_old(e)]
        past = Past(base=self.base, state=self.kept_state, entries=entries)
        self.engine, effects = make_journaled(past, self.engine.limits, self.spares)
        self._states = [replica.state for replica in self.engine.members]
        self.open.clear()
        self._values.clear()
        for effect in effects:
            self._carry_out(effect)
        self.tick(0.1)

    def _is_old(self, entry: Entry) -> bool:
        return isinstance(entry, (Record, Settled, Void)) and entry.seq <= self.base.seq

    def connect_all(self) -> None:
        for replica in self.replicas:
            self.connect(replica.index)
        self.finish()

    def run_clock(self, seconds: float, *, ahead: float) -> None:
        """Let time pass in steps of a second, on a host whose wall clock is ``ahead``."""
        self.ahead = ahead
        for _ in range(round(seconds)):
            self.tick(1.0)
            self.finish()

    def tick(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.now += seconds
        self.feed(ev.Tick(self.now, int((self.now + self.ahead) * 1e9)))

    def ask(self, request: bytes, once: Once | None = None, *, caller: bytes = b"me") -> int:
        """Submit a write; return its ticket."""
        self.tickets += 1
        self.open.add(self.tickets)
        self.requests[self.tickets] = request
        self.feed(ev.Submit(self.tickets, request, caller, False, once))
        return self.tickets

    def writes(self) -> list[bytes]:
        return [entry.record.request for entry in self.engine.log]


def make_node(limits: Limits = LIMITS) -> DurableNode:
    node = DurableNode(limits)
    node.connect_all()
    assert node.engine.status == "ready"
    return node


def released(node: DurableNode, ticket: int) -> bytes | None:
    result = node.results.get(ticket)
    assert not isinstance(result, ev.Fail), result
    return result.reply if result is not None else None


def state_of(node: DurableNode, index: int) -> State:
    return node.engine.members[index].state


# ------------------------------------------------------------------ releases


def test_voted_reply_waits_for_the_journal() -> None:
    node = make_node()
    ticket = node.ask(b"a")
    node.run()
    assert ticket not in node.results
    assert node.engine.pending == 1
    node.sync()
    assert released(node, ticket) is not None
    assert node.engine.pending == 0


def test_durable_write_waits_for_its_vote() -> None:
    node = make_node()
    ticket = node.ask(b"a")
    node.sync()
    assert ticket not in node.results
    node.run()
    assert released(node, ticket) is not None


def test_read_waits_for_the_writes_before_it() -> None:
    node = make_node()
    early = node.submit(b"r", read_only=True)
    node.run()
    assert early in node.results
    node.ask(b"a")
    late = node.submit(b"r", read_only=True)
    node.run()
    assert late not in node.results
    node.sync()
    assert late in node.results


def test_sync_releases_only_what_it_covers() -> None:
    node = make_node()
    first, at = node.ask(b"a"), len(node.entries)
    second = node.ask(b"b")
    node.run()
    node.feed(ev.Synced(at))
    assert (first in node.results, second in node.results) == (True, False)


# ------------------------------------------------------------------- restart


def test_order_resumes_after_the_last_reserved_number() -> None:
    node = make_node()
    node.ask(b"a")
    node.finish()
    node.restart()
    assert node.engine.log.seq >= RESERVED
    assert node.writes() == [b"a"]
    node.connect_all()
    node.ask(b"b")
    node.finish()
    node.check_idle()


def test_unsettled_write_is_voted_on_again_after_a_restart_without_a_restore() -> None:
    """The voter dies with replies under way, but the replicas still have them."""
    node = make_node()
    node.ask(b"a")
    for index in range(3):
        node.work(index)
    node.restart()
    assert node.engine.pending == 1
    for replica in node.replicas:
        node.connect(replica.index)
    node.run()
    assert all(len(replica.applied) == 1 for replica in node.replicas), "not applied again"
    assert node.engine.pending == 0
    node.sync()
    node.check_idle()


def test_replica_without_its_replies_is_restored_after_a_restart() -> None:
    node = make_node()
    node.ask(b"a")
    for index in range(3):
        node.work(index)
    node.restart()
    for replica in node.replicas:
        replica.replies.clear()
        node.connect(replica.index)
        assert node.engine.members[replica.index].state is State.RESTORING
    node.run()
    assert node.engine.status == "ready"
    assert node.engine.pending == 0


def test_power_loss_keeps_what_was_acknowledged() -> None:
    node = make_node()
    kept = node.ask(b"kept")
    node.finish()
    assert released(node, kept) is not None
    lost = node.ask(b"lost")
    node.run()
    assert lost not in node.results
    node.restart(power=True)
    assert node.writes() == [b"kept"]
    node.connect_all()
    node.check_idle()


def test_voter_resumes_from_a_checkpoint() -> None:
    node = make_node()
    for number in range(30):
        node.ask(b"%d" % number)
        node.finish()
    assert node.checkpoints
    node.restart(power=True)
    assert node.engine.log.checkpoint.seq == node.checkpoints[-1]
    assert len(node.engine.log) < 30
    node.connect_all()
    node.check_idle()


def test_suspect_replica_is_restored_after_a_restart() -> None:
    node = make_node()
    node.replicas[1].fault = "corrupt"
    node.ask(b"a")
    node.run()
    assert state_of(node, 1) is State.EXPELLED
    node.replicas[1].fault = None
    node.sync()
    node.restart()
    node.connect(1)
    assert state_of(node, 1) is State.RESTORING
    node.connect(0)
    node.connect(2)
    node.run()
    node.restart()
    node.connect(1)
    assert state_of(node, 1) is State.ACTIVE, "it was restored since"


def test_flapping_replica_does_not_fill_the_journal() -> None:
    node = make_node(Limits(hang=HANG, membership_changes=20))
    for _ in range(50):
        node.lose(1)
        node.connect(1)
        node.run()
    assert sum(isinstance(entry, MembershipChange) for entry in node.entries) == 20


def test_membership_is_not_journaled_on_a_full_disk_unless_a_replica_becomes_suspect() -> None:
    node = make_node()
    node.feed(ev.Full(True, "no space left"))
    before = len(node.entries)
    node.lose(1)
    node.connect(1)
    node.run()
    assert len(node.entries) == before
    node.feed(ev.Expel(2, "by the operator"))
    assert isinstance(last := node.entries[-1], MembershipChange)
    assert (last.replica, last.suspect, len(node.entries)) == ("g3", True, before + 1)


def test_voided_write_stays_voided_after_a_restart() -> None:
    node = make_node()
    node.ask(b"P")
    node.run()
    rejoin(node)
    assert any(isinstance(entry, Void) for entry in node.entries)
    node.sync()
    node.restart()
    assert [entry.record.void for entry in node.engine.log] == [True]
    node.connect_all()
    node.check_idle()


def test_sequence_numbers_are_reserved_before_they_are_used_up() -> None:
    node = make_node()
    node.engine.log.seq = RESERVED // 2 + 10
    node.submit(b"r", read_only=True)
    node.run()
    ahead = [entry.upto for entry in node.entries if isinstance(entry, SequenceReservation)]
    assert len(ahead) == 2
    node.engine.log.seq = ahead[0]
    refused = node.engine.receive(ev.Submit(500, b"r", b"me", True))
    assert isinstance(refused[0], ev.Fail)
    assert refused[0].failure == Failure.OVERLOAD
    node.sync()
    node.submit(b"r", read_only=True)


# ------------------------------------------------------------------ disk full


def test_full_disk_refuses_writes_and_answers_reads_and_retries() -> None:
    node = make_node()
    session = open_session(node)
    once = Once(session_scope(session), (1).to_bytes(8), b"f")
    first = node.ask(b"a", once)
    node.finish()
    node.feed(ev.Full(True, "no space left"))
    refused = node.ask(b"b")
    result = node.results[refused]
    assert isinstance(result, ev.Fail)
    assert result.failure == Failure.NOT_EXECUTED
    assert "no space left" in result.detail
    read = node.submit(b"r", read_only=True)
    node.run()
    assert read in node.results
    assert released(node, node.ask(b"a", once)) == released(node, first)
    node.feed(ev.Full(False))
    again = node.ask(b"b")
    node.finish()
    assert released(node, again) is not None


def test_write_released_on_a_full_disk_is_not_voided_after_a_restart() -> None:
    """Its long reply is not journaled, but its Settled entry is."""
    node = make_node()
    once = once_of(open_session(node), 1)
    node.ask(b"Long", once)
    node.feed(ev.Full(True, "no space left"))
    node.finish()
    first = node.results[node.tickets]
    assert isinstance(first, ev.Release)
    assert len(first.reply) > 64
    node.restart()
    for _ in range(2):
        for index in (0, 1):
            node.connect(index)
            node.lose(index)
    assert not any(isinstance(entry, Void) for entry in node.entries)
    result = node.results[node.ask(b"Long", once)]
    assert isinstance(result, ev.Fail)
    assert result.failure == Failure.SESSION_EXPIRED


def test_markers_and_sessions_reserve_sequence_numbers_too(monkeypatch: Any) -> None:
    monkeypatch.setattr("voter.core.journal_state.RESERVED", 64)
    node = make_node()
    for _ in range(200):
        node.tickets += 1
        node.feed(ev.OpenSession(node.tickets, b"me"))
        node.sync()
        assert node.tickets in node.sessions
    for _ in range(200):
        node.tick(node.engine.limits.scrub + 1)
        node.finish()
    node.ask(b"a")
    node.finish()
    assert isinstance(node.results[node.tickets], ev.Release)


# --------------------------------------------------------------- exactly once


def open_session(node: DurableNode) -> bytes:
    node.tickets += 1
    node.feed(ev.OpenSession(node.tickets, b"me"))
    assert node.tickets not in node.sessions, "not before it is durable"
    node.sync()
    return node.sessions[node.tickets]


def once_of(session: bytes, number: int, done: int = 0, fingerprint: bytes = b"f") -> Once:
    return Once(session_scope(session), number.to_bytes(8), fingerprint, done)


def test_retry_joins_or_gets_the_reply_and_is_never_ordered_again() -> None:
    node = make_node()
    once = once_of(open_session(node), 1)
    first, second = node.ask(b"a", once), node.ask(b"a", once)
    node.run()
    third = node.ask(b"a", once)
    assert not node.results.keys() & {first, second, third}
    node.sync()
    fourth = node.ask(b"a", once)
    replies = {released(node, ticket) for ticket in (first, second, third, fourth)}
    assert len(replies) == 1
    assert None not in replies
    assert node.writes() == [b"a"]
    last: Any = node.results[fourth]
    assert last.replayed


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("connected", [False, True])
def test_retry_after_a_restart_gets_the_same_reply(power: bool, connected: bool) -> None:
    node = make_node()
    once = once_of(open_session(node), 1)
    first = node.ask(b"a", once)
    node.finish()
    node.restart(power=power)
    if connected:
        node.connect_all()
    assert released(node, node.ask(b"a", once)) == released(node, first), "from the table"
    assert node.writes() == [b"a"]


def test_retry_of_an_unsettled_write_is_settled_after_a_restart() -> None:
    node = make_node()
    once = once_of(open_session(node), 1)
    node.ask(b"a", once)
    node.restart()
    again = node.ask(b"a", once)
    result = node.results[again]
    assert isinstance(result, ev.Fail), "no replica can vote yet"
    assert result.failure == Failure.OUTCOME_UNKNOWN
    node.connect_all()
    assert released(node, node.ask(b"a", once)) is not None
    assert node.writes() == [b"a"]


def test_number_used_for_another_request_is_refused() -> None:
    node = make_node()
    session = open_session(node)
    first = node.ask(b"a", once_of(session, 1))
    node.finish()
    result = node.results[node.ask(b"b", once_of(session, 1, fingerprint=b"g"))]
    assert isinstance(result, ev.Fail)
    assert result.failure == Failure.KEY_REUSED
    assert released(node, node.ask(b"a", once_of(session, 1))) == released(node, first)


def test_checkpoint_contains_the_deduplication_table() -> None:
    node = make_node()
    session = open_session(node)
    first = node.ask(b"a", once_of(session, 1))
    for number in range(2, 40):
        node.finish()
        node.ask(b"%d" % number, once_of(session, number))
    node.finish()
    assert node.base.seq > 10
    node.entries = [entry for entry in node.entries if not isinstance(entry, Opened)]
    node.restart(power=True)
    assert released(node, node.ask(b"a", once_of(session, 1))) == released(node, first)
    assert b"a" not in node.writes()


def test_session_evicted_before_the_checkpoint_is_not_opened_again() -> None:
    """Its entry may still be in the journal.  If it were opened again, a retry would execute."""
    node = make_node(msgspec.structs.replace(LIMITS, table_bytes=600))
    session = open_session(node)
    once = once_of(session, 1)
    node.ask(b"a", once)
    node.finish()
    other = open_session(node)
    for number in range(1, 31):
        node.ask(b"%d" % number, once_of(other, number) if number < 4 else None)
        node.finish()
    assert node.engine.dedup.sessions == 1, "the first was evicted to make room"
    assert node.base.seq > int.from_bytes(session[:8])
    node.restart(power=True)
    node.connect_all()
    result = node.results[node.ask(b"a", once)]
    assert isinstance(result, ev.Fail)
    assert result.failure == Failure.SESSION_EXPIRED


def test_reply_to_a_voided_write_waits_until_the_void_is_durable() -> None:
    node = make_node()
    once = once_of(open_session(node), 1)
    node.ask(b"P", once)
    node.sync()
    node.run()
    rejoin(node)
    assert any(isinstance(entry, Void) for entry in node.entries)
    assert node.engine.status == "ready"
    ticket = node.ask(b"P", once)
    assert ticket not in node.results
    node.sync()
    assert released(node, ticket) == b"voided"


def test_expulsion_is_journaled_beyond_the_limit_of_changes() -> None:
    node = make_node(msgspec.structs.replace(LIMITS, membership_changes=5))
    for _ in range(10):
        node.lose(2)
        node.connect(2)
        node.run()
    node.replicas[1].fault = "corrupt"
    node.ask(b"a")
    node.finish()
    node.replicas[1].fault = None
    node.restart()
    node.connect(1)
    assert state_of(node, 1) is State.RESTORING


def test_settled_request_without_its_reply_is_expired_after_a_restart() -> None:
    node = make_node()
    once = once_of(open_session(node), 1)
    node.ask(b"a", once)
    node.finish()
    node.entries = [
        Settled(entry.seq, entry.tag, None) if isinstance(entry, Settled) else entry
        for entry in node.entries
    ]
    node.restart()
    result = node.results[node.ask(b"a", once)]
    assert isinstance(result, ev.Fail)
    assert result.failure == Failure.SESSION_EXPIRED


# ------------------------------------------------------------------- time


def key_once(text: bytes) -> Once:
    return Once(key_scope(b"me"), text, b"print")


@pytest.mark.parametrize("days", [-30, -1.1, 1.1, 30])
@pytest.mark.parametrize("way", ["while it runs", "for a moment", "restart", "power", "and back"])
def test_clock_that_is_set_by_days_never_executes_a_key_again(days: float, way: str) -> None:
    node = make_node()
    once = key_once(b"k")
    first = node.ask(b"add", once)
    node.finish()
    wrong = START + days * DAY
    node.run_clock(3 if way == "for a moment" else 100, ahead=wrong)
    if way in ("restart", "power"):
        node.restart(power=way == "power")
        node.connect_all()
    node.ask(b"other", key_once(b"other"))  # expires what is too old
    node.finish()
    if way == "and back":
        node.run_clock(100, ahead=START)
    node.restart()  # replays the journal, steps included
    node.connect_all()
    retry = node.ask(b"add", once)
    node.finish()
    assert released(node, first) is not None
    assert released(node, retry) == released(node, first)
    assert node.writes().count(b"add") <= 1


def test_agreed_time_advances_after_a_clock_was_ahead_and_a_restart() -> None:
    node = make_node()
    node.run_clock(100, ahead=START + DAY)
    node.restart()
    node.connect_all()
    times = []
    for _ in range(3):
        node.run_clock(10, ahead=START)
        node.ask(b"a")
        times.append(node.engine.log.time_ns)
        node.finish()
    assert [round((b - a) / 1e9) for a, b in pairwise(times)] == [5, 5]


def test_key_expires_after_its_time_whatever_steps_the_clock_made() -> None:
    node = make_node(msgspec.structs.replace(LIMITS, key_retention=200.0))
    once = key_once(b"k")
    node.ask(b"add", once)
    node.finish()
    node.run_clock(100, ahead=START + DAY)
    node.restart()
    node.connect_all()
    assert node.engine.dedup.keys == 1
    # Nothing was journaled in the last 40 s before the restart, so these are not counted.
    node.run_clock(160, ahead=START + DAY)
    node.ask(b"other")
    node.finish()
    node.ask(b"another", key_once(b"another"))
    node.finish()
    assert node.engine.dedup.keys == 1
