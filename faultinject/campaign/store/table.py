"""The two tables of missions: what was observed, and what follows from it.

``missions`` is in the database file and holds what ``MissionRow`` does; nested values are JSON.
``trials`` is temporary and in memory.  Each reader fills it from ``missions`` by today's rule
(``assessment.assess``), so that SQL can count by stratum and outcome.

*Formats.*  Campaigns of format 1 did not store the result of each request.  They stored the
outcome of the requests (``came_out``), its counts, and the first wrong reply in a message; those
columns are read instead (``stored_summary``).  Their other derived columns are ignored.  Format 2
has the columns of format 3, but its rows hold only the first wrong reply of a mission.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from faultinject.campaign.assessment import AssessedMission, RequestSummary, classify_stored
from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import (
    HOST_TARGETS,
    GuestResult,
    InjectionResult,
    MissionPlan,
    MissionRow,
    RequestResult,
    Timings,
)

__all__ = [
    "CREATE", "CREATE_TRIALS", "EXPORTED", "FLAGS", "GROUPS", "INSERT", "INSERT_TRIAL",
    "OBSERVED", "SLOW", "TRIAL", "encode_json", "observed_row", "record_of",
    "stored_summary", "trial_of",
]  # fmt: skip

SLOW = 1.0
"""Seconds after which an answered request counts as slow: a client would notice the pause."""

OBSERVED: dict[str, str] = {
    "ord": "INTEGER PRIMARY KEY",  # place in the order in which missions run
    "mission": "INTEGER NOT NULL UNIQUE",  # number in the plan
    "lost": "TEXT NOT NULL",
    "requests": "TEXT NOT NULL",
    "voter_alive": "INTEGER NOT NULL",
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
}
"""Columns of ``missions`` and their SQL types."""

TRIAL: dict[str, str] = {
    "ord": "INTEGER PRIMARY KEY",
    "mission": "INTEGER",
    "analysis": "INTEGER",  # the first one that includes it: 1, or 2 (extension)
    "planned": "TEXT",  # the planned stratum
    "stratum": "TEXT",  # the stratum that the mission counts for
    "design": "TEXT",
    "repair": "INTEGER",
    "k": "INTEGER",  # guests hit in that stratum
    "host_target_hit": "INTEGER",  # the voter or F, in that stratum
    "dose": "INTEGER",
    "kind": "TEXT",  # of a dose or common cause
    "common_cause": "INTEGER",
    "kinds": "TEXT",  # of the guests' faults, sorted, joined by "+"
    "voter_kind": "TEXT",
    "alike": "INTEGER",
    "mask": "INTEGER",  # guests hit as planned: bit 0 is g1
    "seed": "INTEGER",
    "length": "INTEGER",
    "outcome": "TEXT",  # NULL: no trial
    "requests_outcome": "TEXT",
    "excluded": "TEXT",
    "problem": "TEXT",
    "correct": "INTEGER",
    "wrong": "INTEGER",
    "believed": "INTEGER",  # of the wrong replies; NULL: an older row does not hold them all
    "status": "INTEGER",  # of the wrong reply that made the outcome
    "unmet": "INTEGER",  # nothing met some fault before the mission ended
    "slow": "INTEGER",  # some answered request took longer than SLOW
    "failed_visibly": "INTEGER",
    "unanswered": "INTEGER",
    "masked": "INTEGER",
    "failed_guests": "INTEGER",
    "worker": "TEXT",
    "attempt": "INTEGER",
}
"""Columns of ``trials`` and their SQL types."""

EXPORTED: dict[str, str] = {
    **TRIAL,
    "plan_hits": "TEXT",
    **{
        name: OBSERVED[name]
        for name in ("requests", "hits", "guests", "latencies", "reset_s", "inject_s", "workload_s",
                     "settle_s", "began")
    },
}  # fmt: skip
"""Columns of exports: trials, then the planned hits, then observations (``requests``: with every
wrong reply; NULL in rows of format 1)."""

GROUPS = (
    "analysis", "planned", "stratum", "design", "repair", "k", "host_target_hit", "dose", "kind",
    "common_cause", "kinds", "voter_kind", "alike", "mask", "failed_guests", "status", "unmet",
    "slow", "requests_outcome", "worker", "attempt",
)  # fmt: skip
"""Columns that missions may be grouped and selected by."""
FLAGS = frozenset({"repair", "host_target_hit", "common_cause", "alike", "unmet", "slow"})
"""Columns that are true or false."""


def _create(table: str, columns: dict[str, str]) -> str:
    return f"CREATE {table} (" + ", ".join(f"{n} {t}" for n, t in columns.items()) + ") STRICT"


def _insert(table: str, columns: dict[str, str]) -> str:
    names, values = ", ".join(columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"


CREATE, INSERT = _create("TABLE missions", OBSERVED), _insert("missions", OBSERVED)
CREATE_TRIALS, INSERT_TRIAL = _create("TEMP TABLE trials", TRIAL), _insert("trials", TRIAL)

_requests = msgspec.json.Decoder(tuple[RequestResult, ...])
_hits = msgspec.json.Decoder(tuple[InjectionResult, ...])
_guests = msgspec.json.Decoder(tuple[GuestResult, ...])
_latencies = msgspec.json.Decoder(tuple[float, ...])


def encode_json(value: object) -> str:
    """Return a nested value as its column holds it."""
    return msgspec.json.encode(value).decode()


def record_of(plan: MissionPlan, row: MissionRow) -> tuple[object, ...]:
    """Return a mission as a record of ``missions``."""
    timings = row.timings
    times = (None,) * 4 if timings is None else msgspec.structs.astuple(timings)
    return (
        plan.order, plan.index, row.lost, encode_json(row.requests), row.voter_alive,
        encode_json(row.injections), encode_json(row.guests), encode_json(row.latencies), *times,
        row.began, row.worker, row.attempt,
    )  # fmt: skip


def observed_row(record: sqlite3.Row, *, legacy: bool) -> MissionRow:
    """Return the observations in a record of ``missions``."""
    times = {name: record[f"{name}_s"] for name in Timings.__struct_fields__}
    lost, alive = "", True
    requests: tuple[RequestResult, ...] = ()
    if not legacy:
        lost, alive = record["lost"], bool(record["voter_alive"])
        requests = _requests.decode(record["requests"])
    elif record["came_out"] is None:
        lost = record["void"]
    return MissionRow(
        index=record["mission"],
        lost=lost,
        requests=requests,
        voter_alive=alive,
        injections=_hits.decode(record["hits"]),
        guests=_guests.decode(record["guests"]),
        latencies=_latencies.decode(record["latencies"]),
        timings=None if times["reset"] is None else Timings(**times),
        began=record["began"],
        worker=record["worker"],
        attempt=record["attempt"],
    )


def stored_summary(record: sqlite3.Row) -> RequestSummary | None:
    """Return the outcome of the requests that a record of format 1 stores."""
    if record["came_out"] is None:
        return None
    counts = {name: record[name] for name in ("correct", "wrong", "unanswered")}
    outcome, believed, status = classify_stored(
        record["came_out"], record["words"], record["wrong"]
    )
    return RequestSummary(
        outcome=outcome,
        problem=record["words"],
        believed=believed,
        status=status if outcome.is_wrong_reply else None,
        failed_visibly=record["refused"],
        masked=record["masked"],
        **counts,
    )


def trial_of(
    plan: MissionPlan, mission: AssessedMission, own: Cell, counted: Cell, first: int
) -> tuple[object, ...]:
    """Return an assessed mission as a record of ``trials``.

    ``own``: the planned cell.  ``counted``: the cell that it is a trial of.  ``first``: missions of
    the first analysis.
    """
    values: dict[str, Any] = {
        "ord": plan.order,
        "analysis": 1 if plan.index < first else 2,
        "mission": plan.index,
        "planned": plan.stratum,
        "design": plan.design,
        "repair": plan.repair,
        "k": counted.failing_guests,
        "host_target_hit": counted.host_target_hit,
        "dose": own.dose,
        "kind": own.kind,
        "common_cause": own.common_cause,
        "kinds": "+".join(sorted(_guest_kinds(plan))),
        "voter_kind": "+".join(hit.kind for hit in plan.injections if hit.target in HOST_TARGETS),
        "alike": plan.alike if counted is own else None,
        "mask": _mask(plan, own),
        "seed": plan.seed,
        "length": plan.length,
        "failed_guests": sum(guest.failed for guest in mission.guests),
        "slow": max(mission.latencies, default=0.0) > SLOW,
    }
    for name in TRIAL.keys() - values.keys():
        values[name] = getattr(mission, name)
    return tuple(values[name] for name in TRIAL)


def _guest_kinds(plan: MissionPlan) -> list[str]:
    """Return the kind of each guest's, or shared, fault; flips in one guest are one fault."""
    return [
        kind
        for _, kind in {(h.target, h.kind) for h in plan.injections if h.target not in HOST_TARGETS}
    ]


def _mask(plan: MissionPlan, own: Cell) -> int:
    guests = {hit.target for hit in plan.injections if hit.target not in HOST_TARGETS}
    mask = sum(1 << (int(name[1:]) - 1) for name in guests if name[1:].isdigit())
    return (
        (1 << own.k) - 1 if own.common_cause and not mask else mask
    )  # a shared cause hits them all
