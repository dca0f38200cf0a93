"""A write that kills or hangs replicas is voided, and nothing else is."""

from __future__ import annotations

import pytest

from tests.voter.core.model import Node
from tests.voter.core.test_engine import failure, make_node, result, step
from voter.core import events as ev
from voter.core.events import Failure
from voter.core.replica import State


def rejoin(node: Node, rounds: int = 10) -> None:
    """Let the replicas that are gone rejoin and replay the log, repeatedly."""
    for _ in range(rounds):
        for replica in node.replicas:
            if not replica.epoch:
                node.connect(replica.index)
        node.run()


def voided(node: Node) -> list[int]:
    return [seq for seq, record in node.records.items() if record.void]


def test_write_that_kills_all_replicas_is_voided() -> None:
    node = make_node()
    before = node.submit(b"before")
    deadly = node.submit(b"Poison")
    after = node.submit(b"after")
    node.run()
    assert result(node, before).agreed >= 2
    assert failure(node, deadly).failure == Failure.OUTCOME_UNKNOWN
    assert failure(node, after).failure == Failure.OUTCOME_UNKNOWN
    assert node.engine.status == "refusing"
    rejoin(node)
    assert voided(node) == [failure(node, deadly).seq]
    assert max(replica.incarnation for replica in node.replicas) <= 3, "each dies twice at most"
    node.check_idle()
    entry = node.engine.log.find(failure(node, after).seq)
    assert entry is not None
    assert entry.tag == node.expected[entry.record.seq], "the write after it is settled"
    node.check_alive()


def test_only_the_writes_that_kill_are_voided() -> None:
    """At first, any of the writes that were under way may be the cause."""
    node = make_node()
    for number in range(20):
        node.submit(b"Poison %d" % number if number in (7, 12) else b"%d" % number)
    node.run()
    rejoin(node, rounds=20)
    requests = [node.records[seq].request for seq in voided(node)]
    assert requests == [b"Poison 7", b"Poison 12"]
    node.check_idle()


def test_suspected_writes_are_replayed_one_at_a_time() -> None:
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


def test_settled_writes_are_not_suspected() -> None:
    node = make_node()
    for number in range(5):
        node.submit(b"%d" % number)
    node.crash(1)
    node.run()
    node.connect(1)
    assert len(node.replicas[1].inbox) == 5
    node.run()
    node.check_idle()


def test_lost_links_void_no_write_that_can_be_settled() -> None:
    node = make_node()
    for number in range(30):
        node.submit(b"%d" % number)
        node.lose(number % 3)
        node.connect(number % 3)
        node.run()
    assert not voided(node)
    node.check_idle()


def test_write_that_hangs_replicas_is_voided() -> None:
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
    assert len(voided(node)) == 1
    for replica in node.replicas:
        replica.fault = None
    node.heal()
    node.check_idle()


@pytest.mark.parametrize("survivor", [0, 1, 2])
def test_replica_that_survived_a_voided_write_is_restored(survivor: int) -> None:
    """It has applied what the others skip: its history is the same, but its state differs."""
    node = make_node()
    ticket = node.submit(b"fatal to two")
    step(node, survivor)
    assert node.engine.members[survivor].state is State.ACTIVE
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
    rejoin(node)
    assert len(voided(node)) == 1
    node.check_idle()


def test_absent_replica_that_applied_a_voided_write_is_restored_when_it_rejoins() -> None:
    """Its history is one that the log continues, but it has applied the voided write."""
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
    assert len(voided(node)) == 1
    assert node.engine.status == "degraded"
    node.connect(0)
    assert node.engine.members[0].state is State.RESTORING
    node.run()
    node.check_idle()


def test_read_that_kills_is_dropped() -> None:
    node = make_node()
    ticket = node.submit(b"Poison", read_only=True)
    node.run()
    assert failure(node, ticket).failure == Failure.NOT_EXECUTED
    rejoin(node, rounds=1)
    assert not voided(node)
    node.check_idle()


def test_write_that_kills_the_only_replica_is_voided() -> None:
    node = make_node("1/1")
    node.submit(b"Poison")
    node.run()
    rejoin(node)
    assert len(voided(node)) == 1
    node.check_idle()
