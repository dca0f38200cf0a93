"""How long a returning guest yields."""

from __future__ import annotations

import pytest

from deploy.supervisor.cpu_yield import (
    RESTORE_LIMIT,
    SPARE_LIMIT,
    YIELD_LIMIT,
    CpuYield,
    yield_limit,
)
from deploy.supervisor.repair_policy import ReplicaView
from deploy.supervisor.repairer import JOIN_LIMIT
from voter.core.limits import Limits

MIB = 1 << 20


class Guest:
    """A guest that is observed every half second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.yielding = CpuYield()

    def is_(
        self, replica: str | None, vm: str = "ready", *, served: bool = True,
        throttled: bool = False, seconds: float = 0.5, votes: bool = True,
    ) -> bool:  # fmt: skip
        """Return whether it yields after being in this state for so many seconds."""
        view = ReplicaView(vm=vm, replica=replica, reason="", since=0.0)
        end, yields = self.now + seconds, False
        while self.now < end:
            self.now += 0.5
            yields = self.yielding.update(
                view, self.now, served=served, throttled=throttled, limit=10.0, votes=votes
            )
            assert self.yielding.on is yields
        return yields


def test_guest_yields_from_its_return_to_its_vote() -> None:
    guest = Guest()
    states = ("expelled", "absent", "restoring", "learner", "active")
    assert [guest.is_(state) for state in states] == [False, False, True, True, False]
    assert guest.is_("learner"), "the next return"


@pytest.mark.parametrize(
    ("replica", "vm"),
    [(replica, "ready") for replica in ("active", "observer", "absent", "expelled", None)]
    + [("learner", vm) for vm in ("booting", "paused", "dead")],
)
def test_guest_does_not_yield_when_it_is_not_returning(replica: str | None, vm: str) -> None:
    assert not Guest().is_(replica, vm)


def test_guest_yields_from_the_start_of_its_restore() -> None:
    guest = Guest()
    states = ("dead", "absent"), ("restoring", "absent"), ("ready", "absent"), ("ready", "learner")
    assert [guest.is_(replica, vm) for vm, replica in states] == [False, True, True, True]
    assert not guest.is_("active")


def test_guest_that_the_voter_does_not_reach_yields_no_longer() -> None:
    guest = Guest()
    assert guest.is_("absent", "restoring", seconds=RESTORE_LIMIT / 2)
    assert not guest.is_("absent", seconds=RESTORE_LIMIT)
    assert not guest.is_("learner"), "it has yielded, and has not voted since"


def test_guest_that_starts_in_a_free_slot_yields_for_less_time() -> None:
    guest = Guest()
    assert guest.is_("retired", "restoring", seconds=SPARE_LIMIT - 0.5, votes=False)
    assert not guest.is_("retired", "restoring", seconds=1.0, votes=False)
    assert SPARE_LIMIT < RESTORE_LIMIT


def test_time_of_the_restore_does_not_count_when_it_joins() -> None:
    guest = Guest()
    assert guest.is_("absent", "restoring", seconds=RESTORE_LIMIT - 1)
    assert guest.is_("restoring", seconds=9.0)
    assert not guest.is_("restoring", seconds=2.0)


def test_guest_does_not_yield_when_clients_wait_for_it() -> None:
    assert not Guest().is_("absent", "restoring", served=False)
    assert not Guest().is_("restoring", served=False)
    assert not Guest().is_("learner", throttled=True)


def test_guest_yields_for_a_limited_time_until_it_has_voted() -> None:
    guest = Guest()
    assert guest.is_("restoring", seconds=8.0)
    assert guest.is_("learner", seconds=YIELD_LIMIT)
    assert not guest.is_("learner", seconds=4.0)
    assert not guest.is_("restoring", seconds=100.0)
    assert not guest.is_("active")
    assert guest.is_("restoring")


def test_guest_that_is_sent_one_state_after_the_other_yields_no_longer() -> None:
    """It catches up more slowly than the log is replaced by a checkpoint."""
    guest = Guest()
    assert guest.is_("restoring", seconds=5.0)
    assert guest.is_("learner", seconds=10.0)
    assert not guest.is_("restoring", seconds=1.0)
    assert not guest.is_("learner", seconds=1.0)


@pytest.mark.parametrize("between", ["absent", "expelled", None])
def test_guest_does_not_yield_at_a_second_attempt(between: str | None) -> None:
    """Yielding may have caused the failure of the first."""
    guest = Guest()
    assert guest.is_("restoring")
    assert not guest.is_(between)
    assert not guest.is_("restoring")


def test_guest_does_not_yield_again_after_writes_were_throttled() -> None:
    guest = Guest()
    assert guest.is_("learner")
    assert not guest.is_("learner", throttled=True)
    assert not guest.is_("learner", throttled=False)


def test_yield_limit_is_half_of_the_voters_timeout() -> None:
    limits = Limits()
    assert yield_limit(0) == limits.hang / 2
    assert yield_limit(20 * MIB) == (limits.hang + 20) / 2
    assert yield_limit(Limits().state_bytes) < JOIN_LIMIT / 2
