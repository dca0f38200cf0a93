"""One request: it is ordered, sent, voted on and released; and what may go wrong with it."""

from __future__ import annotations

import pytest

from tests.voter.core.model import Node, apply, make_engine
from voter.core import Limits
from voter.core import events as ev
from voter.core.entries import Record
from voter.core.events import Failure
from voter.core.followers import WATCHED_TIME
from voter.core.order import tag
from voter.core.replica import Role, State


def make_node(vote: str = "2/3", *, observers: int = 0, limits: Limits | None = None) -> Node:
    return Node(make_engine(vote, limits=limits, observers=observers)).start()


def result(node: Node, ticket: int) -> ev.Release:
    found = node.results[ticket]
    assert isinstance(found, ev.Release), found
    return found


def failure(node: Node, ticket: int) -> ev.Fail:
    found = node.results[ticket]
    assert isinstance(found, ev.Fail), found
    return found


def step(node: Node, *indexes: int) -> None:
    """Let each of these replicas take one message, and deliver its answers."""
    for index in indexes:
        node.work(index)
        while node.replicas[index].outbox:
            node.deliver(index)


def test_reply_is_released_at_the_second_equal_ballot() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    step(node, 2)
    assert not node.results
    step(node, 0)
    assert result(node, ticket).agreed == 2
    step(node, 1)
    node.check_idle()


def test_submit_sends_a_record_with_agreed_time_and_history() -> None:
    node = make_node()
    node.tick(1.5)
    node.open.add(7)
    effects = node.feed(ev.Submit(7, b"request", b"uid:1", True))
    assert isinstance(effects[0], ev.Send)
    record = effects[0].record
    assert (record.request, record.caller, record.read_only) == (b"request", b"uid:1", True)
    assert record.time_ns == int(node.now * 1e9)
    assert record.prev == node.engine.log.history
    assert effects[0].replicas == (0, 1, 2)


@pytest.mark.parametrize("fault", ["lie", "lie-long"])
@pytest.mark.parametrize("first", [True, False])
def test_lying_replica_is_masked_and_expelled(fault: str, first: bool) -> None:
    node = make_node()
    node.replicas[1].fault = fault
    ticket = node.submit(b"a")
    step(node, *((1, 0, 2) if first else (0, 2)))
    assert result(node, ticket).dissent == ((1,) if first else ())
    node.run()
    replica = node.engine.members[1]
    assert (replica.state, replica.reason, replica.dissents) == (State.EXPELLED, "dissent", 1)
    assert replica.suspect
    node.heal()
    node.check_idle()


@pytest.mark.parametrize("size", [0, 16, 32, 63, 64, 65, 1000])
def test_hash_of_the_correct_reply_is_no_vote_for_it(size: int) -> None:
    """A lying replica may know the correct reply, but must send the reply itself."""
    engine = make_engine()
    engine.receive(ev.Tick(1.0, 1))
    for index in range(3):
        engine.receive(ev.Greeted(index, index + 1, 1, True, 0, bytes(8)))
    engine.receive(ev.Submit(1, b"a"))
    reply = b"r" * size
    engine.receive(ev.Answered(0, 1, 4, reply))
    effects = engine.receive(ev.Answered(1, 2, 4, tag(reply)))
    if size < 64:
        assert isinstance(effects[0], ev.Release)
        assert effects[0].reply == reply
    else:
        assert effects == []
        effects = engine.receive(ev.Answered(2, 3, 4, reply))
        assert isinstance(effects[0], ev.Release)
        assert (effects[0].reply, effects[0].dissent) == (reply, (1,))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong-seq", "answered a request that was not sent"),
        ("twice", "answered a request that was not sent"),
        ("swap", "sent a digest that was not requested"),
        ("alive", "answered a ping that was not sent"),
    ],
)
def test_protocol_violation_expels(fault: str, reason: str) -> None:
    node = make_node()
    node.replicas[1].fault = fault
    ticket = node.submit(b"a")
    step(node, 1)
    assert reason in node.engine.members[1].reason
    assert node.engine.members[1].state is State.EXPELLED
    node.run()
    assert result(node, ticket).agreed == 2
    node.heal()
    node.check_idle()


def test_events_of_an_ended_incarnation_are_ignored() -> None:
    node = make_node()
    node.submit(b"a")
    node.work(1)
    late = node.replicas[1].outbox.popleft()
    node.lose(1)
    assert node.feed(late) == []
    node.connect(1)
    assert node.feed(late) == []
    for event in (
        ev.Digested(1, 2, 4, b""),
        ev.Restored(1, 2, 0, b""),
        ev.Fetched(1, 2, 4, b"", b""),
        ev.FetchFailed(1, 2, 4, ""),
        ev.Piece(1, 2, 4, 1),
        ev.Heard(1, 2),
        ev.Lost(1, 2, ""),
        ev.ProtocolViolation(1, 2, ""),
        ev.RefusedOrder(1, 2, 4, ""),
    ):
        assert node.feed(event) == []
    node.run()
    node.check_idle()


def test_two_that_disagree_are_both_expelled_and_the_restored_settle_the_write() -> None:
    node = make_node()
    node.submit(b"first")
    node.run()
    node.lose(0)
    node.replicas[2].fault = "lie"
    ticket = node.submit(b"a")
    step(node, 1, 2)
    assert failure(node, ticket).failure == Failure.OUTCOME_UNKNOWN
    assert [str(replica.state) for replica in node.engine.members] == [
        "absent", "expelled", "expelled"
    ]  # fmt: skip
    assert node.engine.pending == 1
    node.heal()
    node.check_idle()
    entry = node.engine.log.find(failure(node, ticket).seq)
    assert entry is not None
    assert entry.tag == node.expected[entry.record.seq]


def test_request_is_refused_before_it_is_ordered_when_too_few_are_active() -> None:
    node = make_node()
    node.crash(0)
    node.crash(1)
    before = node.engine.log.seq
    ticket = node.submit(b"a")
    assert failure(node, ticket).failure == Failure.NOT_EXECUTED
    assert "1 of 3 replicas are active, 2 must agree" in failure(node, ticket).detail
    assert failure(node, ticket).seq == 0
    assert node.engine.log.seq == before
    assert not node.busy()


@pytest.mark.parametrize(
    ("read_only", "wanted"), [(False, Failure.OUTCOME_UNKNOWN), (True, Failure.NOT_EXECUTED)]
)
def test_lost_vote_fails_the_request_at_once(read_only: bool, wanted: str) -> None:
    node = make_node()
    ticket = node.submit(b"a", read_only=read_only)
    node.crash(0)
    assert ticket not in node.results
    node.crash(1)
    assert failure(node, ticket).failure == wanted
    node.heal()
    node.check_idle()


def test_ballot_is_void_when_its_incarnation_ended() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    step(node, 0)
    node.crash(0)
    node.connect(0)
    step(node, 1)
    assert ticket not in node.results, "g1's first ballot must not count with g2's"
    node.run()
    assert result(node, ticket).agreed >= 2
    node.check_idle()


def test_read_is_ordered_again_when_its_replicas_are_lost() -> None:
    node = make_node()
    node.crash(2)
    ticket = node.submit(b"read", read_only=True)
    first = node.engine.log.seq
    node.connect(2)
    assert node.engine.status == "ready"
    step(node, 0)
    node.crash(1)
    assert ticket not in node.results
    node.run()
    assert result(node, ticket).seq > first
    node.heal()
    node.check_idle()


def test_cancelled_request_stays_in_the_order() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    node.cancel(ticket)
    node.cancel(ticket)
    node.run()
    assert ticket not in node.results
    assert [replica.applied for replica in node.replicas] == [[4]] * 3
    node.check_idle()


def test_draining_node_settles_open_requests_and_refuses_new_ones() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    node.feed(ev.Drain())
    late = node.submit(b"b")
    assert failure(node, late).failure == Failure.NOT_EXECUTED
    assert node.engine.status == "draining"
    node.run()
    assert result(node, ticket).agreed == 2


def test_requests_beyond_the_pending_limits_are_overload() -> None:
    node = make_node(limits=Limits(pending=3))
    tickets = [node.submit(b"%d" % number) for number in range(5)]
    assert [failure(node, ticket).failure for ticket in tickets[3:]] == [Failure.OVERLOAD] * 2
    node.run()
    assert sorted(node.results) == tickets
    node = make_node(limits=Limits(pending_bytes=1000))
    tickets = [node.submit(bytes(600)) for _ in range(3)]
    assert failure(node, tickets[2]).failure == Failure.OVERLOAD
    node.run()
    node.check_idle()


def test_empty_reply_settles_a_vote() -> None:
    engine = make_engine()
    engine.receive(ev.Tick(1.0, 1))
    for index in range(2):
        engine.receive(ev.Greeted(index, index + 1, 1, True, 0, bytes(8)))
    engine.receive(ev.Submit(1, b"a"))
    engine.receive(ev.Answered(0, 1, 3, b""))
    assert engine.receive(ev.Answered(1, 2, 3, b""))[0] == ev.Release(1, 3, b"", 2, ())
    # It is settled: a replica that has applied it may rejoin with its state.
    record = engine.log.after(0, 1)[0].record
    engine.receive(ev.Lost(0, 1, ""))
    engine.receive(ev.Greeted(0, 9, 1, False, 3, record.history))
    assert engine.members[0].state is State.ACTIVE


def test_first_reply_wins_when_one_is_enough() -> None:
    node = make_node("1/3")
    node.replicas[1].fault = "lie"
    tickets = [node.submit(b"%d" % number) for number in range(3)]
    node.run()
    assert [result(node, ticket).agreed for ticket in tickets] == [1, 1, 1]
    assert node.engine.members[1].state is State.ACTIVE
    assert node.engine.members[1].dissents == 3


def test_two_of_two_detects_a_fault_and_releases_nothing() -> None:
    node = make_node("2/2")
    node.replicas[1].fault = "lie"
    ticket = node.submit(b"a")
    node.run()
    assert failure(node, ticket).failure == Failure.OUTCOME_UNKNOWN
    assert node.engine.status == "refusing"


@pytest.mark.parametrize("faults", [("lie", "silent"), ("lie", "lie"), ("wrong-seq", "refuse")])
def test_three_of_five_masks_two_faults(faults: tuple[str, str]) -> None:
    node = make_node("3/5")
    node.replicas[0].fault, node.replicas[3].fault = faults
    tickets = [node.submit(b"%d" % number) for number in range(5)]
    node.run()
    assert [result(node, ticket).agreed for ticket in tickets] == [3] * 5
    node.heal()
    node.check_idle()


def test_observer_is_compared_and_never_counted() -> None:
    node = make_node(observers=1)
    node.replicas[3].fault = "lie"
    node.crash(0)
    ticket = node.submit(b"a")
    node.tick(WATCHED_TIME)  # the orders of observers are held
    step(node, 3, 1)
    assert ticket not in node.results
    step(node, 2)
    assert result(node, ticket).dissent == (), "what an observer replies masks nothing"
    assert [each.other for each in node.differences] == [b"lie 5 of 3"]
    assert node.engine.members[3].state is State.OBSERVER
    node.crash(1)
    assert node.engine.status == "refusing"


def test_long_replies_are_kept_within_one_limit_for_all_polls() -> None:
    """One replica is far ahead of the others: nobody is expelled for it."""
    size = len(apply(b"x" * 12, Record(1, b"L", b"", 0, b"", b"", True))[1])
    node = make_node(limits=Limits(ballot_bytes=3 * size))
    node.submit(b"a")
    node.run()
    tickets = [node.submit(b"L%d" % number, read_only=True) for number in range(10)]
    step(node, *[0] * 10)
    assert 2 * size < node.engine.polls.reply_bytes <= 3 * size
    assert node.engine.status == "ready"
    node.run()
    assert [len(result(node, ticket).reply) > 64 for ticket in tickets] == [True] * 10
    node.check_idle()


def test_reply_that_was_not_kept_comes_from_a_replica_still_due() -> None:
    """g3's admission settles the poll; g2 has still to answer, and brings the reply."""
    node = make_node(limits=Limits(ballot_bytes=10))
    node.crash(2)
    ticket = node.submit(b"Long")
    step(node, 0)
    node.connect(2)
    step(node, 2)
    assert node.engine.members[2].state is State.ACTIVE
    assert ticket not in node.results
    step(node, 1)
    assert result(node, ticket).agreed == 3
    node.check_idle()


def test_outcome_is_unknown_when_no_replica_can_bring_the_reply() -> None:
    node = make_node(limits=Limits(ballot_bytes=10))
    node.crash(2)
    ticket = node.submit(b"Long")
    step(node, 0)
    node.connect(2)
    step(node, 2)
    node.crash(1)
    assert failure(node, ticket).failure == Failure.OUTCOME_UNKNOWN
    node.heal()
    node.check_idle()


def test_lost_read_expels_nobody_when_another_active_replica_can_decide() -> None:
    """The read was sent to g1, g2 and an earlier g3.  The present g3 decides: it is two to one."""
    node = make_node()
    ticket = node.submit(b"read", read_only=True)
    node.crash(2)
    node.connect(2)
    node.run_one(1)
    node.replicas[0].fault = "lie"
    node.run_one(0)
    assert node.engine.status == "ready", "g1 and g2 contradict each other; g3 can decide"
    node.run()
    assert result(node, ticket).dissent == (0,)
    assert node.engine.members.active == (1, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pending", 0), ("window", 0), ("hang", 0.0), ("hang", float("nan")), ("ping", -1.0),
     ("log_bytes", -5), ("restore_rate", 0), ("hang", float("inf"))],
)  # fmt: skip
def test_limits_reject_values_that_are_not_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_engine_rejects_names_that_do_not_fit_the_policy() -> None:
    from voter.core import Engine, Policy

    with pytest.raises(ValueError, match="needs 3 replicas"):
        Engine(Policy(2, 3), ["a", "b"], secret=b"")
    with pytest.raises(ValueError, match="different names"):
        Engine(Policy(2, 3), ["a", "b", "a"], secret=b"")
    with pytest.raises(ValueError, match="needs 3 replicas"):
        Engine(Policy(2, 3), ["a", "b", "c"], secret=b"", roles={"a": Role.OBSERVER})
