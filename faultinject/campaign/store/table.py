"""The store's table of missions: its columns, and a plan and its row as one record of it.

Nested things are JSON.  ``stratum`` is what the mission counts as (``outcome.standing``),
``planned`` what it was planned as.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from faultinject.campaign.mission.outcome import standing
from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import MissionPlan, MissionRow, Outcome

__all__ = [
    "COLUMNS", "CREATE", "FLAGS", "GROUPS", "INDEX", "INSERT", "LAYER", "as_row", "record_of",
]  # fmt: skip

COLUMNS: dict[str, str] = {
    "ord": "INTEGER PRIMARY KEY",  # its place in the order in which missions are run
    "mission": "INTEGER NOT NULL UNIQUE",  # its number in the plan
    "look": "INTEGER NOT NULL",  # 1, or 2 for the extension
    "planned": "TEXT NOT NULL",
    "stratum": "TEXT NOT NULL",
    "design": "TEXT NOT NULL",
    "repair": "INTEGER NOT NULL",
    "k": "INTEGER NOT NULL",  # guests hit, as counted
    "voter_hit": "INTEGER NOT NULL",  # as counted; or F, which is of the same layer
    "dose": "INTEGER NOT NULL",
    "kind": "TEXT NOT NULL",  # of a dose or shot
    "shot": "INTEGER NOT NULL",
    "kinds": "TEXT NOT NULL",  # of the guests' faults, sorted, joined by "+"
    "voter_kind": "TEXT NOT NULL",
    "alike": "INTEGER",
    "mask": "INTEGER NOT NULL",  # guests hit as planned: bit 0 is g1
    "seed": "INTEGER NOT NULL",
    "length": "INTEGER NOT NULL",
    "outcome": "TEXT",
    "void": "TEXT NOT NULL",
    "words": "TEXT NOT NULL",
    "correct": "INTEGER NOT NULL",
    "wrong": "INTEGER NOT NULL",
    "refused": "INTEGER NOT NULL",
    "unanswered": "INTEGER NOT NULL",
    "masked": "INTEGER NOT NULL",
    "fallen": "INTEGER NOT NULL",  # guests that failed in it
    "plan_hits": "TEXT NOT NULL",
    "hits": "TEXT NOT NULL",
    "guests": "TEXT NOT NULL",
    "latencies": "TEXT NOT NULL",
    "reset_s": "REAL",
    "inject_s": "REAL",
    "workload_s": "REAL",
    "settle_s": "REAL",
    "began": "REAL NOT NULL",
    "worker": "TEXT NOT NULL",
    "attempt": "INTEGER NOT NULL",
    "came_out": "TEXT",  # the outcome of a mission that counts as no trial
}
"""Columns and their SQL types."""

CREATE = "CREATE TABLE missions (" + ", ".join(f"{n} {t}" for n, t in COLUMNS.items()) + ") STRICT"
INDEX = (
    # Whatever rows are counted by is read from here: the bulky columns are not touched.
    "CREATE INDEX tallies ON missions (stratum, outcome, design, repair, k, voter_hit, dose, kind, "
    "shot, kinds, voter_kind, alike, mask, fallen, look, planned, worker, attempt)"
)
INSERT = (
    f"INSERT INTO missions ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    "ON CONFLICT DO NOTHING"
)
GROUPS = (
    "look", "planned", "stratum", "design", "repair", "k", "voter_hit", "dose", "kind", "shot",
    "kinds", "voter_kind", "alike", "mask", "fallen", "worker", "attempt",
)  # fmt: skip
"""What rows may be grouped and chosen by."""
FLAGS = frozenset({"repair", "voter_hit", "shot", "alike"})
"""Columns that are true or false."""


LAYER = frozenset({"voter", "function"})
"""Targets of the layer under the guests."""


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def record_of(
    plan: MissionPlan, row: MissionRow, cells: Sequence[Cell], first: int
) -> tuple[object, ...]:
    """Return a mission as a record: the values of COLUMNS, in their order.

    ``first``: missions of the first look.
    """
    own = next(cell for cell in cells if cell.name == plan.stratum)
    counted, outcome, void = own, row.outcome, row.void
    if outcome is not None:
        stands = standing(plan, row.hits, row.guests, cells, outcome)
        counted = next(cell for cell in cells if cell.name == stands.stratum)
        if stands.void:
            outcome, void = None, stands.void
    guests = sorted({hit.target for hit in plan.hits if hit.target not in LAYER})
    numbers = [int(name[1:]) for name in guests if name[1:].isdigit()]
    mask = sum(1 << (number - 1) for number in numbers)
    if own.shot and not mask:
        mask = (1 << own.k) - 1  # a shared cause strikes them all
    timings = row.timings
    values: dict[str, object] = {
        "ord": plan.order,
        "mission": plan.index,
        "look": 1 if plan.index < first else 2,
        "planned": plan.stratum,
        "stratum": counted.name,
        "design": plan.design,
        "repair": plan.repair,
        "k": counted.felled,
        "voter_hit": counted.layer_hit,
        "dose": own.dose,
        "kind": own.kind,
        "shot": own.shot,
        "kinds": "+".join(sorted(_kinds(plan))),
        "voter_kind": "+".join(hit.kind for hit in plan.hits if hit.target in LAYER),
        "alike": plan.alike if counted is own else None,
        "mask": mask,
        "seed": plan.seed,
        "length": plan.length,
        "outcome": None if outcome is None else str(outcome),
        "void": void,
        "words": row.words,
        "correct": row.correct,
        "wrong": row.wrong,
        "refused": row.refused,
        "unanswered": row.unanswered,
        "masked": row.masked,
        "fallen": sum(fate.failed for fate in row.guests),
        "plan_hits": _json(plan.hits),
        "hits": _json(row.hits),
        "guests": _json(row.guests),
        "latencies": _json(row.latencies),
        "reset_s": timings and timings.reset,
        "inject_s": timings and timings.inject,
        "workload_s": timings and timings.workload,
        "settle_s": timings and timings.settle,
        "began": row.began,
        "worker": row.worker,
        "attempt": row.attempt,
        "came_out": None if row.outcome is None else str(row.outcome),
    }
    return tuple(values[name] for name in COLUMNS)


def _kinds(plan: MissionPlan) -> list[str]:
    """Return the kind of each guest's, or shared, fault; flips of one guest are one fault."""
    return [kind for _, kind in {(h.target, h.kind) for h in plan.hits if h.target not in LAYER}]


def as_row(record: Mapping[str, Any]) -> MissionRow:
    """Return the row of a record (from COLUMNS' names to values).

    ``outcome`` is None where it counts as no trial.
    """
    nested = {name: msgspec.json.decode(record[name]) for name in ("hits", "guests", "latencies")}
    timings = {name: record[f"{name}_s"] for name in ("reset", "inject", "workload", "settle")}
    plain = {
        name: record[name]
        for name in (
            "void", "words", "correct", "wrong", "refused", "unanswered", "masked", "began",
            "worker", "attempt",
        )
    }  # fmt: skip
    outcome = record["outcome"]
    return msgspec.convert(
        {
            **plain,
            **nested,
            "timings": None if record["reset_s"] is None else timings,
            "index": record["mission"],
            "outcome": None if outcome is None else Outcome(outcome),
        },
        MissionRow,
    )
