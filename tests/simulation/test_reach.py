"""Measuring what runs reach does not change them, and groups of runs are compared."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

import msgspec
import pytest

from faultinject.simulation.plan import BURSTS, SimFault, SimPlan, make_plan
from faultinject.simulation.reach import (
    DIMENSIONS,
    MEASURED,
    ROOT,
    ReachDifference,
    ReachGroup,
    compare,
    measure,
    reach,
)
from faultinject.simulation.run import run
from voter.core.replica import Replica


def group(runs: int, **counts: dict[str, int]) -> ReachGroup:
    """Make a group that reached these items; dimensions are written with an underscore."""
    named = {name.replace("_", " "): Counter(texts) for name, texts in counts.items()}
    return ReachGroup(runs, {name: named.get(name, Counter()) for name in DIMENSIONS})


def planned(*faults: tuple[str, float, int], amount: int = 0, two: bool = True) -> SimPlan:
    """Make a plan with these faults only: kind, time, target."""
    made = tuple(
        SimFault(index, kind, at, target, seconds=0.1, amount=amount)
        for index, (kind, at, target) in enumerate(faults)
    )
    return msgspec.structs.replace(make_plan(3), faults=made, two_faulty=two, durability="fsync")


@pytest.mark.parametrize("seed", [5, 7, 11])
def test_reach_does_not_change_the_run(seed: int) -> None:
    plan = make_plan(seed)
    assert reach(plan).result.trace == run(plan).trace


def test_reach_restores_everything_and_repeats_exactly() -> None:
    before = Replica.move
    first, second = reach(make_plan(5)), reach(make_plan(5))
    assert first.items == second.items
    assert Replica.move is before
    assert sys.gettrace() is None


def test_bursts_reach_batches_that_are_settled_and_taken_apart() -> None:
    reached = measure(make_plan(BURSTS + number) for number in (1, 2, 19, 72, 81, 170, 257))
    assert reached.counts["batch"].keys() >= {
        "settled", "settled against a lie", "taken apart by AnsweredAll", "taken apart by Lost",
        "taken apart by Greeted", "taken apart by Cancel", "taken apart by Submit",
        "taken apart by SubmitAll", "taken apart by ProtocolViolation",
    }  # fmt: skip


def test_branches_name_lines_of_the_measured_files_only() -> None:
    branches = reach(make_plan(5)).items["branch"]
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for pattern in MEASURED
        for path in ROOT.glob(pattern)
    }
    for text in branches:
        name, _, arc = text.partition(":")
        first, _, last = arc.partition("->")
        assert 1 <= int(first) <= lines[name]
        assert last in ("leaves", "raises") or 1 <= int(last) <= lines[name]
    assert {text.partition(":")[0] for text in branches} >= {
        "voter/core/engine.py", "voter/journal/journal.py", "voter/runner.py", "voter/link.py",
        "guests/agent/incarnation.py",
    }  # fmt: skip


def test_run_without_faults_has_only_the_first_transitions() -> None:
    items = reach(planned()).items
    assert items["transition"] == {
        "absent -behind-> learner",
        "learner -admitted-> active",
    }
    assert items["fault pair"] == items["fault at"] == frozenset()


def test_faults_are_a_pair_when_the_system_has_not_recovered_between_them() -> None:
    items = reach(planned(("reboot", 0.1, 0), ("cut-link", 0.15, 1))).items
    assert items["fault pair"] == {"reboot, then cut-link"}
    assert any(text.startswith("cut-link while absent") for text in items["fault at"])


def test_slow_link_makes_a_pair_when_its_delayed_data_is_still_under_way() -> None:
    plan = planned(("slow-link", 0.05, 0), ("cut-link", 0.2, 1), amount=50)
    assert reach(plan).items["fault pair"] == {"slow-link, then cut-link"}


def test_faults_are_no_pair_when_all_replicas_voted_between_them() -> None:
    plan = planned(("cut-link", 0.02, 0), ("cut-link", 0.4, 1), two=False)
    assert reach(plan).items["fault pair"] == frozenset()


def test_measure_counts_runs() -> None:
    found = measure([planned(), planned()])
    assert found.runs == 2
    assert found.counts["transition"]["learner -admitted-> active"] == 2


def test_compare_returns_what_only_the_second_group_reached_most_frequent_first() -> None:
    first = group(9, branch={"a": 1}, transition={"t": 2})
    second = group(3, branch={"a": 3, "b": 1}, transition={"t": 1, "u": 2}, fault_pair={"p": 1})
    assert compare(first, second) == [
        ReachDifference("transition", "u", 2),
        ReachDifference("branch", "b", 1),
        ReachDifference("fault pair", "p", 1),
    ]


def test_reach_raises_when_another_tracer_is_active() -> None:
    def other(frame: FrameType, event: str, argument: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(other)
    try:
        with pytest.raises(RuntimeError, match="another tracer"):
            reach(planned())
        assert sys.gettrace() is other
    finally:
        sys.settrace(before)
