"""The plan of the rounds: a function of the seed; it spreads guests, keys, triggers, offsets."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.soak import command
from faultinject.soak.plan import GUESTS
from faultinject.soak.round_plan import (
    EARLIEST_KILL,
    LATEST_KILL,
    MAGIC,
    TOGETHER,
    VALUE_SIZE,
    make_rounds,
    marked_value,
)

SEEDS = st.integers(0, 2**64)


@given(SEEDS, st.integers(1, 60))
def test_plan_numbers_its_rounds_and_changes_guest_and_key_from_round_to_round(
    seed: int, rounds: int
) -> None:
    plans = make_rounds(seed, rounds)
    assert [plan.number for plan in plans] == list(range(1, rounds + 1))
    for before, after in pairwise(plans):
        assert before.guest != after.guest
        assert before.key != after.key


@given(SEEDS)
def test_plan_of_200_rounds_spreads_offsets_guests_and_moments(seed: int) -> None:
    plans = make_rounds(seed, 200)
    assert all(EARLIEST_KILL <= plan.offset <= LATEST_KILL for plan in plans)
    assert 30 <= sum(plan.offset < 0 for plan in plans) <= 50
    assert 70 <= sum(plan.offset > 0.1 for plan in plans) <= 90
    triggers = Counter(plan.trigger.name for plan in plans)
    assert triggers == {"READ": 80, "MARKER": 60, "FETCH": 60}
    assert min(Counter(plan.guest for plan in plans)[guest] for guest in GUESTS) > 40
    assert all(len(MAGIC) <= plan.byte < VALUE_SIZE for plan in plans)


def test_plan_is_the_same_for_the_same_seed_and_another_for_another_seed() -> None:
    assert make_rounds(7, 50) == make_rounds(7, 50)
    assert make_rounds(7, 50) != make_rounds(8, 50)
    assert make_rounds(7, 50)[:20] == make_rounds(7, 20)


def test_plan_without_rounds_raises() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_rounds(1, 0)


def test_marked_values_are_unique_and_begin_alike() -> None:
    values = {marked_value(seed, number, attempt) for seed in (1, 2) for number in range(20)
              for attempt in range(3)}  # fmt: skip
    assert len(values) == 120
    assert all(value.startswith(MAGIC) and len(value) == VALUE_SIZE for value in values)


def test_command_offers_the_planned_combination() -> None:
    assert command.TOGETHER == TOGETHER
