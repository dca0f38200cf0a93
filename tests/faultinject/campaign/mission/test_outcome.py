"""Outcomes: the worst wins; and of what stratum a mission is a trial if a fault was not applied."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from faultinject.campaign.mission.outcome import ClassifiedMission, classify, standing
from faultinject.campaign.records import GuestFate, HitResult, MissionPlan, Outcome
from tests.faultinject.campaign.specs import results_of, small_plan

__all__: list[str] = []

RIGHT = ClassifiedMission(right=True)
MASKED = ClassifiedMission(right=True, dissent=1)
WRONG = ClassifiedMission(right=False, words="GET /kv/a: a wrong reply")
REFUSED = ClassifiedMission(right=None, failure="outcome-unknown")
SILENCE = ClassifiedMission(right=None, failure="no verdict in time")
CUT = ClassifiedMission(right=None, failure="connection")


@pytest.mark.parametrize(
    ("requests", "alive", "outcome"),
    [
        ([], True, Outcome.CORRECT),
        ([RIGHT, RIGHT], True, Outcome.CORRECT),
        ([RIGHT, MASKED], True, Outcome.CORRECT),
        ([RIGHT, SILENCE, RIGHT], True, Outcome.TIMEOUT),
        ([ClassifiedMission(right=None, failure="timeout")], True, Outcome.TIMEOUT),
        ([CUT], True, Outcome.TIMEOUT),
        ([SILENCE, REFUSED], True, Outcome.DETECTED),
        ([RIGHT], False, Outcome.VOTER_LOST),
        ([REFUSED, CUT], False, Outcome.VOTER_LOST),
        ([WRONG, CUT], False, Outcome.SILENT),
        ([RIGHT, WRONG, REFUSED, SILENCE], True, Outcome.SILENT),
    ],
)
def test_the_worst_wins(requests: list[ClassifiedMission], alive: bool, outcome: Outcome) -> None:
    assert classify(requests, voter_alive=alive).outcome is outcome


@pytest.mark.parametrize(
    "code",
    ["not-executed", "overload", "outcome-unknown", "too-large", "session-expired", "key-reused",
     "guest-lost", "bad-frame", "error"],
)  # fmt: skip
def test_a_refusal_is_a_failure_that_was_seen(code: str) -> None:
    verdict = classify([RIGHT, ClassifiedMission(right=None, failure=code)], voter_alive=True)
    assert verdict.outcome is Outcome.DETECTED
    assert (verdict.correct, verdict.refused) == (1, 1)


def test_requests_are_counted_and_the_worst_is_told() -> None:
    verdict = classify([MASKED, REFUSED, SILENCE, WRONG, RIGHT], voter_alive=True)
    assert (verdict.correct, verdict.wrong, verdict.refused, verdict.unanswered) == (2, 1, 1, 1)
    assert verdict.masked == 1
    assert verdict.words == "request 3: GET /kv/a: a wrong reply"
    assert classify([RIGHT], voter_alive=True).words == ""
    lost = classify([RIGHT], voter_alive=False)
    assert lost.words == "the voter does not speak any more"


def test_no_request_makes_another_one_better() -> None:
    """Whatever comes to a mission besides, its outcome is never better for it."""
    badness = list(Outcome)
    every = [RIGHT, MASKED, WRONG, REFUSED, SILENCE, CUT]
    for alive in (True, False):
        for one, two in product(every, every):
            alone = classify([one], voter_alive=alive).outcome
            both = classify([one, two], voter_alive=alive).outcome
            assert badness.index(both) <= badness.index(alone)


# ------------------------------------------------------------------ standing

PLAN = small_plan()


def mission(stratum: str, number: int = 0, **wanted: object) -> MissionPlan:
    """A mission of a cell (with these values)."""
    found = [
        each for each in PLAN.missions
        if each.stratum == stratum and all(getattr(each, k) == v for k, v in wanted.items())
    ]  # fmt: skip
    return found[number]


def missing(plan: MissionPlan, *targets: str) -> tuple[HitResult, ...]:
    """Results in which the hits on these targets were not applied."""
    return tuple(
        msgspec.structs.replace(result, applied=result.target not in targets)
        for result in results_of(plan)
    )


def test_a_mission_whose_faults_were_applied_is_a_trial_of_its_stratum() -> None:
    for plan in PLAN.missions:
        stands = standing(plan, results_of(plan), (), PLAN.cells)
        assert (stands.stratum, stands.void) == (plan.stratum, "")


def test_a_fault_that_was_not_applied_is_no_trial() -> None:
    for plan in PLAN.missions:
        if plan.hits:
            stands = standing(plan, results_of(plan, applied=False), (), PLAN.cells)
            assert "was not applied to" in stands.void
            assert standing(plan, (), (), PLAN.cells).void, "never carried out"


def test_half_a_pair_is_a_trial_of_one_guest_hit() -> None:
    plan = mission("f2")
    stands = standing(plan, missing(plan, plan.hits[0].target), (), PLAN.cells)
    assert (stands.stratum, stands.void) == ("f1", "")
    plan = mission("f3-repair")
    stands = standing(plan, missing(plan, plan.hits[0].target), (), PLAN.cells)
    assert stands.stratum == "f2-repair", "repair off and on are never mixed"


def test_a_pair_of_which_the_half_not_seen_may_have_acted_is_no_trial() -> None:
    """mofn, mission 1291: a reset that nobody saw, and its guest was silent from then on."""
    plan = mission("f2")
    unseen, seen = (hit.target for hit in plan.hits)
    fell = [GuestFate(name=n, state="absent", reason="", failed=True) for n in (unseen, seen)]
    stands = standing(plan, missing(plan, unseen), fell, PLAN.cells)
    assert "was not seen to be applied" in stands.void and unseen in stands.void
    stands = standing(plan, missing(plan, unseen), fell[1:], PLAN.cells)
    assert (stands.stratum, stands.void) == ("f1", ""), "it served on: not hit"


def test_a_voter_that_was_not_hit_leaves_a_guest_that_was() -> None:
    plan = mission("g1")
    assert standing(plan, missing(plan, "voter"), (), PLAN.cells).stratum == "f1"


def test_a_voter_whose_hit_nobody_saw_and_that_is_lost_is_no_trial() -> None:
    plan = mission("g1")
    stands = standing(plan, missing(plan, "voter"), (), PLAN.cells, Outcome.VOTER_LOST)
    assert "was not seen to be applied to voter, which failed" in stands.void
    stands = standing(plan, missing(plan, "voter"), (), PLAN.cells, Outcome.TIMEOUT)
    assert (stands.stratum, stands.void) == ("f1", ""), "the voter was there to the end"


def test_half_a_pair_without_a_stratum_of_its_own_is_no_trial() -> None:
    plan = mission("g1")
    guest = next(hit.target for hit in plan.hits if hit.target != "voter")
    stands = standing(plan, missing(plan, guest), (), PLAN.cells)
    assert "the plan has no stratum without it" in stands.void  # there is no g0


def test_a_dose_that_was_not_applied_in_full_is_no_trial() -> None:
    plan = mission("dose-flip-ram-50")
    results = list(results_of(plan))
    results[-1] = msgspec.structs.replace(results[-1], applied=False)
    assert standing(plan, results, (), PLAN.cells).void


def test_what_comes_to_a_guest_that_was_felled_is_moot() -> None:
    plan = mission("dose-flip-ram-50-nv")
    results = list(results_of(plan))
    results[-1] = msgspec.structs.replace(results[-1], applied=False)
    felled = GuestFate(name="g1", state="failed", reason="", failed=True)
    assert not standing(plan, results, (felled,), PLAN.cells).void
    served = msgspec.structs.replace(felled, failed=False)
    assert standing(plan, results, (served,), PLAN.cells).void
    results[0] = msgspec.structs.replace(results[0], applied=False)
    none = [msgspec.structs.replace(result, applied=False) for result in results]
    assert standing(plan, none, (felled,), PLAN.cells).void, "it was not this fault that felled it"
