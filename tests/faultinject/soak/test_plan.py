"""The plan is a function of the seed, keeps the shares it promises, and breaks one replica only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.faults import CATALOGUE
from faultinject.soak.plan import BY_SUPERVISOR, GUESTS, SoakFaultKind, Trigger, make_plan

SEEDS = st.integers(0, 2**64)


@given(SEEDS, st.integers(1, 300))
def test_plan_has_the_number_of_faults_requested_numbered_in_order(seed: int, faults: int) -> None:
    injections = [planned for episode in make_plan(seed, faults) for planned in episode.injections]
    assert [planned.number for planned in injections] == list(range(1, faults + 1))


def test_plan_is_the_same_for_the_same_seed_and_another_for_another_seed() -> None:
    assert make_plan(7, 200) == make_plan(7, 200)
    assert make_plan(7, 200) != make_plan(8, 200)


def test_plan_of_seed_1_never_changes() -> None:
    shown = [
        " ".join(
            f"{planned.kind}/{planned.target}/{planned.seconds:g}" for planned in episode.injections
        )
        for episode in make_plan(1, 6)
    ]
    assert shown == PLAN_OF_SEED_1


@given(SEEDS, st.integers(12, 300))
def test_plan_injects_more_than_a_quarter_during_a_repair(seed: int, faults: int) -> None:
    injections = [planned for episode in make_plan(seed, faults) for planned in episode.injections]
    assert sum(planned.trigger.overlaps for planned in injections) > faults * (
        0.33 if faults >= 150 else 0.25
    )


@given(SEEDS)
def test_long_plan_has_every_kind_and_target(seed: int) -> None:
    injections = [planned for episode in make_plan(seed, 200) for planned in episode.injections]
    new = {Trigger.STARTED, Trigger.CATCHING_UP}
    assert {planned.kind for planned in injections} == set(SoakFaultKind) - {
        SoakFaultKind.REJUVENATE
    }
    assert {planned.target for planned in injections} == {*GUESTS, "voter", "supervisor"}
    assert {planned.trigger for planned in injections} == set(Trigger) - new


@given(SEEDS)
def test_plan_with_rejuvenations_kills_voter_or_supervisor_in_most_of_them(seed: int) -> None:
    episodes = make_plan(seed, 200, rejuvenate=True)
    assert sum(len(episode.injections) for episode in episodes) == 200
    exchanges = [
        episode.injections
        for episode in episodes
        if episode.injections[0].kind is SoakFaultKind.REJUVENATE
    ]
    assert len(exchanges) >= len(episodes) / 4
    second = [each[1] for each in exchanges if len(each) > 1]
    assert len(second) >= len(exchanges) / 2
    assert {each.target for each in second} == {"voter", "supervisor"}
    assert {each.trigger for each in second} == {Trigger.STARTED, Trigger.CATCHING_UP}


@given(SEEDS)
def test_episode_hits_at_most_one_guest(
    seed: int,
) -> None:
    for episode in make_plan(seed, 200):
        first, *later = episode.injections
        guests = {planned.target for planned in episode.injections} & set(GUESTS)
        assert len(guests) <= 1
        assert first.trigger is Trigger.ALL_VOTE
        for planned in later:
            assert (
                planned.kind not in BY_SUPERVISOR
            )  # the supervisor may be dead, or busy with the guest
            assert (planned.trigger is Trigger.HELD) == (first.kind is SoakFaultKind.SLOW)


@given(SEEDS)
def test_only_faults_of_the_supervisor_have_a_duration(seed: int) -> None:
    for episode in make_plan(seed, 100):
        for planned in episode.injections:
            assert (planned.seconds > 0) == (planned.kind in BY_SUPERVISOR)


def test_kinds_of_the_supervisor_are_in_the_catalogue() -> None:
    assert {str(kind) for kind in BY_SUPERVISOR} <= set(CATALOGUE)


def test_plan_without_faults_raises() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(1, 0)


PLAN_OF_SEED_1 = [
    "corrupt-reply/g2/2",
    "voter-kill/voter/0",
    "guest-kill/g1/0 voter-kill/voter/0",
    "guest-kill/g1/0 guest-kill/g1/0",
]
