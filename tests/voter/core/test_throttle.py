"""The throttle alone, and in the engine."""

from __future__ import annotations

from tests.voter.core.model import HANG, Node, make_engine
from voter.core import Limits
from voter.core import events as ev
from voter.core.events import Failure
from voter.core.replica import State
from voter.core.throttle import Throttle

LIMITS = Limits(throttle_gap=10, throttle_floor=5.0, throttle_time=4.0)


def update(throttle: Throttle, begin: float, *gaps: int) -> None:
    """Report one learner's gaps, a second apart."""
    for second, gap in enumerate(gaps):
        throttle.update(begin + second, {1: gap})


def test_throttle_stays_off_when_the_gap_shrinks() -> None:
    throttle = Throttle(LIMITS)
    update(throttle, 1.0, 100, 80, 60, 40, 20, 5)
    assert not throttle.on
    assert throttle.spend()


def test_throttle_stays_off_when_a_large_gap_closes_in_half_a_minute() -> None:
    throttle = Throttle(LIMITS)
    update(throttle, 1.0, *range(30_000, 20_000, -1000))
    assert not throttle.on
    update(throttle, 11.0, 20_000, 19_900)
    assert throttle.on


def test_throttle_is_on_until_a_slow_learner_has_caught_up() -> None:
    throttle = Throttle(LIMITS)
    update(throttle, 1.0, 100, 100)
    assert throttle.on
    assert not throttle.spend()
    throttle.earn(1)
    throttle.earn(1)
    assert throttle.spend(), "one new write for two old ones"
    throttle.earn(0)
    assert not throttle.spend(), "answers of another replica earn nothing"
    throttle.update(2.1, {1: 50})
    assert throttle.on, "not yet"
    throttle.update(2.2, {1: 9})
    assert not throttle.on


def test_throttle_stays_off_when_the_gap_is_small() -> None:
    throttle = Throttle(LIMITS)
    update(throttle, 1.0, 9, 9, 9, 9)
    assert not throttle.on


def test_throttle_lets_the_floor_pass() -> None:
    throttle = Throttle(LIMITS)
    update(throttle, 1.0, 100, 100)
    assert not throttle.spend()
    throttle.update(2.5, {1: 100})
    assert [throttle.spend() for _ in range(3)] == [True, True, False]


def test_throttle_ends_when_one_learner_used_its_time() -> None:
    throttle = Throttle(LIMITS)
    update(throttle, 1.0, *[100] * 7)
    assert not throttle.on
    throttle.update(9.0, {})
    update(throttle, 10.0, 100, 100)
    assert throttle.on, "the next one has its own time"


def make_slow_learner() -> Node:
    """A node whose g2 has rejoined, is behind and takes nothing."""
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


def test_writes_wait_for_a_slow_learner_and_reads_do_not() -> None:
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
    assert node.records[before + 2].request == b"w", "after two old writes"


def test_held_write_fails_as_not_executed_when_no_majority_is_left() -> None:
    node = make_slow_learner()
    assert not node.engine.receive(ev.Submit(900, b"w", b"me"))
    node.lose(0)
    node.now += 5.0
    effects = node.engine.receive(ev.Tick(node.now, 0))
    failed = [effect for effect in effects if isinstance(effect, ev.Fail)]
    assert [(fail.ticket, fail.failure) for fail in failed] == [(900, Failure.NOT_EXECUTED)]


def test_held_write_is_dropped_when_its_client_cancels() -> None:
    node = make_slow_learner()
    pending = node.engine.pending
    node.engine.receive(ev.Submit(900, b"w", b"me"))
    node.engine.receive(ev.Cancel(900))
    assert node.engine.pending == pending


def test_replica_without_a_vote_costs_at_most_a_fifth_of_the_writes() -> None:
    throttle = Throttle(LIMITS)
    for second in range(1, 20):
        throttle.update(float(second), {1: 100}, writes=1000 * second, voters=())
        if throttle.on:
            break
    passed = 0
    for step in range(1, 101):
        throttle.update(second + step / 100, {1: 100}, writes=1000 * second, voters=())
        while throttle.spend():
            passed += 1
    assert 790 <= passed <= 810
    throttle.update(second + 1.01, {1: 100, 2: 100}, writes=0, voters=(2,))
    throttle.update(second + 2.01, {1: 100, 2: 100}, writes=0, voters=(2,))
    throttle.update(second + 3.01, {1: 100, 2: 100}, writes=0, voters=(2,))
    passed = 0
    while throttle.spend():
        passed += 1
    assert passed <= LIMITS.throttle_floor, "a voter is needed: it may cost more"
