"""Inequalities (1) to (4), solved for each quantity, with the paper's numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.model.bounds import (
    breakeven_rf,
    breakeven_rv,
    breakeven_rv_1ofn,
    breakeven_rv_2of3,
    guests_needed,
    guests_to_beat_plain,
    rm_range,
    rm_range_2of3,
)
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import m_of_n, moved_c1, moved_c2, nv, one_of_n, two_of_three

inside = st.floats(0.001, 0.999)


def test_inequality_4_matches_the_papers_values() -> None:
    assert breakeven_rv_2of3(0.75) == pytest.approx(8 / 9)
    assert breakeven_rv_2of3(0.5) == 1.0
    assert breakeven_rv_2of3(0.4) > 1.0
    assert breakeven_rv_2of3(1.0) == 1.0


@pytest.mark.parametrize(("rv", "low", "high"), [(0.98, 0.5213, 0.9787), (0.9, 2 / 3, 5 / 6)])
def test_rm_range_matches_the_papers_values(rv: float, low: float, high: float) -> None:
    found = rm_range_2of3(rv)
    assert found is not None
    assert (float(found[0]), float(found[1])) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("rv", [0.0, 0.5, 8 / 9])
def test_rm_range_is_none_at_eight_ninths_or_less(rv: float) -> None:
    assert rm_range_2of3(rv) is None


@given(rm=inside)
def test_bound_of_2of3_is_at_least_eight_ninths(rm: float) -> None:
    bound = breakeven_rv_2of3(rm)
    assert bound >= 8 / 9 - 1e-15
    assert (bound < 1.0) == (rm > 0.5)


@given(rm=inside, rv=inside)
def test_inequality_4_agrees_with_the_reliabilities(rm: float, rv: float) -> None:
    gain = float(two_of_three(1, rv, rm)) - rm
    if abs(gain) > 1e-12:
        assert (gain > 0) == (rv > breakeven_rv_2of3(rm))


@given(rm=inside, n=st.integers(1, 9), m=st.integers(1, 9))
def test_reliabilities_are_equal_at_the_bound(rm: float, n: int, m: int) -> None:
    if m > n:
        return
    bound = breakeven_rv(rm, m, n)
    if bound <= 1.0:
        assert float(m_of_n(1, bound, rm, m, n)) == pytest.approx(rm, rel=1e-12)
    assert bound.down == pytest.approx(1 - float(bound), rel=1e-9, abs=1e-12)


@given(rv=st.floats(0.5, 1.0), m=st.integers(1, 4), n=st.integers(2, 6))
def test_vote_is_better_inside_the_range_only(rv: float, m: int, n: int) -> None:
    if m > n:
        return
    found = rm_range(rv, m, n)
    better = [
        r / 200 for r in range(1, 200) if float(m_of_n(1, rv, r / 200, m, n)) > r / 200 + 1e-12
    ]
    if found is None:
        assert not better
        return
    low, high = float(found[0]), float(found[1])
    assert all(low < r < high for r in better)
    span = [r / 200 for r in range(1, 200) if low + 1e-9 < r / 200 < high - 1e-9]
    assert len(span) - len(better) <= 2


def test_unanimity_is_never_better_than_one_vm() -> None:
    assert rm_range(1.0, 3, 3) is None
    assert breakeven_rv(0.9, 2, 2) > 1.0


def test_range_of_one_of_n_extends_close_to_one() -> None:
    assert rm_range(0.3, 1, 3) is None  # three are at most three times as good as one
    found = rm_range(0.3, 1, 4)
    assert found is not None
    assert float(found[0]) == 0.0
    assert 0.1 < found[1] < 0.2


def test_inequality_1_matches_the_papers_example() -> None:
    assert breakeven_rv_1ofn(0.1, 3) > 0.3 > breakeven_rv_1ofn(0.1, 4)
    assert breakeven_rv_1ofn(0.5, 1) == 1.0
    needed = guests_to_beat_plain(0.1, 0.3)
    assert needed.guests == 4
    assert needed.bound == pytest.approx(math.log(2 / 3) / math.log(0.9))


@pytest.mark.parametrize(("r", "least"), [(0.98, 0.3562), (0.998, 0.5360)])
def test_nine_vms_are_enough_from_this_rm(r: float, least: float) -> None:
    """Figure 4, R_V = .999."""
    assert guests_needed(r, 0.999, least).guests == 9
    assert guests_needed(r, 0.999, least - 0.001).guests == 10


@given(r=inside, rv=inside, rm=inside)
def test_guests_needed_is_the_smallest_n(r: float, rv: float, rm: float) -> None:
    if rv - r < 1e-6:
        return
    needed = guests_needed(r, rv, rm)
    if needed.guests > 10_000 or abs(needed.bound - round(needed.bound)) < 1e-6:
        return
    assert one_of_n(1, rv, rm, needed.guests) > r
    if needed.guests > 1:
        assert one_of_n(1, rv, rm, needed.guests - 1) <= r


def test_tie_in_inequality_2_is_not_enough() -> None:
    assert guests_needed(0.99, 1.0, 0.9).guests == 3  # two give .99 exactly, and (2) is strict
    assert guests_needed(0.875, 1.0, 0.5).guests == 4


def test_inequality_3_matches_the_papers_values() -> None:
    assert breakeven_rf(0.75, 0.75, 6) == pytest.approx(0.9932, abs=5e-5)
    assert breakeven_rf(0.75, 0.75, 9) == pytest.approx(0.9994, abs=5e-5)
    assert breakeven_rf(0.3, 0.75, 1) == 0.3
    assert breakeven_rf(0.0, 0.5, 3) == 0.0
    assert breakeven_rf(0.5, 1.0, 3) == pytest.approx(0.875)


@given(rf=inside, rest=inside, n=st.integers(1, 12))
def test_c1_and_c2_are_equal_at_inequality_3(rf: float, rest: float, n: int) -> None:
    bound = breakeven_rf(rf, rest, n)
    assert bound >= rf - 1e-15  # F is to be more reliable than f
    one, two = moved_c1(0.9, 0.95, rf, rest, n), moved_c2(0.9, 0.95, bound, rest, n)
    assert float(one) == pytest.approx(float(two), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: breakeven_rv_2of3(0), "R_M = 0.*Inequality 4"),
        (lambda: breakeven_rv_1ofn(0, 3), "R_M = 0.*Inequality 1"),
        (lambda: breakeven_rv_1ofn(0.5, 0), "n is 0"),
        (lambda: guests_needed(0.98, 0.98, 0.5), "not below R_H R_V.*Inequality 2"),
        (lambda: guests_needed(0.99, 0.98, 0.5), "requires R < R_V"),
        (lambda: guests_needed(0.9, 0.98, 0), "R_M = 0.*Inequality 2"),
        (lambda: guests_needed(0.9, 0.98, 1), "R_M = 1"),
        (lambda: guests_to_beat_plain(0.5, 0.5), "more reliable than the individual VM"),
        (lambda: breakeven_rf(0.5, 0, 3), "R_M' = 0.*Inequality 3"),
        (lambda: rm_range(0.9, 4, 3), "m is 4"),
    ],
)  # fmt: skip
def test_unanswerable_questions_raise(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message) as caught:
        call()
    assert caught.value.error_code == ("TV0601" if " is " in message[:5] else "TV0603")


def test_nv_is_the_product_of_its_parts() -> None:
    assert float(nv(1, Paired.failing(1e-15))) == 1 - 1e-15
