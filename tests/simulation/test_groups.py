"""Failures are grouped by their reports, and one seed of each group is shrunk."""

from __future__ import annotations

import msgspec
import pytest

from faultinject.simulation import shrink as shrinking
from faultinject.simulation.groups import CODE, group, shrink_group
from faultinject.simulation.plan import SimPlan, make_plan
from faultinject.simulation.promises import Breach
from faultinject.simulation.run import RunResult, run


def result(seed: int, *breaches: tuple[str, str], problems: tuple[str, ...] = ()) -> RunResult:
    return RunResult(
        seed, [Breach(*each, 0.1) for each in breaches], list(problems), "", 1, 1.0, 1, 1, []
    )


def test_reports_that_differ_only_in_numbers_and_values_are_one_group() -> None:
    groups = group(
        [
            result(3, ("Liveness", "operation 11 took 0.6 s ()")),
            result(1, ("Liveness", "operation 7 took 1.6 s ()")),
            result(2, ("Order", "write 3 is sent in two different forms")),
            result(4, ("Liveness", "operation 9 got no reply: b'x'")),
        ]
    )
    assert [(each.promise, each.seeds) for each in groups] == [
        ("Liveness", [1, 3]), ("Liveness", [4]), ("Order", [2]),
    ]  # fmt: skip
    assert groups[0].report == "operation # took # s ()"


def test_seed_is_in_the_group_of_its_first_breach() -> None:
    (only,) = group([result(1, ("Order", "first"), ("Liveness", "second"))])
    assert (only.promise, only.report) == ("Order", "first")


def test_exception_of_the_code_is_a_group_of_its_own() -> None:
    (only,) = group([result(1, problems=("Traceback\n  line 1\nKeyError: 5",))])
    assert (only.promise, only.report) == (CODE, "KeyError: #")


def test_first_seed_of_a_group_is_shrunk_and_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a check that fails for any fault, one fault is left."""

    def fails(plan: SimPlan) -> RunResult:
        broken = [Breach("Order", "broken", 0.0)] if plan.faults else []
        return msgspec.structs.replace(run(plan.without([], [])), breaches=broken)

    monkeypatch.setattr(shrinking, "run", fails)
    seed = next(seed for seed in range(100) if len(make_plan(seed).faults) > 2)
    (only,) = group([result(seed, ("Order", "broken"))])
    small = shrink_group(only)
    assert (small.seed, small.operations, len(small.kinds)) == (seed, 0, 1)
    assert small.command.startswith(f"trivisor simulate --seed {seed} --faults ")
    assert any("boots from its clean snapshot" in line for line in small.timeline)
