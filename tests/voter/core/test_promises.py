"""The engine's promises under random faults, by hypothesis.

model.py asserts Agreement, Order, Fail-safe and Bounded at every step.  Here the faults are made,
and Liveness is checked.  While at most one replica at a time is faulty, every request is answered.
Whatever has happened, every request is answered once all replicas are healed.
"""

from __future__ import annotations

import random

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
    """A node and its faults.  ``single``: at most one replica is faulty at a time.

    A replica counts as faulty from its fault until it is correct and votes again.  A correct one is
    never late: before time passes, it has done its work.
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

    def move(self, index: int, work_first: bool) -> None:
        """Let one replica take a message, or deliver one of its messages."""
        replica = self.node.replicas[index]
        if replica.inbox and (work_first or not replica.outbox):
            self.node.work(index)
        elif replica.outbox:
            self.node.deliver(index)
        elif replica.late_digest:
            replica.send_digest()

    def send_digest(self, index: int) -> None:
        """Let a late digest of a replica be ready before the rest of its work."""
        if self.node.replicas[index].late_digest:
            self.node.replicas[index].send_digest()

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

    def mend(self, index: int, restart: bool) -> None:
        """Connect a replica that has no link, or restart a faulty or expelled one first."""
        replica = self.node.replicas[index]
        if replica.fault is not None and restart:
            replica.fault = None
            self.node.crash(index)
        if not replica.epoch:
            if restart and self.node.engine.members[index].state is State.EXPELLED:
                replica.fault = None
                replica.restart()
            self.node.connect(index)

    def check(self) -> None:
        self.node.check_order()
        if self.single:
            for result in self.node.results.values():
                assert isinstance(result, ev.Release) or result.failure == Failure.OVERLOAD

    def end(self) -> None:
        """Heal all replicas: whatever has happened, the node recovers."""
        self.node.heal()
        self.node.run()  # the last tick may have placed a marker (scrub)
        self.node.check_idle()
        self.node.check_alive()
        self.node.run()
        self.node.check_idle()


def random_limits(dice: random.Random, *, single: bool) -> Limits:
    """Return small limits, so that each of them matters.  A lag counts as a second fault."""
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


class AnyFaults(RuleBasedStateMachine):
    """Events and faults in any order; hypothesis searches for one that breaks a promise."""

    single = False

    @initialize(
        vote=st.sampled_from(POLICIES),
        seed=st.integers(0, 99),
        observers=st.integers(0, 1),
        follow=st.booleans(),
    )
    def start(self, vote: str, seed: int, observers: int, follow: bool) -> None:
        limits = random_limits(random.Random(seed), single=self.single)
        vote = "2/3" if self.single else vote
        engine = make_engine(vote, limits=limits, observers=observers, follow=follow)
        self.world = World(Node(engine), single=self.single)
        self.count = len(self.world.node.replicas)
        for replica in self.world.node.replicas[:: 1 + seed % 3]:
            replica.slow = True

    @rule(index=st.integers(0, 5))
    def send_digest(self, index: int) -> None:
        self.world.send_digest(index % self.count)

    @rule(request=st.sampled_from([b"a", b"b", b"L", b"P"]), read_only=st.booleans())
    def submit(self, request: bytes, read_only: bool) -> None:
        deadly = request == b"P" and self.single  # it would make all replicas faulty
        self.world.node.submit(b"a" if deadly else request, read_only=read_only)

    @precondition(lambda self: self.world.node.busy())
    @rule(data=st.data(), work_first=st.booleans())
    def move(self, data: st.DataObject, work_first: bool) -> None:
        self.world.move(data.draw(st.sampled_from(self.world.node.busy())), work_first)

    @precondition(lambda self: self.world.node.busy())
    @rule()
    def run_all(self) -> None:
        self.world.node.run()

    @rule(seconds=st.sampled_from([0.002, 0.01, 0.3, 0.9, 1.9, 5.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @precondition(lambda self: self.world.node.open)
    @rule(choice=st.integers(0, 9))
    def cancel(self, choice: int) -> None:
        self.world.cancel(choice)

    @rule(index=st.integers(0, 5), fault=st.sampled_from([*FAULTS, "crash", "cut"]))
    def fail(self, index: int, fault: str) -> None:
        self.world.fail(index % self.count, fault)

    @rule(index=st.integers(0, 5), restart=st.booleans())
    def mend(self, index: int, restart: bool) -> None:
        self.world.mend(index % self.count, restart)

    @invariant()
    def promises(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


class OneFault(AnyFaults):
    """The same with at most one faulty replica at a time: every request is answered."""

    single = True


TestAnyFaults = pytest.mark.filterwarnings("default")(AnyFaults.TestCase)
TestOneFault = pytest.mark.filterwarnings("default")(OneFault.TestCase)
TestAnyFaults.settings = TestOneFault.settings = settings(max_examples=60, stateful_step_count=60)
