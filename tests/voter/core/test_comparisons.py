"""What replicas without a vote reply, compared with what was released."""

from __future__ import annotations

import pytest

from guests.protocol.wire import encode_replies
from tests.voter.core.model import HANG, Node, make_engine
from tests.voter.core.test_roles import OBSERVER, fill, make_node
from voter.core import Limits
from voter.core import comparisons as module
from voter.core import events as ev
from voter.core.followers import WATCHED_TIME


def make_observed() -> Node:
    node = make_node()
    fill(node, OBSERVER)
    node.differences.clear()
    return node


def settle(node: Node, ticket: int) -> bytes:
    """Let the voters answer; return the reply."""
    for index in range(3):
        node.run_one(index)
    released = node.results[ticket]
    assert isinstance(released, ev.Release)
    return released.reply


@pytest.mark.parametrize("request_", [b"a", b"L"], ids=["short reply", "long reply"])
def test_late_difference_has_both_replies(request_: bytes) -> None:
    node = make_observed()
    node.replicas[3].fault = "lie-long"
    reply = settle(node, node.submit(request_))
    node.tick(WATCHED_TIME)
    node.run_one(3)
    (found,) = node.differences
    assert (found.seq, found.request, found.released) == (node.engine.log.seq, request_, reply)
    assert found.other is not None
    assert found.other.startswith(b"lie")
    assert found.behind == pytest.approx(WATCHED_TIME)
    assert not node.engine.comparisons.kept, "nothing is kept once the observer has answered"


@pytest.mark.parametrize("fault", ["lie", "lie-long"])
def test_early_difference_has_both_replies(fault: str) -> None:
    node = make_observed()
    node.replicas[3].fault = fault
    ticket = node.submit(b"a")
    node.tick(WATCHED_TIME)
    node.run_one(3)
    reply = settle(node, ticket)
    (found,) = node.differences
    assert (found.released, found.behind) == (reply, 0.0)
    assert found.other is not None
    assert found.other.startswith(b"lie")


def test_equal_replies_are_counted() -> None:
    node = make_observed()
    before = node.engine.members[3].compared
    for _ in range(3):
        settle(node, node.submit(b"L"))
    assert node.engine.comparisons.kept_bytes > 0
    node.run()
    observer = node.engine.members[3]
    assert (observer.compared - before, observer.differed) == (3, 0)
    assert node.engine.comparisons.kept_bytes == 0


@pytest.mark.parametrize("late", [False, True])
def test_each_request_of_a_batch_is_compared(late: bool) -> None:
    node = make_observed()
    node.submit_all([(b"a", False), (b"L", False), (b"c", True)])
    node.tick(WATCHED_TIME)
    node.replicas[3].work()
    (answer,) = node.replicas[3].outbox
    assert isinstance(answer, ev.AnsweredAll)
    node.replicas[3].outbox.clear()
    replies = [b"x", node.expected[answer.seq + 1], b"y" * 100]
    wrong = ev.AnsweredAll(3, answer.epoch, answer.seq, encode_replies(replies))
    if not late:
        node.feed(wrong)
    for index in range(3):
        node.run_one(index)
    if late:
        node.feed(wrong)
    seqs = {found.seq: (found.released, found.other) for found in node.differences}
    expected = node.expected
    assert seqs == {
        answer.seq: (expected[answer.seq], b"x"),
        answer.seq + 2: (expected[answer.seq + 2], b"y" * 100),
    }
    assert node.engine.members[3].differed == 2
    assert node.engine.comparisons.kept_bytes == 0


def test_batch_that_was_taken_apart_is_compared() -> None:
    node = make_observed()
    node.submit_all([(b"a", False), (b"L", False)])
    node.tick(WATCHED_TIME)
    for index in range(3):
        node.run_one(index)
    node.replicas[3].fault = "lie"
    node.lose(0)  # splits the batch: one replica is answered late
    node.run_one(3)
    assert [found.released for found in node.differences] == [node.expected[node.engine.log.seq]]


def test_difference_in_a_replayed_write_is_reported() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    assert isinstance(node.change_roles(g4=OBSERVER), ev.RolesChanged)
    node.replicas[3].fault = "lie"
    node.connect(3)
    node.run()
    assert node.differences[0].released == node.expected[node.differences[0].seq]


def test_difference_of_a_digest_is_reported() -> None:
    node = Node(make_engine(limits=Limits(hang=HANG, marker_every=2), observers=1)).start()
    node.replicas[3].fault = "lie-digest"
    for _ in range(3):
        node.submit(b"a")
        node.run()
    assert [(found.request, len(found.released or b"")) for found in node.differences] == [
        (b"", 32)
    ]


def test_winning_replies_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    node = make_observed()
    node.replicas[3].fault = "lie"
    for _ in range(5):
        settle(node, node.submit(b"L"))
        assert node.engine.comparisons.kept_bytes <= 1000
    node.run()
    assert [found.released is None for found in node.differences] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_node_without_observers_keeps_nothing() -> None:
    node = make_node()
    node.submit(b"L")
    node.run_one(0)
    node.run_one(1)
    assert not node.engine.comparisons.kept
