"""Missions on real guests with the function f in each guest, or F on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.campaign.records import MissionPlan
from faultinject.faults import Injection
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.nodes import node

pytestmark = pytest.mark.vm


def planned(*hits: Injection, seed: int = 1) -> MissionPlan:
    f = sum(hit.kind.startswith("function-") for hit in hits)
    moved = any(hit.target == "function" for hit in hits)
    return MissionPlan(
        index=seed, order=seed, stratum="test", design="voted", repair=False, vote="1/2",
        k=len(hits) - f - moved, function_k=f, host_function_hit=moved, voter_hit=False, seed=seed,
        length=20, injections=hits,
    )  # fmt: skip


def hit(target: str, kind: str, at: int = 5) -> Injection:
    return Injection(target=target, kind=kind, at=at, seed=7)


def test_missions_with_f_in_each_guest(shared_scratch: Path) -> None:
    with node(shared_scratch / "fg", "guest") as run:
        row = run(planned())
        assert (row.outcome, row.correct) == (Outcome.CORRECT, 21), row.problem
        for kind in ("function-crash", "function-hang"):
            row = run(planned(hit("g2", kind)))
            assert row.outcome is Outcome.CORRECT, row.problem
            assert [(each.applied, each.used) for each in row.injections] == [(True, True)], (
                row.injections
            )
            assert [guest.name for guest in row.guests if guest.failed] == ["g2"]
            row = run(planned(hit("g1", kind), hit("g2", "hang", at=9)))
            assert row.outcome is not Outcome.CORRECT
            row = run(planned(seed=2))
            assert row.outcome is Outcome.CORRECT, "the next mission starts clean"
        row = run(planned(hit("g1", "function-refuse"), hit("g2", "function-refuse")))
        assert row.outcome is Outcome.SILENT, "1 of n believes a lying f"
        assert run(planned(seed=3)).outcome is Outcome.CORRECT


def test_missions_with_f_on_the_host(shared_scratch: Path) -> None:
    with node(shared_scratch / "fh", "host") as run:
        row = run(planned())
        assert (row.outcome, row.correct) == (Outcome.CORRECT, 21), row.problem
        wanted = {
            "host-function-kill": Outcome.DETECTED, "host-function-hang": Outcome.DETECTED,
            "host-function-admit": Outcome.SILENT, "host-function-refuse": Outcome.SILENT,
        }  # fmt: skip
        for kind, outcome in wanted.items():
            row = run(planned(hit("function", kind)))
            assert row.outcome is outcome, row.problem
            assert row.injections[0].applied, row.injections
            assert not [guest for guest in row.guests if guest.failed]
            assert run(planned(seed=2)).outcome is Outcome.CORRECT
        row = run(planned(hit("g1", "crash")))
        assert row.outcome is Outcome.CORRECT, row.problem
