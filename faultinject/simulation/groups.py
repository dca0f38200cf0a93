"""Group failed seeds by what they report, and shrink one seed of each group.

Two failures are in one group if their reports are equal after numbers and values are removed.  That
is a first sort, not a diagnosis.  The shrunk seed comes with a timeline that shows the cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from faultinject.simulation.plan import make_plan
from faultinject.simulation.run import RunResult, run
from faultinject.simulation.shrink import command_of, shrink
from faultinject.simulation.timeline import Timeline

__all__ = ["CODE", "FailureGroup", "Shrunk", "first_failure", "group", "shrink_group"]

CODE = "no exception"
"""The kind of a failure in which an exception left the product's code, in place of a promise."""
_VALUE = re.compile(r"b?'[^']*'|b?\"[^\"]*\"|\d+(\.\d+)?")


class FailureGroup(msgspec.Struct):
    """Seeds that failed alike: the promise, the report without numbers and values, the seeds."""

    promise: str
    report: str
    seeds: list[int] = []


class Shrunk(msgspec.Struct, frozen=True):
    """The smallest plan found that breaks a group's promise: its command, kinds and timeline."""

    seed: int
    command: str
    kinds: list[str]
    operations: int
    report: str
    timeline: list[str]


def first_failure(result: RunResult) -> tuple[str, str]:
    """Return the promise that a failed run broke first, and the report."""
    if result.breaches:
        return result.breaches[0].promise, result.breaches[0].text
    return CODE, result.problems[0].strip().splitlines()[-1]


def group(failed: Iterable[RunResult]) -> list[FailureGroup]:
    """Group failures by report; the largest group is first."""
    groups: dict[tuple[str, str], FailureGroup] = {}
    for result in failed:
        promise, report = first_failure(result)
        report = _VALUE.sub("#", report)
        key = promise, report
        groups.setdefault(key, FailureGroup(promise, report)).seeds.append(result.seed)
    for each in groups.values():
        each.seeds.sort()
    return sorted(groups.values(), key=lambda each: (-len(each.seeds), each.promise, each.report))


def shrink_group(chosen: FailureGroup, *, defect: str = "") -> Shrunk:
    """Shrink the first seed of a group, and record a timeline of the shrunk plan."""
    seed = chosen.seeds[0]
    whole = make_plan(seed)
    plan = whole if chosen.promise == CODE else shrink(whole, chosen.promise)[0]
    timeline = Timeline()
    result = run(plan, timeline)
    reports = [b.text for b in result.breaches if b.promise == chosen.promise] or result.problems
    return Shrunk(
        seed,
        command_of(plan, whole, defect=defect),
        [fault.kind for fault in plan.faults],
        len(plan.operations),
        reports[0].strip().splitlines()[-1] if reports else "",
        timeline.lines,
    )
