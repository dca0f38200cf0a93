"""A station on real guests: missions from a clean start, faults proved, outcomes as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from faultinject.campaign.records import Design, MissionPlan, Outcome
from faultinject.faults import Injection
from tests.faultinject.campaign.stations import Run, station

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


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
        voter_hit=any(hit.target == "voter" for hit in hits), seed=seed, length=length, hits=hits,
        vote=vote,
    )  # fmt: skip


def hit(target: str, kind: str, at: int = 5, seed: int = 7, dose: int = 1) -> Injection:
    return Injection(target=target, kind=kind, at=at, seed=seed, dose=dose)


@pytest.fixture(scope="module")
def run(shared_scratch: Path) -> Iterator[Run]:
    """One station for all: that it stays clean from mission to mission is what is tested."""
    with station(shared_scratch / "st") as one:
        yield one


def test_nothing_hit_nothing_fails(run: Run) -> None:
    for seed in range(1, 4):
        row = run(plan(seed=seed))
        assert row.outcome is Outcome.CORRECT, row.words
        assert (row.correct, row.wrong, row.masked) == (20, 0, 0)
        assert not [fate for fate in row.guests if fate.failed]
        assert row.timings is not None
        assert len([each for each in row.latencies if each > 0]) == 20


@pytest.mark.parametrize(
    "kind", ["crash", "hang", "corrupt-reply", "wrong-seq", "garbage", "drop-reply", "reset"]
)
def test_one_guest_hit_is_masked_and_the_next_mission_starts_clean(run: Run, kind: str) -> None:
    target = Random(kind).choice(["g1", "g2", "g3"])
    row = run(plan(hit(target, kind)))
    assert row.outcome is Outcome.CORRECT, row.words
    assert [(each.kind, each.applied) for each in row.hits] == [(kind, True)], row.hits
    assert [fate.name for fate in row.guests if fate.failed] == [target]
    row = run(plan(seed=2))
    assert row.outcome is Outcome.CORRECT, row.words
    assert not [fate for fate in row.guests if fate.failed]


def test_two_guests_hit_are_detected_and_never_a_guess(run: Run) -> None:
    row = run(plan(hit("g1", "crash"), hit("g2", "hang", at=8)))
    assert row.outcome is Outcome.DETECTED, row.words
    assert row.wrong == 0
    assert row.refused >= 10


def test_two_liars_apart_are_detected_and_alike_are_believed(run: Run) -> None:
    apart = run(plan(hit("g1", "corrupt-reply", seed=1), hit("g2", "corrupt-reply", seed=2)))
    assert apart.outcome is Outcome.DETECTED, apart.words
    # From the first request on: a lie told in a late reply to one before would expel its teller.
    alike = run(plan(hit("g1", "corrupt-reply", at=0), hit("g2", "corrupt-reply", at=0)))
    assert alike.outcome is Outcome.SILENT, "this is what 2-of-3 cannot mask"
    assert alike.wrong > 0
    assert "wrong reply" in alike.words


def test_a_voter_that_dies_loses_the_mission(run: Run) -> None:
    row = run(plan(hit("voter", "voter-kill")))
    assert row.outcome is Outcome.VOTER_LOST, row.words
    assert row.correct == 5
    assert [each.applied for each in row.hits] == [True]


def test_with_repair_a_mission_outlives_faults_that_come_apart(run: Run) -> None:
    hits = (hit("g1", "crash", at=3), hit("g2", "hang", at=9), hit("voter", "voter-kill", at=14))
    row = run(plan(*hits, repair=True))
    assert row.outcome is Outcome.CORRECT, row.words
    assert all(each.applied for each in row.hits)


def test_the_plain_guest_fails_with_what_hits_it(run: Run) -> None:
    assert run(plan(design="nv")).outcome is Outcome.CORRECT
    assert run(plan(hit("g1", "crash"), design="nv")).outcome is Outcome.DETECTED
    assert run(plan(hit("g1", "hang"), design="nv")).outcome is Outcome.TIMEOUT
    lies = run(plan(hit("g1", "corrupt-reply"), design="nv"))
    assert lies.outcome is Outcome.SILENT, "nobody compares"
    assert run(plan(design="nv")).outcome is Outcome.CORRECT


def test_flipped_bits_are_read_back_and_gone_with_the_mission(run: Run) -> None:
    row = run(plan(hit("g3", "flip-ram", dose=20000)))
    assert row.outcome is Outcome.CORRECT, row.words
    assert row.hits[0].applied, row.hits
    row = run(plan(seed=3))
    assert row.outcome is Outcome.CORRECT, row.words
    assert not [fate for fate in row.guests if fate.failed]


def test_what_cannot_be_applied_is_not_counted_as_masked(run: Run) -> None:
    row = run(plan(hit("g1", "poison-crash")))
    assert [each.applied for each in row.hits] == [False]
    assert "hits the client" in row.hits[0].proof


@pytest.mark.parametrize(
    ("vote", "kind", "outcome", "names"),
    [
        ("1/1", "corrupt-reply", Outcome.SILENT, ["g1"]),
        ("1/2", "crash", Outcome.CORRECT, ["g1", "g2"]),
        ("2/2", "corrupt-reply", Outcome.DETECTED, ["g1", "g2"]),
    ],
)
def test_another_policy_over_the_first_guests(
    run: Run, vote: str, kind: str, outcome: Outcome, names: list[str]
) -> None:
    row = run(plan(hit("g1", kind), vote=vote))
    assert row.outcome is outcome, row.words
    assert [fate.name for fate in row.guests] == names
    assert run(plan(vote=vote)).outcome is Outcome.CORRECT, "the next one starts clean"
