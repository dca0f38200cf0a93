"""A small campaign with every kind of cell, and rows for its missions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from faultinject.campaign.planning.plan import CampaignPlan, plan
from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.records import (
    GuestResult,
    InjectionResult,
    MissionPlan,
    MissionRow,
    RequestResult,
    Timings,
)
from faultinject.campaign.store.store import Store
from faultinject.campaign.store.tally import Tally
from faultinject.results.outcome import NodeFacts, Outcome

__all__ = ["FACTS", "SMALL", "campaign_of", "fill", "results_of", "row_of", "small_plan", "sum_of"]

SMALL = """
title = "A bit of everything"
question = "inequality4"
alike = 0.5

[station]
vote = "2/3"
guests = 3

[faults]
crash = 1
corrupt-reply = 3

[voter_faults]
voter-kill = 1

[[strata]]
guests_hit = 0
missions = 20

[[strata]]
guests_hit = 1
repair = "both"
missions = 30

[[strata]]
guests_hit = 2
missions = 40

[[strata]]
guests_hit = 3
missions = 10

[[strata]]
guests_hit = 0
repair = "on"
missions = 5

[[strata]]
guests_hit = 2
repair = "on"
missions = 5

[[strata]]
guests_hit = 3
repair = "on"
missions = 5

[[strata]]
guests_hit = 1
voter_hit = true
missions = 8

[[strata]]
design = "nv"
guests_hit = 1
missions = 6

[[doses]]
flips = 0
voted = 2
nv = 2

[[doses]]
flips = 50
voted = 7
nv = 9

[[shots]]
kind = "flip-all"
flips = 5
missions = 4
nv = 3

[[shots]]
kind = "host-crash"
missions = 2
"""

FACTS = NodeFacts(
    host="ab", cpus=2, cpu="a processor", kernel="6.1", python="3.11", qemu="8", libvirt="9",
    accel="tcg", image="i", build="b", trivisor="0.1",
)  # fmt: skip


def small_plan(seed: int = 1) -> CampaignPlan:
    """Return its plan."""
    return plan(parse(SMALL), seed)


def results_of(mission: MissionPlan, *, applied: bool = True) -> tuple[InjectionResult, ...]:
    """Return the results of its hits: all applied, or none."""
    return tuple(
        InjectionResult(
            target=hit.target, kind=hit.kind, applied=applied, used=applied, proof="p", seconds=0.1
        )
        for hit in mission.injections
    )


WRONG = "HTTP/1.1 200 OK\r\n\r\nwrong"
CODES = {
    Outcome.CORRECT: "right",
    Outcome.SILENT: "wrong",
    Outcome.DECLARED: "wrong",
    Outcome.UNCLEAR: "wrong",
    Outcome.DETECTED: "not-executed",
    Outcome.TIMEOUT: "timeout",
    Outcome.VOTER_LOST: "connection",
}


def row_of(
    mission: MissionPlan, outcome: Outcome | None = Outcome.CORRECT, *, masked: int = 0
) -> MissionRow:
    """Return a row as a node makes it; its last request has the outcome's code."""
    hit = {each.target for each in mission.injections}
    requests = [RequestResult(masked=number < masked) for number in range(19)]
    if outcome is not None:
        replies = {Outcome.SILENT: WRONG, Outcome.DECLARED: "HTTP/1.1 500 Error\r\n\r\n"}
        requests.append(RequestResult(code=CODES[outcome], reply=replies.get(outcome, "")))
    names = ("g1",) if mission.design == "nv" else ("g1", "g2", "g3")
    return MissionRow(
        index=mission.index,
        lost="" if outcome else "no clean start",
        requests=tuple(requests),
        voter_alive=outcome is not Outcome.VOTER_LOST,
        injections=results_of(mission),
        guests=tuple(
            GuestResult(name=name, state="active", reason="", failed=bool(hit & {name, "host"}))
            for name in names
        ),
        latencies=(0.001, 0.002, -1.0),
        timings=Timings(reset=0.2, inject=0.01, workload=0.05, settle=0.01),
        began=1.7e9 + mission.order,
        worker="w1",
    )


def campaign_of(
    directory: Path,
    text: str,
    rows: Callable[[MissionPlan], MissionRow | Outcome],
    missions: Callable[[MissionPlan], bool] = lambda _: True,
) -> Store:
    """Return a campaign all of whose (selected) missions ended so, in one run of one worker."""
    store = Store.create(directory, text, 1, versions={"trivisor": "0.1"})
    store.note_facts("w1", FACTS)
    number = store.begin(1)
    for mission in filter(missions, store.plan.in_order()):
        row = rows(mission)
        store.add(row_of(mission, row) if isinstance(row, Outcome) else row)
    store.end(number, "complete")
    return store


def fill(store: Store, count: int | None = None) -> None:
    """Store the first missions of the order; with two or more guests hit they are detected."""
    for mission in itertools.islice(store.plan.in_order(), count):
        store.add(row_of(mission, Outcome.DETECTED if mission.k > 1 else Outcome.CORRECT))


def sum_of(tallies: dict[str, Tally]) -> Tally:
    """Return their sum."""
    total = Tally()
    for tally in tallies.values():
        total += tally
    return total
