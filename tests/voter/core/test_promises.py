"""The engine's promises (DESIGN.md) under faults at random: by seed, and by hypothesis.

What is asserted at every step stands in model.py: Agreement, Order, Fail-safe, Bounded.  Here the
faults are made, and Liveness is asked for: as long as at most one replica at a time is faulty,
every request is answered; and whatever has happened, once all are healed everything is.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.voter.core.model import FAULTS, Node, make_engine
from voter.core import Limits
from voter.core import events as ev
from voter.core.events import Failure
from voter.core.replica import State

POLICIES = ("2/3", "3/5", "2/2", "1/3", "1/1")


class World:
    """A node to which things happen.  ``single``: at most one replica is faulty at a time.

    A replica counts as faulty from its fault until it is honest and votes again.  An honest one is
    never late: before time passes it has done its work.
    """

    def __init__(self, node: Node, *, single: bool) -> None:
        self.node = node.start()
        self.single = single
        self.faulty: int | None = None

    def may_fail(self, index: int) -> bool:
        """Whether this replica may become faulty now."""
        if self.faulty is not None:
            well = self.node.replicas[self.faulty].fault is None and self.node.engine.members[
                self.faulty
            ].state in (State.ACTIVE, State.OBSERVER)
            if well:
                self.faulty = None
        return not self.single or self.faulty in (None, index)

    def submit(self, request: bytes, read_only: bool) -> None:
        self.node.submit(request, read_only=read_only)

    def move(self, index: int, work_first: bool) -> None:
        """Let one replica take a message, or say one thing."""
        replica = self.node.replicas[index]
        if replica.inbox and (work_first or not replica.outbox):
            self.node.work(index)
        elif replica.outbox:
            self.node.deliver(index)
        elif replica.untold:
            replica.tell()

    def tell(self, index: int) -> None:
        """Let a replica's digest be ready, if one is on its way, before what it has still to do."""
        if self.node.replicas[index].untold:
            self.node.replicas[index].tell()

    def run(self) -> None:
        self.node.run()

    def tick(self, seconds: float) -> None:
        if self.single:
            for replica in self.node.replicas:
                if replica.index != self.faulty:
                    self.node.run_one(replica.index)
        self.node.tick(seconds)

    def cancel(self, choice: int) -> None:
        waiting = sorted(self.node.open)
        if waiting:
            self.node.cancel(waiting[choice % len(waiting)])

    def fail(self, index: int, fault: str) -> None:
        if not self.may_fail(index):
            return
        self.faulty = index
        if fault == "crash":
            self.node.crash(index)
        elif fault == "cut":
            self.node.lose(index)
        else:
            self.node.replicas[index].fault = fault

    def mend(self, index: int, put_back: bool) -> None:
        """Put a faulty guest back, or connect one that has no link, as it is or started anew."""
        replica = self.node.replicas[index]
        if replica.fault is not None and put_back:
            replica.fault = None
            self.node.crash(index)
        if not replica.epoch:
            if put_back and self.node.engine.members[index].state is State.EXPELLED:
                replica.fault = None
                replica.restart()
            self.node.connect(index)

    def check(self) -> None:
        self.node.check_order()
        if self.single:
            for verdict in self.node.verdicts.values():
                assert isinstance(verdict, ev.Release) or verdict.failure == Failure.OVERLOAD

    def end(self) -> None:
        """Whatever has happened: all is well again once all are healed."""
        self.node.heal()
        self.node.run()  # the last tick may have asked for digests (scrub)
        self.node.check_idle()
        self.node.check_alive()
        self.node.run()
        self.node.check_idle()


def random_limits(dice: random.Random, *, single: bool) -> Limits:
    """Small limits, so that each of them matters.  Lag is a fault, so not where one is too many."""
    return Limits(
        marker_every=dice.choice([3, 7, 20]),
        checkpoint_bytes=dice.choice([1000, 5000]),
        log_bytes=dice.choice([5000, 20_000, 10**6]),
        pending=dice.choice([5, 50]),
        pending_bytes=dice.choice([200, 10**5]),
        window=dice.choice([1, 3, 50]),
        window_bytes=dice.choice([20, 10**5]),
        lag=1000 if single else dice.choice([10, 100]),
        lag_bytes=10**6 if single else dice.choice([500, 10**5]),
        ballot_bytes=dice.choice([100, 1000, 10**5]),
    )


def make_request(dice: random.Random, *, single: bool) -> bytes:
    """A request with a short or (L) a long reply, or a deadly one (P)."""
    kinds = [b"L", b"x"] if single else [b"L", b"x"] * 20 + [b"P"]
    return dice.choice(kinds) + b"%d" % dice.randrange(99)


def play(seed: int, steps: int = 400) -> Node:
    """Run one world by its seed.  Even seeds have one faulty replica at a time, of two of three."""
    dice = random.Random(seed)
    single = seed % 2 == 0
    vote = "2/3" if single else dice.choice(POLICIES)
    engine = make_engine(
        vote, limits=random_limits(dice, single=single), observers=dice.choice([0, 0, 1])
    )
    world = World(Node(engine), single=single)
    count = len(world.node.replicas)
    for replica in world.node.replicas:
        replica.slow = dice.random() < 0.5
    deeds: list[tuple[int, Callable[[], None]]] = [
        (25, lambda: world.submit(make_request(dice, single=single), dice.random() < 0.3)),
        (50, lambda: world.move(dice.randrange(count), dice.random() < 0.5)),
        (5, lambda: world.tick(dice.choice([0.01, 0.3, 0.9, 1.9, 5]))),
        (3, lambda: world.cancel(dice.randrange(99))),
        (7, lambda: world.fail(dice.randrange(count), dice.choice([*FAULTS, "crash", "cut"]))),
        (6, lambda: world.mend(dice.randrange(count), dice.random() < 0.7)),
        (3, lambda: world.tell(dice.randrange(count))),
        (2, world.run),
    ]  # fmt: skip
    weights = [weight for weight, _ in deeds]
    for _ in range(steps):
        dice.choices(deeds, weights)[0][1]()
        world.check()
    world.end()
    return world.node


@pytest.mark.parametrize("block", range(6))
def test_promises_by_seed(block: int) -> None:
    nodes = [play(seed) for seed in range(block * 20, block * 20 + 20)]
    assert sum(len(node.checkpoints) for node in nodes) > 5, "these worlds must have checkpoints"
    released = [v for node in nodes for v in node.verdicts.values() if isinstance(v, ev.Release)]
    assert len(released) > 400, "these worlds must answer"
    dissents = sum(replica.dissents for node in nodes for replica in node.engine.members)
    assert dissents > 5, "these worlds must have liars"


@pytest.mark.long
@pytest.mark.parametrize("block", range(50))
def test_promises_by_many_seeds(block: int) -> None:
    for seed in range(1000 + block * 100, 1100 + block * 100):
        play(seed, steps=600)


class AnyFaults(RuleBasedStateMachine):
    """Things happen in any order; hypothesis looks for the one that breaks a promise."""

    single = False

    @initialize(
        vote=st.sampled_from(POLICIES), seed=st.integers(0, 99), observers=st.integers(0, 1)
    )
    def start(self, vote: str, seed: int, observers: int) -> None:
        limits = random_limits(random.Random(seed), single=self.single)
        engine = make_engine("2/3" if self.single else vote, limits=limits, observers=observers)
        self.world = World(Node(engine), single=self.single)
        self.count = len(self.world.node.replicas)
        for replica in self.world.node.replicas[:: 1 + seed % 3]:
            replica.slow = True

    @rule(index=st.integers(0, 5))
    def tell(self, index: int) -> None:
        self.world.tell(index % self.count)

    @rule(request=st.sampled_from([b"a", b"b", b"L", b"P"]), read_only=st.booleans())
    def submit(self, request: bytes, read_only: bool) -> None:
        deadly = request == b"P" and self.single  # it would make all replicas faulty at a time
        self.world.submit(b"a" if deadly else request, read_only)

    @precondition(lambda self: self.world.node.busy())
    @rule(data=st.data(), work_first=st.booleans())
    def move(self, data: st.DataObject, work_first: bool) -> None:
        self.world.move(data.draw(st.sampled_from(self.world.node.busy())), work_first)

    @precondition(lambda self: self.world.node.busy())
    @rule()
    def run_all(self) -> None:
        self.world.run()

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.9, 1.9, 5.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @precondition(lambda self: self.world.node.open)
    @rule(choice=st.integers(0, 9))
    def cancel(self, choice: int) -> None:
        self.world.cancel(choice)

    @rule(index=st.integers(0, 5), fault=st.sampled_from([*FAULTS, "crash", "cut"]))
    def fail(self, index: int, fault: str) -> None:
        self.world.fail(index % self.count, fault)

    @rule(index=st.integers(0, 5), put_back=st.booleans())
    def mend(self, index: int, put_back: bool) -> None:
        self.world.mend(index % self.count, put_back)

    @invariant()
    def promises(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


class OneFault(AnyFaults):
    """The same with at most one faulty replica at a time: then every request is answered."""

    single = True


TestAnyFaults = pytest.mark.filterwarnings("default")(AnyFaults.TestCase)
TestOneFault = pytest.mark.filterwarnings("default")(OneFault.TestCase)
TestAnyFaults.settings = TestOneFault.settings = settings(max_examples=60, stateful_step_count=40)
