"""From the observations of a mission to its outcome and its stratum.  Pure.

``assess`` is applied whenever rows are read, so one rule holds for all rows of all campaigns.

*Outcome.*  The most severe result among the mission's requests: silent corruption > unclear >
voter lost > declared error > detected > timeout > correct.  A wrong reply is silent corruption if a
client would believe it, and else a declared error.  Rows of older formats hold the first wrong
reply of a mission only: if that one declares an error and others followed, the outcome is unclear.

*Stratum.*  The rule was fixed before any data were seen:

- All faults were applied: the mission is a trial of its planned stratum.
- A fault whose target had already failed by an earlier applied fault counts as applied (moot).
- A fault was not proved applied, but its target failed: it may have acted.  No trial.  (The voter
  failed if it was lost; F failed if the mission failed.)
- Some faults of a stratum were applied and some were not: a trial of the stratum with the same
  design, vote and repair in which exactly the applied faults hit, if the plan has one.
- Anything else, and a dose or a common cause that was not applied in full: no trial.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

import msgspec

from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import (
    HOST_TARGETS,
    GuestResult,
    InjectionResult,
    MissionPlan,
    MissionRow,
    RequestResult,
)
from faultinject.faults import FaultLayer, Injection, find
from faultinject.history.model import is_believed, status_of
from faultinject.results.outcome import Design, Outcome
from voter.core.events import Failure

__all__ = [
    "NO_RESULT",
    "AssessedMission",
    "RequestSummary",
    "StratumAssignment",
    "assess",
    "assign_stratum",
    "classify",
    "classify_stored",
]

NO_RESULT = "no result in time"
"""The code of a request that nobody answered within its deadline."""
CONNECTION = "connection"
_TIMEOUTS = frozenset({Failure.TIMEOUT, NO_RESULT, "no verdict in time"})  # the last: old rows
_SEVERITY = list(Outcome)  # most severe first
_REPLY_IN_TEXT = re.compile(r"a wrong reply: (b(['\"]).*\2)$", re.DOTALL)
"""The first bytes of a wrong reply in the message of an older row."""


class RequestSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a mission's requests, and how many requests had which result.

    ``believed``: wrong replies that a client would believe; None where a row of an older format
    does not hold them all.  ``status``: of the wrong reply that made the outcome, 0 if it has none
    that can be read; None without such a reply.
    """

    outcome: Outcome
    problem: str  # the first result that made the outcome
    correct: int
    wrong: int
    believed: int | None
    status: int | None
    failed_visibly: int
    unanswered: int
    masked: int


class StratumAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """The stratum that a mission is a trial of.  ``excluded``: why it is no trial, or ""."""

    stratum: str
    excluded: str = ""


class AssessedMission(MissionRow, frozen=True, kw_only=True):
    """A mission's observations with what follows from them.

    ``outcome``: None if the mission is no trial; ``excluded`` then says why.
    ``requests_outcome``: the outcome of its requests, whether a trial or not; None if the
    mission was not run.
    """

    stratum: str
    outcome: Outcome | None
    requests_outcome: Outcome | None
    excluded: str = ""
    problem: str = ""
    correct: int = 0
    wrong: int = 0
    believed: int | None = 0
    status: int | None = None
    failed_visibly: int = 0
    unanswered: int = 0
    masked: int = 0

    @property
    def unmet(self) -> bool:
        """Whether nothing met some fault before the mission ended."""
        return any(each.used is False for each in self.injections)


def _reply_in(problem: str) -> str:
    """Return the first bytes of the wrong reply in a message of an older row, or ""."""
    found = _REPLY_IN_TEXT.search(problem)
    data = ast.literal_eval(found[1]) if found else b""
    return data.decode("latin-1") if isinstance(data, bytes) else ""


def _class_of(request: RequestResult, *, voter_alive: bool) -> Outcome:
    code = request.code
    if code == "right":
        return Outcome.CORRECT
    if code == "wrong":
        if not (reply := request.reply or _reply_in(request.problem)):
            return Outcome.UNCLEAR
        return Outcome.SILENT if is_believed(reply.encode("latin-1")) else Outcome.DECLARED
    if code in _TIMEOUTS:
        return Outcome.TIMEOUT
    if code == CONNECTION:
        # No reply at all: like a timeout, unless the voter had ended.
        return Outcome.TIMEOUT if voter_alive else Outcome.VOTER_LOST
    return Outcome.DETECTED


def classify(requests: Sequence[RequestResult], *, voter_alive: bool) -> RequestSummary:
    """Return the most severe result of a mission's requests.

    A voter that does not answer at the end is lost even if all replies came and were right.
    """
    classes = [_class_of(request, voter_alive=voter_alive) for request in requests]
    worst = min(classes, key=_SEVERITY.index, default=Outcome.CORRECT)
    problem, status = "", None
    if not voter_alive and _SEVERITY.index(worst) > _SEVERITY.index(Outcome.VOTER_LOST):
        worst, problem = Outcome.VOTER_LOST, "the voter no longer answers on its control socket"
    for number, (request, kind) in enumerate(zip(requests, classes, strict=True)):
        if kind is worst and kind.failed:
            reply = request.reply.encode("latin-1")
            problem = f"request {number}: {request.problem or request.code}"
            problem += f": a wrong reply: {reply!r}" if reply else ""
            if kind.is_wrong_reply:
                status = status_of(reply or _reply_in(request.problem).encode("latin-1"))
            break
    believed = None if Outcome.UNCLEAR in classes else classes.count(Outcome.SILENT)
    return RequestSummary(
        outcome=worst,
        problem=problem,
        correct=classes.count(Outcome.CORRECT),
        wrong=sum(kind.is_wrong_reply for kind in classes),
        believed=believed,
        status=status,
        failed_visibly=classes.count(Outcome.DETECTED),
        unanswered=classes.count(Outcome.TIMEOUT) + classes.count(Outcome.VOTER_LOST),
        masked=sum(request.masked and request.code == "right" for request in requests),
    )


def classify_stored(outcome: str, problem: str, wrong: int) -> tuple[Outcome, int | None, int]:
    """Return the outcome of a row of format 1 with ``wrong`` wrong replies, of which it holds the
    first in its message; how many of them a client would believe; and the first one's status.
    """
    if outcome != "silent":
        return Outcome(outcome), 0, 0
    first = _reply_in(problem).encode("latin-1")
    if wrong > 1:
        return Outcome.SILENT if is_believed(first) else Outcome.UNCLEAR, None, status_of(first)
    believed = is_believed(first)
    return Outcome.SILENT if believed else Outcome.DECLARED, int(believed), status_of(first)


def _effective(
    plan: MissionPlan, results: Sequence[InjectionResult], failed: set[str]
) -> list[tuple[Injection, bool]]:
    """Return each planned hit and whether it took effect, moot ones included."""
    hit_before: set[str] = set()
    effective = []
    for number, hit in enumerate(plan.injections):
        applied = number < len(results) and results[number].applied
        moot = hit.target in hit_before and hit.target in failed
        if applied:
            hit_before.add(hit.target)
        effective.append((hit, applied or moot))
    return effective


def assign_stratum(
    plan: MissionPlan,
    results: Sequence[InjectionResult],
    guests: Sequence[GuestResult],
    cells: Sequence[Cell],
    outcome: Outcome = Outcome.CORRECT,
) -> StratumAssignment:
    """Return the stratum that a mission is a trial of (the rule: above).

    ``results``: in the plan's order; a hit without a result was not applied.
    """
    failed = {guest.name for guest in guests if guest.failed}
    effective = _effective(plan, results, failed)
    missed = [hit for hit, effect in effective if not effect]
    if not missed:
        return StratumAssignment(stratum=plan.stratum)
    excluded = f"{missed[0].kind} was not applied to {missed[0].target}"
    failed |= {"voter"} if outcome is Outcome.VOTER_LOST else set()
    failed |= {"function"} if outcome.failed else set()
    for hit in missed:
        if hit.target in failed:
            excluded = f"{hit.kind} was not seen to be applied to {hit.target}, which failed"
            return StratumAssignment(stratum=plan.stratum, excluded=excluded)
    own = next(cell for cell in cells if cell.name == plan.stratum)
    if len(missed) == len(effective) or not own.forced:
        return StratumAssignment(stratum=plan.stratum, excluded=excluded)
    took = {hit.target for hit, effect in effective if effect}
    in_function = {
        hit.target
        for hit, effect in effective
        if effect and find(hit.kind).layer is FaultLayer.GUEST_FUNCTION
    }
    whole = took - in_function - HOST_TARGETS
    wanted = (len(whole), len(in_function), "voter" in took, "function" in took)
    for cell in cells:
        same = (cell.design, cell.repair, cell.vote) == (own.design, own.repair, own.vote)
        hit_in_cell = (cell.k, cell.function_k, cell.voter_hit, cell.host_function_hit)
        if same and cell.forced and hit_in_cell == wanted:
            return StratumAssignment(stratum=cell.name)
    return StratumAssignment(
        stratum=plan.stratum, excluded=f"{excluded}, and the plan has no stratum without it"
    )


def _guest_results(row: MissionRow, design: Design, outcome: Outcome) -> tuple[GuestResult, ...]:
    """Return the guests' results; in the plain design the guest failed if the mission did."""
    if design == "voted":
        return row.guests
    return tuple(msgspec.structs.replace(guest, failed=outcome.failed) for guest in row.guests)


def assess(
    plan: MissionPlan,
    row: MissionRow,
    cells: Sequence[Cell],
    summary: RequestSummary | None = None,
) -> AssessedMission:
    """Return a mission with its stratum and outcome.

    ``summary``: of a row whose requests were not stored (see ``store.table``).
    """
    observed = {name: getattr(row, name) for name in MissionRow.__struct_fields__}
    if row.lost:
        return AssessedMission(
            **observed, stratum=plan.stratum, outcome=None, requests_outcome=None, excluded=row.lost
        )
    summary = summary or classify(row.requests, voter_alive=row.voter_alive)
    observed["guests"] = _guest_results(row, plan.design, summary.outcome)
    assigned = assign_stratum(plan, row.injections, observed["guests"], cells, summary.outcome)
    counted = msgspec.structs.asdict(summary)
    outcome = counted.pop("outcome")
    return AssessedMission(
        **observed,
        **counted,
        stratum=assigned.stratum,
        outcome=None if assigned.excluded else outcome,
        requests_outcome=outcome,
        excluded=assigned.excluded,
    )
