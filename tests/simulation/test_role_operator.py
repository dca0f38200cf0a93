"""Exchanges of guests in the simulation: they are made, interrupted, and checked."""

from __future__ import annotations

import msgspec
import pytest

from faultinject.simulation.plan import Operation, SimFault, SimPlan, make_plan
from faultinject.simulation.run import run
from faultinject.simulation.world import World
from voter.core.membership import Membership

QUIET = msgspec.structs.replace(
    make_plan(1),
    operations=tuple(Operation(i, i % 2, "put", "a", pause=0.01) for i in range(80)),
    faults=(),
    durability="fsync",
    spares=1,
    two_faulty=False,
)
"""A plan with a free slot and without faults, whose two clients are busy for 0.4 s."""


def exchange(kind: str, *faults: SimFault) -> SimPlan:
    """Return a plan with one exchange for the voter g1, and these faults."""
    made = SimFault(index=100, kind=kind, at=0.05, target=1, seconds=0.02)
    return msgspec.structs.replace(QUIET, faults=(made, *faults))


def table() -> tuple[int, dict[str, str]]:
    """Return version and table at the end of the last run."""
    return World.current.operator.acknowledged


@pytest.mark.parametrize("kind", ["exchange-learner", "exchange-observer"])
def test_guest_in_the_free_slot_takes_a_voters_place(kind: str) -> None:
    result = run(exchange(kind))
    assert (result.breaches, result.problems) == ([], [])
    assert table() == (2, {"g0": "voter", "g1": "retired", "g2": "voter", "g3": "voter"})
    assert World.current.in_use == {0, 2, 3}


def test_abandoned_exchange_leaves_the_voters_as_they_were() -> None:
    assert not run(exchange("abandon-exchange")).failed
    assert table() == (2, {"g0": "voter", "g1": "voter", "g2": "voter", "g3": "retired"})
    assert World.current.in_use == {0, 1, 2}


@pytest.mark.parametrize("kind", ["kill-voter", "kill-voter-in-call", "power-loss"])
@pytest.mark.parametrize("amount", range(1, 60, 3))
def test_exchange_outlives_the_voter_at_any_step(kind: str, amount: int) -> None:
    """The voter dies before its amount-th callback or call after the exchange has begun."""
    at = 0.05 + (amount / 1500 if kind == "power-loss" else 0.0)
    result = run(exchange("exchange-learner", SimFault(index=101, kind=kind, at=at, amount=amount)))
    assert (result.breaches, result.problems) == ([], [])
    assert set(table()[1].values()) == {"voter", "retired"}


def test_table_that_nobody_wanted_is_a_breach_after_a_restart() -> None:
    world = World(QUIET)
    members = run_members()
    members.roles_version = 5
    world.operator.restarted(members)
    assert [breach.promise for breach in world.observer.breaches] == ["Roles"]


def run_members() -> Membership:
    """Return the replicas of a voter that ran."""
    run(QUIET)
    runner = World.current.runner or next(iter(World.current.runners.values()))
    return runner.engine.members
