"""Shrinking a plan that fails, and the command that is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from faultinject.simulation.command import simulate
from faultinject.simulation.plan import make_plan, parse_numbers, write_numbers
from faultinject.simulation.shrink import command_of, fewest


@pytest.mark.parametrize("needed", [[], [3], [0, 19], [4, 5, 11], list(range(20))])
def test_only_what_is_needed_stays(needed: list[int]) -> None:
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
def test_numbers_are_written_and_read(numbers: list[int], text: str) -> None:
    assert write_numbers(numbers) == text
    assert parse_numbers(text) == numbers


def test_the_command_names_what_was_left() -> None:
    whole = make_plan(9)
    assert command_of(whole, whole) == "trivisor simulate --seed 9"
    part = whole.without([1], [0, 1, 2])
    expected = "trivisor simulate --seed 9 --faults 1 --operations 0-2 --defect x"
    assert command_of(part, whole, defect="x") == expected


def test_one_seed_by_the_command() -> None:
    done = CliRunner().invoke(
        simulate, ["--seed", "3", "--faults", "none", "--operations", "0-4", "--json"]
    )
    said = json.loads(done.stdout)
    assert said["seed"] == 3
    assert said["breaches"] == []
    assert said["faults"] == []


def test_a_range_by_the_command() -> None:
    done = CliRunner().invoke(simulate, ["--seeds", "1..6", "--jobs", "1", "--json"])
    said = json.loads(done.stdout)
    assert said["seeds"] == 6
    assert said["failed"] == []


@pytest.mark.parametrize("words", [["--seeds", "6"], ["--seeds", "9..1"], ["--faults", "x"]])
def test_wrong_words_are_said(words: list[str]) -> None:
    done = CliRunner().invoke(simulate, words)
    assert done.exit_code == 2
    assert "is not like" in done.output
