"""The plan is a function of the seed, keeps the shares it promises, and breaks one replica only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.faults import CATALOGUE
from faultinject.soak.plan import GUESTS, INJECTED, Moment, SoakFaultKind, make_plan

SEEDS = st.integers(0, 2**64)


@given(SEEDS, st.integers(1, 300))
def test_it_has_as_many_faults_as_asked_for_numbered_in_order(seed: int, faults: int) -> None:
    strikes = [strike for episode in make_plan(seed, faults) for strike in episode.strikes]
    assert [strike.number for strike in strikes] == list(range(1, faults + 1))


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    assert make_plan(7, 200) == make_plan(7, 200)
    assert make_plan(7, 200) != make_plan(8, 200)


def test_a_plan_is_the_same_on_every_host_and_day() -> None:
    shown = [
        " ".join(f"{strike.kind}/{strike.target}/{strike.seconds:g}" for strike in episode.strikes)
        for episode in make_plan(1, 6)
    ]
    assert shown == PLAN_OF_SEED_1


@given(SEEDS, st.integers(12, 300))
def test_more_than_a_quarter_are_meant_to_come_during_a_repair(seed: int, faults: int) -> None:
    strikes = [strike for episode in make_plan(seed, faults) for strike in episode.strikes]
    assert sum(strike.moment.overlaps for strike in strikes) > faults * (
        0.33 if faults >= 150 else 0.25
    )


@given(SEEDS)
def test_a_long_plan_has_every_kind_and_hits_every_part(seed: int) -> None:
    strikes = [strike for episode in make_plan(seed, 200) for strike in episode.strikes]
    assert {strike.kind for strike in strikes} == set(SoakFaultKind)
    assert {strike.target for strike in strikes} == {*GUESTS, "voter", "supervisor"}
    assert {strike.moment for strike in strikes} == set(Moment)


@given(SEEDS)
def test_never_two_guests_in_one_episode_and_the_second_fault_only_where_it_can_be(
    seed: int,
) -> None:
    for episode in make_plan(seed, 200):
        first, *later = episode.strikes
        guests = {strike.target for strike in episode.strikes} & set(GUESTS)
        assert len(guests) <= 1
        assert first.moment is Moment.WHOLE
        for strike in later:
            assert strike.kind not in INJECTED  # the supervisor may be dead, or busy with the guest
            assert (strike.moment is Moment.HELD) == (first.kind is SoakFaultKind.SLOW)


@given(SEEDS)
def test_what_is_injected_holds_for_a_time_and_the_rest_is_of_a_moment(seed: int) -> None:
    for episode in make_plan(seed, 100):
        for strike in episode.strikes:
            assert (strike.seconds > 0) == (strike.kind in INJECTED)


def test_injected_kinds_are_the_catalogues() -> None:
    assert {str(kind) for kind in INJECTED} <= set(CATALOGUE)


def test_a_plan_without_faults_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(1, 0)


PLAN_OF_SEED_1 = [
    "corrupt-reply/g2/2",
    "voter-kill/voter/0",
    "guest-kill/g1/0 voter-kill/voter/0",
    "guest-kill/g1/0 guest-kill/g1/0",
]
