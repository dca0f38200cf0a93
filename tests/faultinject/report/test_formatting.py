"""Numbers in words."""

from __future__ import annotations

import math

import pytest

from faultinject.report.formatting import milliseconds, number, percent, rest, share
from tests.faultinject.report.synthetic import exact

__all__: list[str] = []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0 %"), (1.0, "100 %"), (0.5, "50 %"), (0.00026, "0.026 %"), (0.9969, "99.69 %"),
        (0.999, "99.90 %"), (0.034, "3.4 %"), (math.nan, "\N{EN DASH}"), (1.3, "130 %"),
    ],
)  # fmt: skip
def test_a_percentage_has_the_digits_that_count(value: float, words: str) -> None:
    assert percent(value) == words


def test_a_share_without_trials_is_no_number() -> None:
    assert share(exact(0, 1)).startswith("0")
    assert share(exact(0, 0)) == "\N{EN DASH}"


def test_the_rest_of_a_share_turns_its_interval_over() -> None:
    found = exact(3, 10)
    turned = rest(found)
    assert turned.count == 7
    assert turned.low == pytest.approx(1 - found.high)
    assert turned.high == pytest.approx(1 - found.low)


def test_times_and_plain_numbers() -> None:
    assert milliseconds(0.00431) == "4.31 ms"
    assert milliseconds(2.5) == "2.50 s"
    assert milliseconds(math.inf) == "\N{EN DASH}"
    assert number(0.95) == "0.95"
    assert number(1.0) == "1"
