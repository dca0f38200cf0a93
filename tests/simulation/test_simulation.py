"""The whole system under a seed: the same each time, and no promise broken in the first seeds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from faultinject.simulation.hunt import hunt
from faultinject.simulation.plan import KINDS, make_plan
from faultinject.simulation.world import run

SEEDS = int(os.environ.get("TRIVISOR_SEEDS", "300"))
"""How many seeds the fast suite runs."""

TRACES = """
from faultinject.simulation.plan import make_plan
from faultinject.simulation.world import run
for seed in range(1, 31):
    result = run(make_plan(seed))
    print(seed, result.trace, result.steps, result.breaches)
"""


def traces(hash_seed: str) -> str:
    """What happens under thirty seeds, told by a process of its own."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", TRACES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_seed_is_the_same_run_in_every_process() -> None:
    told = traces("1")
    assert len(told.splitlines()) == 30
    assert told == traces("2")


def test_a_run_does_not_depend_on_the_runs_before_it() -> None:
    first = run(make_plan(7)).trace
    run(make_plan(8))
    assert run(make_plan(7)).trace == first


def test_other_faults_leave_the_operations_alone() -> None:
    plan = make_plan(11)
    less = plan.without([], None)
    assert less.faults == ()
    assert less.operations == plan.operations


def test_plans_draw_every_kind_of_fault() -> None:
    drawn = {fault.kind for seed in range(600) for fault in make_plan(seed).faults}
    assert drawn == set(KINDS)


def test_all_promises_hold() -> None:
    failed = {}
    answered = restarts = 0
    for summary in hunt(range(1, SEEDS + 1), jobs=os.cpu_count() or 1):
        answered += summary.answered
        restarts += summary.restarts - 1
        if summary.breaches or summary.problems:
            failed[summary.seed] = [*map(str, summary.breaches[:2]), *summary.problems[:2]]
    assert failed == {}, "trivisor simulate --seed N tells more of each"
    assert answered > 10 * SEEDS
    assert restarts > SEEDS // 5


@pytest.mark.parametrize("seed", range(3))
def test_without_faults_every_request_is_answered(seed: int) -> None:
    plan = make_plan(seed).without([], None)
    result = run(plan)
    assert result.breaches == []
    assert result.restarts == 1
