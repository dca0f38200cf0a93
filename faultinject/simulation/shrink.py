"""Shrink a plan to few faults and operations with which it still breaks the same promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from faultinject.simulation.notation import write_numbers
from faultinject.simulation.plan import SimPlan
from faultinject.simulation.run import RunResult, run

__all__ = ["command_of", "fewest", "shrink"]

MOST_RUNS = 400
"""Runs after which the smallest plan found so far is returned."""


def fewest(items: Sequence[int], still: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return a subset of ``items`` for which ``still`` holds, by delta debugging (ddmin).

    It removes pieces while ``still`` holds, and halves their size when no piece can be removed.
    The result is minimal: ``still`` fails without any one of its items.
    """
    items = list(items)
    if items and still([]):
        return []
    pieces = 2
    while len(items) > 1:
        size = -(-len(items) // pieces)
        for at in range(0, len(items), size):
            rest = items[:at] + items[at + size :]
            if still(rest):
                items, pieces = rest, max(2, pieces - 1)
                break
        else:
            if size == 1:
                break
            pieces = min(len(items), pieces * 2)
    return items


def shrink(plan: SimPlan, promise: str) -> tuple[SimPlan, RunResult]:
    """Return the smallest plan found that breaks this promise, and its run."""
    best = plan, run(plan)
    runs = 0

    def breaks(smaller: SimPlan) -> bool:
        nonlocal best, runs
        runs += 1
        if runs > MOST_RUNS:
            return False
        result = run(smaller)
        if any(breach.promise == promise for breach in result.breaches):
            best = smaller, result
            return True
        return False

    fewest([f.index for f in plan.faults], lambda some: breaks(plan.without(some, None)))
    faults = [f.index for f in best[0].faults]
    fewest([o.index for o in plan.operations], lambda some: breaks(plan.without(faults, some)))
    operations = [o.index for o in best[0].operations]
    fewest(faults, lambda some: breaks(plan.without(some, operations)))
    return best


def command_of(plan: SimPlan, whole: SimPlan, *, defect: str = "") -> str:
    """Return the command that repeats this run."""
    parts = [f"trivisor simulate --seed {plan.seed}"]
    if len(plan.faults) != len(whole.faults):
        parts.append(f"--faults {write_numbers([f.index for f in plan.faults])}")
    if len(plan.operations) != len(whole.operations):
        parts.append(f"--operations {write_numbers([o.index for o in plan.operations])}")
    if defect:
        parts.append(f"--defect {defect}")
    return " ".join(parts)
