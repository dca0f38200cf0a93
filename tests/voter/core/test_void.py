"""A write that kills or hangs the replicas: it must not do so for ever."""

from __future__ import annotations

import pytest

from tests.voter.core.model import Node
from tests.voter.core.test_engine import failure, make_node, step, verdict
from voter.core import events as ev
from voter.core.events import Failure
from voter.core.replica import State


def come_back(node: Node, rounds: int = 10) -> None:
    """Let whoever is gone come back and replay, again and again."""
    for _ in range(rounds):
        for replica in node.replicas:
            if not replica.epoch:
                node.connect(replica.index)
        node.run()


def void_places(node: Node) -> list[int]:
    return [seq for seq, record in node.records.items() if record.void]


def test_a_write_that_kills_all_is_voided_and_all_skip_it() -> None:
    node = make_node()
    before = node.submit(b"before")
    deadly = node.submit(b"Poison")
    after = node.submit(b"after")
    node.run()
    assert verdict(node, before).agreed >= 2
    assert failure(node, deadly).failure == Failure.OUTCOME_UNKNOWN
    assert failure(node, after).failure == Failure.OUTCOME_UNKNOWN
    assert node.engine.status == "refusing"
    come_back(node)
    assert void_places(node) == [failure(node, deadly).seq]
    node.check_idle()
    entry = node.engine.log.find(failure(node, after).seq)
    assert entry is not None
    assert entry.tag == node.expected[entry.record.seq], "what came after it is settled"
    node.check_alive()


def test_each_replica_is_killed_no_more_than_twice() -> None:
    node = make_node()
    node.submit(b"Poison")
    node.run()
    come_back(node)
    assert [replica.incarnation for replica in node.replicas] <= [3, 3, 3]
    node.check_idle()


def test_innocent_requests_beside_it_are_not_voided() -> None:
    """At first it may have been any of those that were under way."""
    node = make_node()
    for number in range(20):
        node.submit(b"Poison" if number == 10 else b"%d" % number)
    node.run()
    come_back(node)
    assert len(void_places(node)) == 1
    assert node.records[void_places(node)[0]].request == b"Poison"
    node.check_idle()


def test_what_may_have_killed_is_replayed_alone() -> None:
    node = make_node()
    for number in range(3):
        node.submit(b"%d" % number)
    for index in range(3):
        node.crash(index)
    node.connect(0)
    assert len(node.replicas[0].inbox) == 1
    step(node, 0)
    assert len(node.replicas[0].inbox) == 1
    node.heal()
    node.check_idle()


def test_what_is_settled_is_not_suspected() -> None:
    node = make_node()
    for number in range(5):
        node.submit(b"%d" % number)
    node.crash(1)
    node.run()
    node.connect(1)
    assert len(node.replicas[1].inbox) == 5
    node.run()
    node.check_idle()


def test_links_that_are_lost_void_nothing_that_can_be_settled() -> None:
    node = make_node()
    for number in range(30):
        node.submit(b"%d" % number)
        node.lose(number % 3)
        node.connect(number % 3)
        node.run()
    assert not void_places(node)
    node.check_idle()


def test_two_deadly_ones_are_both_voided() -> None:
    node = make_node()
    for request in (b"a", b"Poison 1", b"b", b"Poison 2", b"c"):
        node.submit(request)
    node.run()
    come_back(node, rounds=20)
    assert [node.records[seq].request for seq in void_places(node)] == [b"Poison 1", b"Poison 2"]
    node.check_idle()


def test_one_that_hangs_is_voided_too() -> None:
    node = make_node()
    node.submit(b"a loop")
    for _ in range(8):
        for replica in node.replicas:
            if not replica.epoch:
                replica.restart()
                node.connect(replica.index)
        for replica in node.replicas:
            if replica.inbox:
                first = replica.inbox[0]
                if isinstance(first, ev.Send) and first.record.request == b"a loop":
                    replica.fault = None if first.record.void else "silent"
        for _ in range(4):
            node.tick(0.9)
    assert len(void_places(node)) == 1
    for replica in node.replicas:
        replica.fault = None
    node.heal()
    node.check_idle()


@pytest.mark.parametrize("survivor", [0, 1, 2])
def test_one_that_survived_it_is_built_anew(survivor: int) -> None:
    """It has applied what the others are to skip: its history does not tell, its state does."""
    node = make_node()
    ticket = node.submit(b"fatal to two")
    step(node, survivor)
    assert state_is(node, survivor, State.ACTIVE)
    others = [index for index in range(3) if index != survivor]
    for _ in range(2):
        for index in others:
            node.crash(index)
            node.connect(index)
    assert failure(node, ticket).failure == Failure.OUTCOME_UNKNOWN
    for index in others:
        node.crash(index)
    assert not node.engine.members[survivor].epoch
    assert node.engine.members[survivor].suspect
    come_back(node)
    assert len(void_places(node)) == 1
    node.check_idle()


def state_is(node: Node, index: int, state: State) -> bool:
    return node.engine.members[index].state is state


def test_one_that_was_away_with_it_applied_is_built_anew() -> None:
    """It comes back with a history that the log continues, from before the write was voided."""
    node = make_node()
    node.submit(b"fatal to two")
    step(node, 0)
    node.lose(0)
    for _ in range(4):
        for index in (1, 2):
            if not node.replicas[index].epoch:
                node.connect(index)
            node.crash(index)
    for index in (1, 2):
        node.connect(index)
    node.run()
    assert len(void_places(node)) == 1
    assert node.engine.status == "degraded"
    node.connect(0)
    assert state_is(node, 0, State.RESTORING)
    node.run()
    node.check_idle()


def test_a_deadly_read_is_dropped() -> None:
    node = make_node()
    ticket = node.submit(b"Poison", read_only=True)
    node.run()
    assert failure(node, ticket).failure == Failure.NOT_EXECUTED
    come_back(node, rounds=1)
    assert not void_places(node)
    node.check_idle()


def test_under_one_of_one_too() -> None:
    node = make_node("1/1")
    node.submit(b"Poison")
    node.run()
    come_back(node)
    assert len(void_places(node)) == 1
    node.check_idle()
