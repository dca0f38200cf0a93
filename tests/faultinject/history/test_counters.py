"""The counter check accepts right totals and reports lost and doubled increments."""

from __future__ import annotations

import pytest

from faultinject.history.counters import CounterCheck


def found(check: CounterCheck) -> tuple[int, int, int]:
    return check.lost, check.twice, check.back


def test_right_totals_are_no_complaint() -> None:
    check = CounterCheck()
    for total in (1, 2, 3):
        check.own("c1", total)
        check.added("c1", 2 * total - 1)
        check.added("c2", 2 * total)
    check.finish(6, {"c1": 3})
    assert found(check) == (0, 0, 0)
    assert (check.increments, check.complaints) == (9, [])


@pytest.mark.parametrize(
    "totals, lost, twice", [((1, 1), 1, 0), ((1, 3), 0, 1)], ids=["repeated", "skipped"]
)
def test_own_counter_is_wrong_when_its_totals_do_not_count_up_by_one(
    totals: tuple[int, ...], lost: int, twice: int
) -> None:
    check = CounterCheck()
    for total in totals:
        check.own("c1", total)
    assert found(check) == (lost, twice, 0)
    assert "c1" in check.complaints[0]


@pytest.mark.parametrize("total", [2, 3])
def test_own_counter_may_skip_one_when_an_increment_had_no_reply(total: int) -> None:
    check = CounterCheck()
    check.own("c1", 1)
    check.own_lost("c1")
    check.own("c1", total)
    assert found(check) == (0, 0, 0)


@pytest.mark.parametrize(
    "totals, unknown, end, lost, twice",
    [
        ((1, 1), 0, 1, 1, 0),
        ((1,), 0, 2, 0, 1),
        ((1,), 1, 2, 0, 0),
        ((1, 2), 0, 1, 1, 0),
    ],
    ids=["repeated", "ends too high", "ends high, one unknown", "ends too low"],
)
def test_shared_counter_is_compared_with_the_acknowledged_increments(
    totals: tuple[int, ...], unknown: int, end: int, lost: int, twice: int
) -> None:
    check = CounterCheck()
    for number, total in enumerate(totals):
        check.added(f"c{number}", total)
    check.shared_lost = unknown
    check.finish(end, {})
    assert found(check) == (lost, twice, 0)


def test_own_counters_are_compared_at_the_end() -> None:
    check = CounterCheck()
    check.own("c1", 1)
    check.own("c2", 1)
    check.finish(0, {"c1": 2})
    assert found(check) == (1, 1, 0)


def test_read_that_goes_back_is_counted_for_its_own_client_only() -> None:
    check = CounterCheck()
    check.read("c1", 5)
    check.read("c2", 4)
    check.read("c1", 4)
    assert found(check) == (0, 0, 1)
