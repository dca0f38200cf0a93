"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from faultinject.report.formatting import milliseconds, number, percent, proportion
from faultinject.results.findings import Proportion

__all__: list[str] = []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"), (1.0, "100 %"), (0.5, "50 %"), (0.00026, "0.026 %"), (0.9969, "99.69 %"),
        (0.999, "99.90 %"), (0.034, "3.4 %"), (math.nan, "\N{EN DASH}"), (1.3, "130 %"),
    ],
)  # fmt: skip
def test_percent_shows_two_significant_digits(value: float, text: str) -> None:
    assert percent(value) == text


def test_proportion_without_trials_is_a_dash() -> None:
    assert proportion(Proportion(count=0, of=1, low=0.0, high=0.975)).startswith("0")
    assert proportion(Proportion(count=0, of=0, low=0.0, high=1.0)) == "\N{EN DASH}"


def test_proportion_complement_reverses_the_interval() -> None:
    found = Proportion(count=3, of=10, low=0.07, high=0.65).complement()
    assert found.count == 7
    assert (found.low, found.high) == pytest.approx((0.35, 0.93))


def test_times_and_numbers_are_formatted_without_idle_zeros() -> None:
    assert milliseconds(0.00431) == "4.31 ms"
    assert milliseconds(2.5) == "2.50 s"
    assert milliseconds(math.inf) == "\N{EN DASH}"
    assert number(0.95) == "0.95"
    assert number(1.0) == "1"
