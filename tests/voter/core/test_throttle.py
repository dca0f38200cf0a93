"""The throttle by itself, and in the engine."""

from __future__ import annotations

from tests.voter.core.model import HANG, Node, make_engine
from voter.core import Limits
from voter.core import events as ev
from voter.core.events import Failure
from voter.core.replica import State
from voter.core.throttle import Throttle

LIMITS = Limits(throttle_gap=10, throttle_floor=5.0, throttle_time=4.0)


def look(throttle: Throttle, begin: float, *gaps: int) -> None:
    """Show it one learner's gaps, a second apart."""
    for second, gap in enumerate(gaps):
        throttle.update(begin + second, {1: gap})


def test_a_gap_that_closes_holds_nobody() -> None:
    throttle = Throttle(LIMITS)
    look(throttle, 1.0, 100, 80, 60, 40, 20, 5)
    assert not throttle.on
    assert throttle.spend()


def test_a_gap_that_does_not_close_holds_until_it_has() -> None:
    throttle = Throttle(LIMITS)
    look(throttle, 1.0, 100, 100)
    assert throttle.on
    assert not throttle.spend()
    throttle.earn(1)
    throttle.earn(1)
    assert throttle.spend(), "one new write for two old ones"
    throttle.earn(0)
    assert not throttle.spend(), "another replica's answers earn nothing"
    throttle.update(2.1, {1: 50})
    assert throttle.on, "not yet"
    throttle.update(2.2, {1: 9})
    assert not throttle.on


def test_a_small_gap_holds_nobody() -> None:
    throttle = Throttle(LIMITS)
    look(throttle, 1.0, 9, 9, 9, 9)
    assert not throttle.on


def test_some_writes_pass_whatever_the_learner_does() -> None:
    throttle = Throttle(LIMITS)
    look(throttle, 1.0, 100, 100)
    assert not throttle.spend()
    throttle.update(2.5, {1: 100})
    assert [throttle.spend() for _ in range(3)] == [True, True, False]


def test_one_learner_holds_others_back_for_so_long_only() -> None:
    throttle = Throttle(LIMITS)
    look(throttle, 1.0, *[100] * 7)
    assert not throttle.on
    throttle.update(9.0, {})
    look(throttle, 10.0, 100, 100)
    assert throttle.on, "the next one has its own time"


def make_slow_learner() -> Node:
    """A node of which g2 came back and is behind, and takes nothing."""
    limits = Limits(hang=100 * HANG, throttle_gap=10, throttle_floor=0.5, throttle_time=20.0)
    node = Node(make_engine(limits=limits)).start()
    node.lose(1)
    node.replicas[1].restart()
    for number in range(40):
        node.submit(b"%d" % number)
        node.run()
    node.connect(1)
    for _ in range(4):
        node.tick(0.5)
    assert node.engine.members[1].state is State.LEARNER
    assert node.engine.throttle.on
    return node


def test_writes_wait_for_a_learner_and_reads_do_not() -> None:
    node = make_slow_learner()
    before = node.engine.log.seq
    node.open.add(900)
    node.requests[900] = b"w"
    assert not node.feed(ev.Submit(900, b"w", b"me"))
    assert node.engine.log.seq == before
    node.submit(b"r", read_only=True)
    assert node.engine.log.seq == before + 1
    for _ in range(2):
        node.work(1)
        node.deliver(1)
    assert node.records[before + 2].request == b"w", "after two old ones"


def test_a_write_that_waits_and_cannot_be_ordered_any_more_was_not_executed() -> None:
    node = make_slow_learner()
    assert not node.engine.receive(ev.Submit(900, b"w", b"me"))
    node.lose(0)
    node.now += 5.0
    effects = node.engine.receive(ev.Tick(node.now, 0))
    failed = [effect for effect in effects if isinstance(effect, ev.Fail)]
    assert [(fail.ticket, fail.failure) for fail in failed] == [(900, Failure.NOT_EXECUTED)]


def test_a_client_that_goes_takes_its_waiting_write_with_it() -> None:
    node = make_slow_learner()
    pending = node.engine.pending
    node.engine.receive(ev.Submit(900, b"w", b"me"))
    node.engine.receive(ev.Cancel(900))
    assert node.engine.pending == pending
