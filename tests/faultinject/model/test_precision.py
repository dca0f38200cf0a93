"""Extreme values against mpmath: 1 - R down to 1e-15, n to 10,000."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faultinject.model.bounds import (
    breakeven_rf,
    breakeven_rv,
    breakeven_rv_1ofn,
    breakeven_rv_2of3,
    guests_needed,
    rm_range_2of3,
)
from faultinject.model.paired import Paired
from faultinject.model.reliability import m_of_n, one_of_n, two_of_three
from faultinject.model.tails import binomial_at_least

mpmath: Any = pytest.importorskip("mpmath", reason="mpmath is not installed")
mp = mpmath.mp.clone()
mp.dps = 60

tiny = st.integers(1, 15).map(lambda e: 10.0**-e) | st.floats(1e-15, 0.5)
sides = st.tuples(st.booleans(), tiny)


def both(side: tuple[bool, float]) -> tuple[Paired, Any]:
    """A reliability near 1 or near 0, for us and for mpmath."""
    near_one, small = side
    if near_one:
        return Paired.failing(small), 1 - mp.mpf(small)
    return Paired(small), mp.mpf(small)


def near(ours: float, exact: Any, rel: float) -> bool:
    return bool(abs(mp.mpf(ours) - exact) <= rel * abs(exact) + mp.mpf("1e-300"))


@given(side=sides)
def test_two_of_three_matches_mpmath(side: tuple[bool, float]) -> None:
    r, exact = both(side)
    found, voted = two_of_three(1, 1, r), 3 * exact**2 - 2 * exact**3
    assert near(float(found), voted, 1e-14) and near(found.down, 1 - voted, 1e-14)


@given(side=sides, n=st.sampled_from([1, 2, 9, 100, 10_000]))
def test_one_of_n_matches_mpmath(side: tuple[bool, float], n: int) -> None:
    r, exact = both(side)
    found, down = one_of_n(1, 1, r, n), (1 - exact) ** n
    assert near(found.down, down, 1e-11) and near(float(found), 1 - down, 1e-12)


@given(side=sides, n=st.sampled_from([3, 5, 50]), data=st.data())
def test_m_of_n_matches_mpmath(side: tuple[bool, float], n: int, data: st.DataObject) -> None:
    r, exact = both(side)
    m = data.draw(st.integers(1, n))
    up = mp.fsum(mp.binomial(n, j) * exact**j * (1 - exact) ** (n - j) for j in range(m, n + 1))
    down = mp.fsum(mp.binomial(n, j) * exact**j * (1 - exact) ** (n - j) for j in range(m))
    found = m_of_n(1, 1, r, m, n)
    assert near(float(found), up, 1e-12) and near(found.down, down, 1e-12)


def upper_tail(m: int, n: int, r: Any) -> Any:
    total, term = mp.mpf(0), mp.binomial(n, m) * r**m * (1 - r) ** (n - m)
    for j in range(m, n + 1):
        total += term
        term *= mp.mpf(n - j) / (j + 1) * r / (1 - r)
        if j > n * r and term < total * mp.mpf("1e-40"):
            break
    return total


@settings(max_examples=12, deadline=None)
@given(r=st.floats(0.3, 0.7), m=st.integers(3000, 7000))
def test_m_of_ten_thousand_matches_mpmath(r: float, m: int) -> None:
    n, found = 10_000, binomial_at_least(m, 10_000, Paired(r))
    assert near(float(found), upper_tail(m, n, mp.mpf(r)), 1e-11)
    assert near(found.down, upper_tail(n - m + 1, n, 1 - mp.mpf(r)), 1e-11)


@given(side=sides)
def test_bound_of_inequality_4_matches_mpmath(side: tuple[bool, float]) -> None:
    r, exact = both(side)
    bound = 1 / (3 * exact - 2 * exact**2)
    found = breakeven_rv_2of3(r)
    assert near(float(found), bound, 1e-14) and near(found.down, 1 - bound, 1e-13)


@given(side=sides, n=st.sampled_from([2, 9, 100, 10_000]))
def test_bound_of_inequality_1_matches_mpmath(side: tuple[bool, float], n: int) -> None:
    r, exact = both(side)
    bound = exact / (1 - (1 - exact) ** n)
    found = breakeven_rv_1ofn(r, n)
    assert near(float(found), bound, 1e-11) and near(found.down, 1 - bound, 1e-11)


@example(f=(True, 0.15625), rest=(True, 0.15625), n=100)
@given(f=sides, rest=sides, n=st.sampled_from([1, 2, 6, 9, 100, 10_000]))
def test_bound_of_inequality_3_matches_mpmath(
    f: tuple[bool, float], rest: tuple[bool, float], n: int
) -> None:
    (rf, exact_f), (rm, exact_m) = both(f), both(rest)
    with mp.workdps(400):
        top = 1 - (1 - exact_f * exact_m) ** n
        bottom = 1 - (1 - exact_m) ** n
        bound, room = top / bottom, (bottom - top) / bottom
    found = breakeven_rf(rf, rm, n)
    assert near(float(found), bound, 1e-11)
    if abs(room) > 1e-55:  # below, the 60 digits of the exact value have no room left
        assert near(found.down, room, 1e-10)


@given(v=tiny.filter(lambda x: x < 0.1))
def test_range_of_inequality_4_matches_mpmath(v: float) -> None:
    found = rm_range_2of3(Paired.failing(v))
    assert found is not None
    root = mp.sqrt(9 - 8 / (1 - mp.mpf(v)))
    assert near(float(found[0]), (3 - root) / 4, 1e-13)
    assert near(found[1].down, 1 - (3 + root) / 4, 1e-12)


@given(rv=tiny.filter(lambda x: x < 0.01), extra=st.floats(1.1, 100), rm=st.floats(1e-6, 0.999))
def test_inequality_2_matches_mpmath_with_r_close_to_rv(rv: float, extra: float, rm: float) -> None:
    r = rv * extra
    exact = mp.log((mp.mpf(r) - rv) / (1 - mp.mpf(rv))) / mp.log(1 - mp.mpf(rm))
    assert near(guests_needed(Paired.failing(r), Paired.failing(rv), rm).bound, exact, 1e-11)


def test_m_of_n_bounds_exist_for_extreme_values() -> None:
    assert breakeven_rv(1e-9, 5_000, 10_000) == float("inf")
    assert breakeven_rv(Paired.failing(1e-15), 5_001, 10_000).down == pytest.approx(1e-15, rel=1e-9)


def test_parse_keeps_both_sides_of_a_decimal() -> None:
    assert Paired.parse("0.999999999999999").down == 1e-15
    assert Paired.parse("1-1e-15").down == 1e-15
    assert Paired.parse("1e-15") == 1e-15
    copy = pickle.loads(pickle.dumps(Paired.failing(1e-15)))
    assert (copy, copy.down) == (1 - 1e-15, 1e-15)
