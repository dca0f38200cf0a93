"""Followers: who gets the orders first, and when the others get theirs.

The scenarios ``follow*.txt`` show the usual course; model.py asserts at each step that nothing is
held for longer, or more of it, than is allowed.
"""

from __future__ import annotations

from math import inf

import pytest

from tests.voter.core.model import HANG, Node, make_engine
from tests.voter.core.test_engine import result, step
from tests.voter.core.test_incarnations import sent_to
from voter.core import Limits
from voter.core import events as ev
from voter.core.events import Effect
from voter.core.followers import (
    HOLD_BYTES,
    HOLD_MOST,
    IDLE,
    LATE_LEAST,
    ROTATE_ORDERS,
    ROTATE_TIME,
)
from voter.core.replica import State


def make_node(vote: str = "2/3", *, limits: Limits | None = None, observers: int = 0) -> Node:
    return Node(make_engine(vote, limits=limits, observers=observers, follow=True)).start()


def pushes(effects: list[Effect]) -> list[tuple[int, ...]]:
    return [effect.replicas for effect in effects if isinstance(effect, ev.Push)]


def held(node: Node) -> list[int]:
    """How many orders the link of each replica holds."""
    return [len(replica.held) for replica in node.replicas]


def ask(node: Node, request: bytes = b"a") -> ev.Release:
    """Submit a request, and let those that are ahead answer it at once."""
    ticket = node.submit(request)
    for index in node.engine.followers.ahead:
        node.run_one(index)
    return result(node, ticket)


def test_majority_settles_the_vote_before_the_follower_has_the_order() -> None:
    node = make_node()
    assert ask(node).agreed == 2
    assert held(node) == [0, 0, 1]
    assert sent_to(node, 2) == []
    node.tick(IDLE)
    assert sent_to(node, 2) == [4]
    node.run()
    node.check_idle()


def test_node_without_the_setting_sends_to_all_at_once() -> None:
    node = Node(make_engine()).start()
    node.submit(b"a")
    assert held(node) == [0, 0, 0]
    assert node.engine.followers.due == inf


def test_number_of_held_orders_is_bounded() -> None:
    node = make_node()
    for number in range(1, 2 * HOLD_MOST + 1):
        node.submit(b"a")
        assert held(node)[2] == number % HOLD_MOST
        assert len(sent_to(node, 2)) == number - number % HOLD_MOST


def test_size_of_held_orders_is_bounded() -> None:
    node = make_node()
    node.submit(bytes(HOLD_BYTES - 1))
    assert held(node) == [0, 0, 1]
    node.submit(b"a")
    assert held(node) == [0, 0, 0]


def test_held_orders_do_not_make_a_follower_lag() -> None:
    node = make_node(limits=Limits(hang=HANG, lag=4, lag_bytes=1000))
    for _ in range(40):
        ask(node)
        assert held(node)[2] < 3
        step(node, *[2] * len(node.replicas[2].inbox))
        node.tick(0.0)
    node.run()
    node.check_idle()
    assert node.engine.members.incarnations_ended == 0


def test_batch_is_held_whole() -> None:
    engine = make_engine(follow=True)
    for index in range(3):
        engine.receive(ev.Greeted(index, index + 1, 1, True, 0, bytes(8)))
    requests = [ev.Submit(ticket, b"a") for ticket in range(HOLD_MOST // 2)]
    first = engine.receive(ev.SubmitAll(requests))
    assert [e.later for e in first if isinstance(e, ev.SendAll)] == [(2,)]
    assert not pushes(first)
    more = [ev.Submit(100 + ticket, b"a") for ticket in range(HOLD_MOST // 2)]
    assert pushes(engine.receive(ev.SubmitAll(more))) == [(2,)]


def test_batch_on_which_those_ahead_differ_is_pushed() -> None:
    from guests.protocol.wire import encode_replies

    engine = make_engine(follow=True)
    for index in range(3):
        engine.receive(ev.Greeted(index, index + 1, 1, True, 0, bytes(8)))
    engine.receive(ev.SubmitAll([ev.Submit(1, b"a"), ev.Submit(2, b"b")]))
    good, bad = encode_replies([b"a", b"b"]), encode_replies([b"a", b"lie"])
    assert not pushes(engine.receive(ev.AnsweredAll(0, 1, 4, good)))
    assert pushes(engine.receive(ev.AnsweredAll(1, 2, 4, bad))) == [(2,)]
    effects = engine.receive(ev.AnsweredAll(2, 3, 4, good))
    releases = next(e.releases for e in effects if isinstance(e, ev.ReleaseAll))
    assert {e.ticket: e.reply for e in releases} == {1: b"a", 2: b"b"}
    assert engine.members[1].state is State.EXPELLED


@pytest.mark.parametrize("vote", ["2/3", "3/5"])
@pytest.mark.parametrize("liar", [0, 1])
def test_lie_of_a_replica_ahead_is_masked(vote: str, liar: int) -> None:
    node = make_node(vote)
    node.replicas[liar].fault = "lie"
    ticket = node.submit(b"a")
    ahead, later = node.engine.followers.ahead, node.engine.followers.later
    step(node, *ahead)
    assert held(node) == [0] * len(held(node)), "the others are asked at once"
    step(node, *later)
    assert result(node, ticket).dissent == (liar,)
    assert node.engine.members[liar].state is State.EXPELLED


def test_silent_replica_ahead_is_replaced_before_the_next_order() -> None:
    node = make_node()
    node.replicas[0].fault = "silent"
    ticket = node.submit(b"a")
    step(node, 0, 1)
    node.tick(LATE_LEAST)
    step(node, 2)
    assert result(node, ticket).agreed == 2
    assert node.engine.followers.ahead == (1, 2)
    node.tick(ROTATE_TIME / 2)
    node.tick(ROTATE_TIME / 2)
    ask(node)
    assert node.engine.followers.later == (0,), "it has not answered yet"
    assert node.engine.members[0].state is State.ACTIVE, "only the hang watch ends it"


def test_replica_that_a_follower_overtakes_follows() -> None:
    node = make_node()
    for _ in range(20):
        node.submit(b"a")
        node.tick(0.004)  # votes usually take 4 ms: one is late after 16
        for index in (0, 1):
            node.run_one(index)
    node.run()
    ask(node)  # held for the follower from now on
    for _ in range(10):
        node.tick(0.001)
        ask(node)
    node.replicas[1].fault = "silent"
    ticket = node.submit(b"b")
    node.run_one(0)
    node.tick(0.01)  # 20 ms after the first order that is held
    for index in (0, 1, 2):
        node.run_one(index)
    assert result(node, ticket).agreed == 2
    assert node.engine.followers.ahead == (0, 2)


@pytest.mark.parametrize("vote", ["2/3", "3/5"])
def test_each_replica_goes_ahead_in_turn(vote: str) -> None:
    node = make_node(vote)
    seen = [set(node.engine.followers.ahead)]
    for _ in range(2 * len(node.replicas)):
        node.run()
        node.tick(ROTATE_TIME / 2)
        node.tick(ROTATE_TIME / 2)
        node.run()
        ask(node)
        seen.append(set(node.engine.followers.ahead))
    for index in range(len(node.replicas)):
        assert any(index in ahead for ahead in seen)
        assert any(index not in ahead for ahead in seen)


def test_replicas_rotate_after_many_orders() -> None:
    node = make_node(limits=Limits(hang=HANG, marker_every=10**6))
    before = node.engine.followers.ahead
    for _ in range(ROTATE_ORDERS + 1):
        node.submit(b"a", read_only=True)
        for replica in node.replicas:
            node.run_one(replica.index)
    assert node.engine.followers.ahead != before


def test_frozen_follower_does_not_go_ahead_and_is_found_to_hang() -> None:
    node = make_node()
    node.replicas[2].fault = "silent"
    for _ in range(4):
        ask(node)
        node.tick(IDLE)
        node.run_one(2)
        node.tick(ROTATE_TIME / 2)
        for index in (0, 1):
            node.run_one(index)
        if node.engine.members[2].state is State.ABSENT:
            break
        assert 2 in node.engine.followers.later
    node.tick(HANG / 2)
    node.tick(HANG / 2)
    assert node.engine.members[2].state is State.ABSENT
    assert node.engine.followers.later == ()


def test_patience_with_a_follower_starts_when_its_orders_are_pushed() -> None:
    node = make_node(limits=Limits(hang=0.05))
    ask(node)
    for _ in range(20):
        node.tick(0.00101)
        ask(node)
    assert sent_to(node, 2), "held for 20 ms"

    def wait() -> None:
        node.tick(0.01)
        for index in (0, 1):
            node.run_one(index)

    for _ in range(4):
        wait()
    assert 2 in node.engine.members.active, "its first order is 60 ms old"
    for _ in range(2):
        wait()
    assert 2 not in node.engine.members.active


def test_loss_is_not_attributed_to_orders_that_were_only_held() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    node.lose(2)
    assert node.engine.log.find(4) is not None
    entry = node.engine.log.find(4)
    assert entry is not None and not entry.killed
    node.run()
    assert result(node, ticket).agreed == 2


def test_loss_of_a_replica_ahead_pushes_and_the_vote_is_not_lost() -> None:
    node = make_node()
    read = node.submit(b"a", read_only=True)
    write = node.submit(b"b")
    node.lose(0)
    assert sent_to(node, 2) == [4, 5]
    node.run()
    assert result(node, read).agreed == result(node, write).agreed == 2


def test_joining_replica_expels_nobody_and_gets_every_order() -> None:
    node = make_node()
    node.crash(1)
    for number in range(5):
        ask(node, b"%d" % number)
    node.connect(1)
    ask(node, b"x")
    node.run()
    ask(node, b"y")
    node.run()
    node.check_idle()


def test_observer_follows() -> None:
    node = make_node("2/2", observers=1)
    assert ask(node).agreed == 2
    assert held(node) == [0, 0, 1]
    node.run()
    node.check_idle()


def test_drain_and_marker_push() -> None:
    node = make_node(limits=Limits(hang=HANG, marker_every=3))
    for _ in range(3):
        ask(node)
    assert held(node) == [0, 0, 0], "the digest comes after the orders"
    node.run()
    ask(node)
    node.feed(ev.Drain())
    assert held(node) == [0, 0, 0]
    node.run()
