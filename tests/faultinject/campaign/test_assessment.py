"""Outcomes and strata of missions: severity, and faults that were not applied."""

from __future__ import annotations

import msgspec
import pytest

from faultinject.campaign.assessment import assess, assign_stratum, classify, classify_stored
from faultinject.campaign.records import GuestResult, InjectionResult, MissionPlan, RequestResult
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.specs import results_of, row_of, small_plan

__all__: list[str] = []

RIGHT = RequestResult()
MASKED = RequestResult(masked=True)
WRONG = RequestResult(code="wrong", problem="GET /kv/a", reply="HTTP/1.1 200 OK\r\n\r\nx")
MISSING = RequestResult(code="wrong", problem="GET /kv/a", reply="HTTP/1.1 404 Not Found\r\n")
BROKEN = RequestResult(code="wrong", problem="GET /kv/a", reply="HTTP/1.1 500 Error\r\n\r\n")
OLD = "GET /kv/a: a wrong reply: b'HTTP/1.1 {}\\r\\n'"
"""The message of a row of format 2, which holds the first wrong reply of a mission."""
REFUSED = RequestResult(code="outcome-unknown")
SILENCE = RequestResult(code="no result in time")
CUT = RequestResult(code="connection")


@pytest.mark.parametrize(
    ("requests", "alive", "outcome"),
    [
        ([], True, Outcome.CORRECT),
        ([RIGHT, RIGHT], True, Outcome.CORRECT),
        ([RIGHT, MASKED], True, Outcome.CORRECT),
        ([RIGHT, SILENCE, RIGHT], True, Outcome.TIMEOUT),
        ([RequestResult(code="timeout")], True, Outcome.TIMEOUT),
        ([CUT], True, Outcome.TIMEOUT),
        ([SILENCE, REFUSED], True, Outcome.DETECTED),
        ([RIGHT], False, Outcome.VOTER_LOST),
        ([REFUSED, CUT], False, Outcome.VOTER_LOST),
        ([WRONG, CUT], False, Outcome.SILENT),
        ([RIGHT, WRONG, REFUSED, SILENCE], True, Outcome.SILENT),
        ([BROKEN, MISSING], True, Outcome.SILENT),
        ([REFUSED, BROKEN, SILENCE], True, Outcome.DECLARED),
        ([BROKEN, BROKEN, RIGHT], True, Outcome.DECLARED),
        ([BROKEN, CUT], False, Outcome.VOTER_LOST),
        ([RequestResult(code="wrong", problem=OLD.format("200 OK"))], True, Outcome.SILENT),
        ([RequestResult(code="wrong", problem=OLD.format("500 E"))], True, Outcome.DECLARED),
        (
            [RequestResult(code="wrong", problem=OLD.format("500 E")), RequestResult(code="wrong")],
            True,
            Outcome.UNCLEAR,
        ),
    ],
)
def test_classify_returns_the_most_severe_outcome(
    requests: list[RequestResult], alive: bool, outcome: Outcome
) -> None:
    assert classify(requests, voter_alive=alive).outcome is outcome


@pytest.mark.parametrize(
    "code",
    ["not-executed", "overload", "outcome-unknown", "too-large", "session-expired", "key-reused",
     "guest-lost", "bad-frame", "error"],
)  # fmt: skip
def test_classify_counts_a_rejection_as_detected(code: str) -> None:
    summary = classify([RIGHT, RequestResult(code=code)], voter_alive=True)
    assert summary.outcome is Outcome.DETECTED
    assert (summary.correct, summary.failed_visibly) == (1, 1)


def test_classify_counts_requests_and_explains_the_outcome() -> None:
    summary = classify([MASKED, REFUSED, SILENCE, WRONG, RIGHT], voter_alive=True)
    assert (summary.correct, summary.wrong, summary.failed_visibly, summary.unanswered) == (
        2,
        1,
        1,
        1,
    )
    assert summary.masked == 1
    assert summary.problem == "request 3: GET /kv/a: a wrong reply: b'HTTP/1.1 200 OK\\r\\n\\r\\nx'"
    assert (summary.believed, summary.status) == (1, 200)
    both = classify([BROKEN, MISSING, WRONG], voter_alive=True)
    assert (both.wrong, both.believed, both.status) == (3, 2, 404)
    assert classify([RIGHT], voter_alive=True).problem == ""
    lost = classify([RIGHT], voter_alive=False)
    assert lost.problem == "the voter no longer answers on its control socket"


@pytest.mark.parametrize(
    ("outcome", "status", "wrong", "expected"),
    [
        ("timeout", "", 0, (Outcome.TIMEOUT, 0, 0)),
        ("silent", "201 Created", 1, (Outcome.SILENT, 1, 201)),
        ("silent", "404 Not Found", 3, (Outcome.SILENT, None, 404)),
        ("silent", "500 Error", 1, (Outcome.DECLARED, 0, 500)),
        ("silent", "400 Bad Request", 2, (Outcome.UNCLEAR, None, 400)),
        ("silent", "2", 1, (Outcome.DECLARED, 0, 0)),
    ],
)
def test_classify_stored_says_what_a_row_of_format_1_cannot_tell(
    outcome: str, status: str, wrong: int, expected: tuple[Outcome, int | None, int]
) -> None:
    assert classify_stored(outcome, f"request 3: {OLD.format(status)}", wrong) == expected


# ------------------------------------------------------------------ strata

PLAN = small_plan()


def mission(stratum: str, number: int = 0, **wanted: object) -> MissionPlan:
    """Return a mission of a cell (with these values)."""
    found = [
        each for each in PLAN.missions
        if each.stratum == stratum and all(getattr(each, k) == v for k, v in wanted.items())
    ]  # fmt: skip
    return found[number]


def missing(plan: MissionPlan, *targets: str) -> tuple[InjectionResult, ...]:
    """Return results in which the hits on these targets were not applied."""
    return tuple(
        msgspec.structs.replace(result, applied=result.target not in targets)
        for result in results_of(plan)
    )


def test_assign_stratum_returns_the_planned_one_when_all_faults_were_applied() -> None:
    for plan in PLAN.missions:
        assigned = assign_stratum(plan, results_of(plan), (), PLAN.cells)
        assert (assigned.stratum, assigned.excluded) == (plan.stratum, "")


def test_assign_stratum_voids_a_mission_whose_faults_were_not_applied() -> None:
    for plan in PLAN.missions:
        if plan.injections:
            assigned = assign_stratum(plan, results_of(plan, applied=False), (), PLAN.cells)
            assert "was not applied to" in assigned.excluded
            assert assign_stratum(plan, (), (), PLAN.cells).excluded, "never carried out"


def test_assign_stratum_counts_the_applied_faults_when_some_were_not() -> None:
    plan = mission("f2")
    assigned = assign_stratum(plan, missing(plan, plan.injections[0].target), (), PLAN.cells)
    assert (assigned.stratum, assigned.excluded) == ("f1", "")
    plan = mission("f3-repair")
    assigned = assign_stratum(plan, missing(plan, plan.injections[0].target), (), PLAN.cells)
    assert assigned.stratum == "f2-repair", "repair off and on are never mixed"


def test_assign_stratum_voids_a_mission_when_an_unproved_fault_may_have_acted() -> None:
    """Campaign mofn, mission 1291: a reset without proof, and its guest was silent afterwards."""
    plan = mission("f2")
    unseen, seen = (hit.target for hit in plan.injections)
    failed = [GuestResult(name=n, state="absent", reason="", failed=True) for n in (unseen, seen)]
    assigned = assign_stratum(plan, missing(plan, unseen), failed, PLAN.cells)
    assert "was not seen to be applied" in assigned.excluded and unseen in assigned.excluded
    assigned = assign_stratum(plan, missing(plan, unseen), failed[1:], PLAN.cells)
    assert (assigned.stratum, assigned.excluded) == ("f1", ""), "the guest kept serving: not hit"


def test_assign_stratum_counts_the_guest_when_the_voter_was_not_hit() -> None:
    plan = mission("g1")
    assert assign_stratum(plan, missing(plan, "voter"), (), PLAN.cells).stratum == "f1"


def test_assign_stratum_voids_a_mission_when_the_voter_is_lost_by_an_unproved_hit() -> None:
    plan = mission("g1")
    assigned = assign_stratum(plan, missing(plan, "voter"), (), PLAN.cells, Outcome.VOTER_LOST)
    assert "was not seen to be applied to voter, which failed" in assigned.excluded
    assigned = assign_stratum(plan, missing(plan, "voter"), (), PLAN.cells, Outcome.TIMEOUT)
    assert (assigned.stratum, assigned.excluded) == ("f1", ""), "the voter was there to the end"


def test_assign_stratum_voids_a_mission_when_the_plan_has_no_such_stratum() -> None:
    plan = mission("g1")
    guest = next(hit.target for hit in plan.injections if hit.target != "voter")
    assigned = assign_stratum(plan, missing(plan, guest), (), PLAN.cells)
    assert "the plan has no stratum without it" in assigned.excluded  # there is no g0


def test_assign_stratum_voids_a_dose_that_was_not_applied_in_full() -> None:
    plan = mission("dose-flip-ram-50")
    results = list(results_of(plan))
    results[-1] = msgspec.structs.replace(results[-1], applied=False)
    assert assign_stratum(plan, results, (), PLAN.cells).excluded


def test_assign_stratum_ignores_faults_of_a_guest_that_had_failed_already() -> None:
    plan = mission("dose-flip-ram-50-nv")
    results = list(results_of(plan))
    results[-1] = msgspec.structs.replace(results[-1], applied=False)
    failed = GuestResult(name="g1", state="failed", reason="", failed=True)
    assert not assign_stratum(plan, results, (failed,), PLAN.cells).excluded
    served = msgspec.structs.replace(failed, failed=False)
    assert assign_stratum(plan, results, (served,), PLAN.cells).excluded
    results[0] = msgspec.structs.replace(results[0], applied=False)
    none = [msgspec.structs.replace(result, applied=False) for result in results]
    assert assign_stratum(plan, none, (failed,), PLAN.cells).excluded, "another fault made it fail"


# ------------------------------------------------------------------ whole missions


def test_assess_returns_stratum_outcome_and_counts() -> None:
    assessed = assess(mission("f2"), row_of(mission("f2"), Outcome.DETECTED), PLAN.cells)
    assert (assessed.stratum, assessed.outcome, assessed.excluded) == ("f2", Outcome.DETECTED, "")
    assert (assessed.correct, assessed.failed_visibly) == (19, 1)
    assert assessed.problem == "request 19: not-executed"


def test_assess_keeps_the_requests_outcome_of_a_void_mission() -> None:
    row = msgspec.structs.replace(row_of(mission("f1"), Outcome.DETECTED), injections=(), guests=())
    assessed = assess(mission("f1"), row, PLAN.cells)
    assert (assessed.outcome, assessed.requests_outcome) == (None, Outcome.DETECTED)
    assert "was not applied to" in assessed.excluded


def test_assess_voids_a_mission_that_was_not_run() -> None:
    assessed = assess(mission("f1"), row_of(mission("f1"), None), PLAN.cells)
    assert (assessed.outcome, assessed.requests_outcome) == (None, None)
    assert assessed.excluded == "no clean start"


def test_assess_fails_the_plain_guest_with_its_mission() -> None:
    for outcome in Outcome:
        [guest] = assess(mission("nv1"), row_of(mission("nv1"), outcome), PLAN.cells).guests
        assert guest.failed == outcome.failed
