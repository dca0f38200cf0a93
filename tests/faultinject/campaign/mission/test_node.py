"""Missions on real guests: clean starts, proofs of faults, outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from faultinject.campaign.records import MissionPlan
from faultinject.faults import Injection
from faultinject.results.outcome import Design, Outcome
from tests.faultinject.campaign.nodes import Run, node

pytestmark = pytest.mark.vm


def plan(
    *hits: Injection,
    seed: int = 1,
    design: Design = "voted",
    repair: bool = False,
    length: int = 20,
    vote: str = "",
) -> MissionPlan:
    guests = {hit.target for hit in hits} - {"voter"}
    return MissionPlan(
        index=seed, order=seed, stratum="test", design=design, repair=repair, k=len(guests),
        voter_hit=any(hit.target == "voter" for hit in hits), seed=seed, length=length,
        injections=hits, vote=vote,
    )  # fmt: skip


def hit(target: str, kind: str, at: int = 5, seed: int = 7, dose: int = 1) -> Injection:
    return Injection(target=target, kind=kind, at=at, seed=seed, dose=dose)


@pytest.fixture(scope="module")
def run(shared_scratch: Path) -> Iterator[Run]:
    """One node for all tests, which also test that it is clean for the next mission."""
    with node(shared_scratch / "st") as one:
        yield one


def test_mission_is_correct_when_nothing_is_hit(run: Run) -> None:
    for seed in range(1, 4):
        row = run(plan(seed=seed))
        assert row.outcome is Outcome.CORRECT, row.problem
        assert (row.correct, row.wrong, row.masked) == (20, 0, 0)
        assert not [guest for guest in row.guests if guest.failed]
        assert row.timings is not None
        assert len([each for each in row.latencies if each > 0]) == 20


@pytest.mark.parametrize(
    "kind", ["crash", "hang", "corrupt-reply", "wrong-seq", "garbage", "drop-reply", "reset"]
)
def test_mission_is_correct_when_one_guest_is_hit_and_the_next_starts_clean(
    run: Run, kind: str
) -> None:
    target = Random(kind).choice(["g1", "g2", "g3"])
    row = run(plan(hit(target, kind)))
    assert row.outcome is Outcome.CORRECT, row.problem
    assert [(each.kind, each.applied) for each in row.injections] == [(kind, True)], row.injections
    assert [guest.name for guest in row.guests if guest.failed] == [target]
    row = run(plan(seed=2))
    assert row.outcome is Outcome.CORRECT, row.problem
    assert not [guest for guest in row.guests if guest.failed]


def test_mission_is_detected_when_two_guests_are_hit(run: Run) -> None:
    row = run(plan(hit("g1", "crash"), hit("g2", "hang", at=8)))
    assert row.outcome is Outcome.DETECTED, row.problem
    assert row.wrong == 0
    assert row.failed_visibly >= 10


def test_mission_is_silent_only_when_two_guests_tell_the_same_lie(run: Run) -> None:
    apart = run(plan(hit("g1", "corrupt-reply", seed=1), hit("g2", "corrupt-reply", seed=2)))
    assert apart.outcome is Outcome.DETECTED, apart.problem
    # From the first request on: a lie in a late reply to an earlier request would expel the guest.
    alike = run(plan(hit("g1", "corrupt-reply", at=0), hit("g2", "corrupt-reply", at=0)))
    assert alike.outcome is Outcome.SILENT, "this is what 2-of-3 cannot mask"
    assert alike.wrong > 0
    assert "wrong reply" in alike.problem


def test_mission_is_lost_when_the_voter_dies(run: Run) -> None:
    row = run(plan(hit("voter", "voter-kill")))
    assert row.outcome is Outcome.VOTER_LOST, row.problem
    assert row.correct == 5
    assert [each.applied for each in row.injections] == [True]


def test_mission_with_repair_survives_faults_one_after_the_other(run: Run) -> None:
    hits = (hit("g1", "crash", at=3), hit("g2", "hang", at=9), hit("voter", "voter-kill", at=14))
    row = run(plan(*hits, repair=True))
    assert row.outcome is Outcome.CORRECT, row.problem
    assert all(each.applied for each in row.injections)


def test_plain_mission_fails_when_its_guest_is_hit(run: Run) -> None:
    assert run(plan(design="nv")).outcome is Outcome.CORRECT
    assert run(plan(hit("g1", "crash"), design="nv")).outcome is Outcome.DETECTED
    assert run(plan(hit("g1", "hang"), design="nv")).outcome is Outcome.TIMEOUT
    lies = run(plan(hit("g1", "corrupt-reply"), design="nv"))
    assert lies.outcome is Outcome.SILENT, "nobody compares"
    kept = [request for request in lies.requests if request.code == "wrong"]
    assert len(kept) == lies.wrong > 1
    assert all(request.reply and request.problem for request in kept), "every wrong reply is kept"
    assert lies.believed is not None
    assert run(plan(design="nv")).outcome is Outcome.CORRECT


def test_flipped_bits_are_proved_and_gone_in_the_next_mission(run: Run) -> None:
    row = run(plan(hit("g3", "flip-ram", dose=20000)))
    assert row.outcome is Outcome.CORRECT, row.problem
    assert row.injections[0].applied, row.injections
    row = run(plan(seed=3))
    assert row.outcome is Outcome.CORRECT, row.problem
    assert not [guest for guest in row.guests if guest.failed]


def test_a_fault_that_cannot_be_applied_is_recorded_as_such(run: Run) -> None:
    row = run(plan(hit("g1", "poison-crash")))
    assert [each.applied for each in row.injections] == [False]
    assert "for the client" in row.injections[0].proof


@pytest.mark.parametrize(
    ("vote", "kind", "outcome", "names"),
    [
        ("1/1", "corrupt-reply", Outcome.SILENT, ["g1"]),
        ("1/2", "crash", Outcome.CORRECT, ["g1", "g2"]),
        ("2/2", "corrupt-reply", Outcome.DETECTED, ["g1", "g2"]),
    ],
)
def test_mission_votes_over_the_first_guests_when_it_has_a_policy(
    run: Run, vote: str, kind: str, outcome: Outcome, names: list[str]
) -> None:
    row = run(plan(hit("g1", kind), vote=vote))
    assert row.outcome is outcome, row.problem
    assert [guest.name for guest in row.guests] == names
    assert run(plan(vote=vote)).outcome is Outcome.CORRECT, "the next one starts clean"
