"""Shipped campaigns whose missions end as a test decides.  None of their numbers was measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec

from faultinject.campaign.planning.spec_file import load
from faultinject.campaign.records import MissionPlan
from faultinject.campaign.store.store import Store
from faultinject.report.gather import gather
from faultinject.results.findings import FILE, storable_findings
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.specs import FACTS, row_of
from voter.core.vote import Policy

__all__ = ["Ends", "as_the_paper_has_it", "made", "never_fails"]

Ends = Callable[[MissionPlan], Outcome]


def as_the_paper_has_it(mission: MissionPlan) -> Outcome:
    policy = Policy.parse(mission.vote or "2/3")
    tolerated = 0 if mission.design == "nv" else policy.of - policy.need
    if policy.need == 1 and any(hit.kind == "corrupt-reply" for hit in mission.injections):
        return Outcome.SILENT
    return Outcome.DETECTED if mission.voter_hit or mission.k > tolerated else Outcome.CORRECT


def never_fails(_: MissionPlan) -> Outcome:
    return Outcome.CORRECT


def made(folder: Path, name: str, ends: Ends, first: int | None = None) -> None:
    """Create a shipped campaign whose missions (or the first of them) end so, with its findings."""
    directory = folder / name
    with Store.create(directory, load(name)[1], 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        number = store.begin(1)
        for mission in itertools.islice(store.plan.in_order(), first):
            store.add(row_of(mission, ends(mission)))
        store.end(number, "complete" if first is None else "interrupted")
    (directory / FILE).write_bytes(msgspec.json.encode(storable_findings(gather(directory))))
