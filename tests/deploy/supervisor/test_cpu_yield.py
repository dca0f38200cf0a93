"""For how long a guest that comes back yields."""

from __future__ import annotations

import pytest

from deploy.supervisor.cpu_yield import YIELD_LIMIT, CpuYield, yield_limit
from deploy.supervisor.repair_policy import ReplicaView
from voter.core.limits import Limits

MIB = 1 << 20


class Seen:
    """A guest that is looked at every half second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.yielding = CpuYield()

    def see(
        self, replica: str | None, vm: str = "ready", *, served: bool = True,
        throttled: bool = False, seconds: float = 0.5,
    ) -> bool:  # fmt: skip
        """Whether it yields, having been so for so many seconds."""
        sight = ReplicaView(vm=vm, replica=replica, reason="", since=0.0)
        end, yields = self.now + seconds, False
        while self.now < end:
            self.now += 0.5
            yields = self.yielding.see(
                sight, self.now, served=served, throttled=throttled, limit=10.0
            )
            assert self.yielding.on is yields
        return yields


def test_it_yields_from_its_return_to_its_vote() -> None:
    seen = Seen()
    told = [seen.see(state) for state in ("expelled", "absent", "restoring", "learner", "active")]
    assert told == [False, False, True, True, False]
    assert seen.see("learner"), "the next time it does so again"


@pytest.mark.parametrize("replica", ["active", "observer", "absent", "expelled", None])
def test_it_yields_only_while_it_comes_back(replica: str | None) -> None:
    assert not Seen().see(replica)


@pytest.mark.parametrize("vm", ["booting", "restoring", "paused", "dead"])
def test_one_that_does_not_run_does_not_yield(vm: str) -> None:
    assert not Seen().see("learner", vm)


def test_where_clients_wait_for_it_it_does_not_yield() -> None:
    assert not Seen().see("restoring", served=False)
    assert not Seen().see("learner", throttled=True)


def test_it_yields_for_a_bounded_time_and_then_not_before_it_has_voted() -> None:
    seen = Seen()
    assert seen.see("restoring", seconds=8.0)
    assert not seen.see("learner", seconds=4.0)
    assert not seen.see("restoring", seconds=100.0)
    assert not seen.see("active")
    assert seen.see("restoring")


@pytest.mark.parametrize("between", ["absent", "expelled", None])
def test_a_second_try_is_not_slowed(between: str | None) -> None:
    """The first one may have failed because of it."""
    seen = Seen()
    assert seen.see("restoring")
    assert not seen.see(between)
    assert not seen.see("restoring")


def test_it_does_not_yield_again_once_writes_had_to_wait_for_it() -> None:
    seen = Seen()
    assert seen.see("learner")
    assert not seen.see("learner", throttled=True)
    assert not seen.see("learner", throttled=False)


def test_half_of_the_voter_s_patience_is_left() -> None:
    limits = Limits()
    assert yield_limit(0) == limits.hang / 2
    assert yield_limit(20 * MIB) == (limits.hang + 20) / 2
    assert yield_limit(10_000 * MIB) == YIELD_LIMIT
