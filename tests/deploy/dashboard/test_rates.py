"""Points are differences of the voter's counters."""

from __future__ import annotations

import pytest

from deploy.dashboard.rates import FIELDS, Rates, quantile
from tests.deploy.dashboard.shown import BOUNDS, make_status


def test_first_point_knows_no_rate() -> None:
    point = Rates().point(5.0, make_status(released=10))
    assert point == [5.0, *[None] * (len(FIELDS) - 1)]


def test_point_counts_what_was_released_since_the_one_before() -> None:
    rates = Rates()
    rates.point(5.0, make_status(released=10, failures={"timeout": 2}))
    point = rates.point(
        7.0,
        make_status(
            released=110, masked=4, latency=(100, 0, 0, 0),
            failures={"timeout": 3, "not-executed": 5},
        ),
    )  # fmt: skip
    named = dict(zip(FIELDS, point, strict=True))
    assert (named["seconds"], named["unanimous"], named["majority"]) == (2.0, 96, 4)
    assert (named["rejected"], named["failed"]) == (5, 1)
    assert named["p50"] == pytest.approx(0.0005 * 2**0.5)


def test_all_replies_are_by_majority_while_a_guest_does_not_vote() -> None:
    rates = Rates()
    rates.point(1.0, make_status())
    point = rates.point(2.0, make_status(released=7, states=("active", "absent", "active")))
    assert point[2:4] == [0, 7]


def test_restarted_voter_counts_from_zero_without_negative_rates() -> None:
    rates = Rates()
    rates.point(1.0, make_status(released=50))
    assert rates.point(2.0, make_status(released=3, pid=11))[1] is None
    assert rates.point(3.0, make_status(released=5, pid=11))[2] == 2


def test_voter_that_does_not_answer_gives_no_rate() -> None:
    rates = Rates()
    rates.point(1.0, make_status())
    silent = make_status()
    silent["voter"] = {"pid": 10, "latency": None, "counters": {}}
    assert rates.point(2.0, silent)[1] is None
    assert rates.point(3.0, make_status(released=5))[1] is None


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((0, 10, 0, 0), 1.0, 0.01),
        ((0, 10, 0, 0), 0.5, 0.001 * 10**0.5),
        ((0, 0, 0, 3), 0.5, 0.1),
        ((99, 0, 1, 0), 0.99, 0.001),
    ],
)
def test_quantile_interpolates_within_a_bucket(
    counts: tuple[int, ...], share: float, expected: float | None
) -> None:
    assert quantile(BOUNDS, counts, share) == pytest.approx(expected)
