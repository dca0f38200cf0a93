"""A failing plan is shrunk, and the command that repeats it is printed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from faultinject.simulation.notation import parse_numbers, write_numbers
from faultinject.simulation.plan import make_plan
from faultinject.simulation.shrink import command_of, fewest


@pytest.mark.parametrize("needed", [[], [3], [0, 19], [4, 5, 11], list(range(20))])
def test_fewest_keeps_only_what_is_needed(needed: list[int]) -> None:
    tried = 0

    def still(some: Sequence[int]) -> bool:
        nonlocal tried
        tried += 1
        return set(needed) <= set(some)

    assert fewest(range(20), still) == needed
    assert tried < 250


@pytest.mark.parametrize(
    ("numbers", "text"), [([], "none"), ([3], "3"), ([0, 1, 2, 5], "0-2,5"), ([1, 3], "1,3")]
)
def test_numbers_are_written_and_parsed(numbers: list[int], text: str) -> None:
    assert write_numbers(numbers) == text
    assert parse_numbers(text) == numbers


def test_command_names_the_remaining_faults_and_operations() -> None:
    whole = make_plan(9)
    assert command_of(whole, whole) == "trivisor simulate --seed 9"
    part = whole.without([1], [0, 1, 2])
    expected = "trivisor simulate --seed 9 --faults 1 --operations 0-2 --defect x"
    assert command_of(part, whole, defect="x") == expected
