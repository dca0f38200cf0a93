"""Fresh seeds are new each time; known seeds have a promise and a documented cause."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

from faultinject.simulation.groups import CODE
from faultinject.simulation.plan import ROLES, make_plan
from faultinject.simulation.promises import PROMISES
from faultinject.simulation.seeds import fresh, known, source_revision
from tests.project.tree import ROOT


def test_fresh_seeds_follow_from_commit_and_time_and_do_not_overlap() -> None:
    ranges = [fresh(1_000_000, revision, now) for revision in ("a", "b") for now in range(20)]
    assert ranges[0] == fresh(1_000_000, "a", 0)
    ranges.sort(key=lambda each: each.start)
    assert ranges[0].start >= ROLES
    for one, other in pairwise(ranges):
        assert one[-1] < other[0]


def test_source_revision_is_the_commit_of_this_tree() -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(source_revision())


def test_known_seeds_name_a_promise_and_a_documented_cause() -> None:
    explained = (Path(ROOT) / "docs/simulation.md").read_text()
    assert len({each.seed for each in known()}) == len(known()) > 15
    for each in known():
        assert each.promise in (*PROMISES, CODE)
        assert f"\n### {each.cause}\n" in explained, each.cause
        assert str(each.seed) in explained


def test_plan_of_a_seed_below_the_swarm_never_changes() -> None:
    """A seed that failed once must still name the same plan."""
    plan = make_plan(77005182)
    faults = [(fault.kind, fault.target, round(fault.at, 3), fault.amount) for fault in plan.faults]
    assert faults == [("power-loss", 1, 0.02, 112), ("bit-rot", 0, 0.022, 3)]
    assert (len(plan.operations), plan.segment, plan.block) == (22, 16384, 512)
