"""The inequalities solved for R, R_f, R_M' and n, and back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faultinject.model.bounds import breakeven_rf, breakeven_rv, guests_needed
from faultinject.model.causes import beta_factor
from faultinject.model.inversions import (
    breakeven_with,
    guests_for_majority,
    guests_when_moved,
    rf_when_moved,
    rm_needed,
    rm_when_moved,
    rv_needed,
)
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import at_least, m_of_n, series

inside = st.floats(0.001, 0.999)
tiny = st.integers(1, 15).map(lambda e: 10.0**-e) | st.floats(1e-15, 0.5)
policies = st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


def near(one: float, other: float, rel: float = 1e-9) -> bool:
    return math.isclose(one, other, rel_tol=rel, abs_tol=1e-300)


def test_rm_needed_matches_figure_4() -> None:
    """Nine VMs on R_V = .999 reach R = .98 and .998 from these R_M (Inequality 2)."""
    assert rm_needed(0.98, 0.999, 1, 9) == pytest.approx(0.3561, abs=5e-5)
    assert rm_needed(0.998, 0.999, 1, 9) == pytest.approx(0.5358, abs=5e-5)


@given(r=inside, rv=inside, policy=policies)
def test_node_has_r_at_the_rm_needed(r: float, rv: float, policy: tuple[int, int]) -> None:
    assume(r < 0.999 * rv)
    found = rm_needed(r, rv, *policy)
    assert near(float(m_of_n(1, rv, found, *policy)), r, 1e-10)


@given(room=tiny, policy=policies)
def test_rm_needed_is_accurate_close_to_one(room: float, policy: tuple[int, int]) -> None:
    r = Paired.failing(room)
    assert near(m_of_n(1, 1, rm_needed(r, 1, *policy), *policy).down, room, 1e-10)


@given(r=tiny, policy=policies)
def test_rm_needed_is_accurate_close_to_zero(r: float, policy: tuple[int, int]) -> None:
    assert near(float(m_of_n(1, 1, rm_needed(r, 1, *policy), *policy)), r, 1e-10)


@settings(max_examples=10, deadline=None)
@given(r=st.floats(0.01, 0.99), m=st.integers(1, 10_000))
def test_rm_needed_is_found_for_ten_thousand_vms(r: float, m: int) -> None:
    assert near(float(m_of_n(1, 1, rm_needed(r, 1, m, 10_000), m, 10_000)), r, 1e-8)


def test_rm_needed_matches_mpmath() -> None:
    mpmath: Any = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for room in (1e-15, 1e-9, 0.5):
            exact = 1 - (mpmath.mpf(room)) ** (mpmath.mpf(1) / 10_000)
            assert near(float(rm_needed(Paired.failing(room), 1, 1, 10_000)), float(exact), 1e-13)


@given(r=inside, rm=inside, rh=st.floats(0.5, 1.0), policy=policies)
def test_node_has_r_at_the_rv_needed(
    r: float, rm: float, rh: float, policy: tuple[int, int]
) -> None:
    guests = m_of_n(1, 1, rm, *policy)
    found = rv_needed(r, guests, rh)
    assert near(float(found) * rh * float(guests), r, 1e-12)
    if found <= 1.0:
        assert near(float(m_of_n(rh, float(found), rm, *policy)), r, 1e-9)


@given(rm=inside, policy=policies)
def test_breakeven_of_equal_independent_guests_is_the_papers(
    rm: float, policy: tuple[int, int]
) -> None:
    found = breakeven_with(rm, m_of_n(1, 1, rm, *policy))
    assert near(float(found), float(breakeven_rv(rm, *policy)), 1e-12)


def test_common_cause_and_unequal_guests_change_the_bound() -> None:
    assert breakeven_with(0.9, beta_factor(0.9, 0.2, 2, 3)) > breakeven_rv(0.9, 2, 3)
    assert breakeven_with(0.3, beta_factor(0.3, 0.2, 2, 3)) < breakeven_rv(0.3, 2, 3)
    assert breakeven_with(0.9, at_least(2, [0.9, 0.9, 0.5])) == pytest.approx(0.9 / 0.9)
    assert breakeven_with(0.5, 0.0) == math.inf


@given(room=st.floats(1e-9, 0.4), rm=st.floats(0.56, 0.999))
def test_guests_for_majority_is_the_smallest_odd_n(room: float, rm: float) -> None:
    needed = guests_for_majority(Paired.failing(room), 1.0, rm)
    n = needed.guests
    assert n % 2 == 1
    assert m_of_n(1, 1, rm, n // 2 + 1, n).down < room
    if n > 1:
        assert m_of_n(1, 1, rm, n // 2, n - 2).down >= room


def test_one_vm_is_enough_for_a_low_r() -> None:
    assert guests_for_majority(0.3, 1.0, 0.4).guests == 1
    assert guests_for_majority(0.98, 0.999, 0.9).guests == 5


@given(moved=inside, rest=inside, n=st.integers(1, 12))
def test_rf_when_moved_inverts_inequality_3(moved: float, rest: float, n: int) -> None:
    rf = rf_when_moved(moved, rest, n)
    assert 0.0 <= rf <= moved * (1 + 1e-12)
    assert near(float(breakeven_rf(rf, rest, n)), moved, 1e-9)


@given(
    moved=tiny.map(Paired.failing) | tiny.map(Paired),
    rest=tiny.map(Paired.failing) | tiny.map(Paired),
    n=st.sampled_from([1, 2, 6, 9, 100, 10_000]),
)
def test_rf_when_moved_matches_mpmath(moved: Paired, rest: Paired, n: int) -> None:
    mpmath: Any = pytest.importorskip("mpmath")
    with mpmath.workdps(400):
        moved_down, rest_down = mpmath.mpf(moved.down), mpmath.mpf(rest.down)
        moved_up = 1 - moved_down if moved > 0.5 else mpmath.mpf(float(moved))
        rest_up = 1 - rest_down if rest > 0.5 else mpmath.mpf(float(rest))
        z = mpmath.root(1 - moved_up * (1 - (1 - rest_up) ** n), n)
        exact = (1 - z) / rest_up
        found = rf_when_moved(moved, rest, n)
        assert near(float(found), float(exact), 1e-10)
        assert near(found.down, float(1 - exact), 1e-9)


def test_inversions_match_the_papers_values() -> None:
    """R_M' = R_f = .75: the bound is .9932 at n = 6, .9994 at n = 9."""
    six, nine = breakeven_rf(0.75, 0.75, 6), breakeven_rf(0.75, 0.75, 9)
    for bound, n in ((six, 6), (nine, 9)):
        assert float(rf_when_moved(bound, 0.75, n)) == pytest.approx(0.75, abs=1e-12)
        assert float(rm_when_moved(bound, 0.75, n)) == pytest.approx(0.75, abs=1e-12)
    assert guests_when_moved(0.9933, 0.75, 0.75) == 6
    assert guests_when_moved(0.99945, 0.75, 0.75) == 9


@given(rf=st.floats(0.05, 0.95), part=st.floats(0.001, 0.999), n=st.integers(2, 12))
def test_rm_when_moved_inverts_inequality_3(rf: float, part: float, n: int) -> None:
    top = breakeven_rf(rf, 1.0, n)
    moved = Paired.failing(1 - rf + part * (top.down - (1 - rf)))
    rest = rm_when_moved(moved, rf, n)
    assert near(breakeven_rf(rf, rest, n).down, moved.down, 1e-8)


@given(rf=inside, rest=inside, extra=st.floats(1e-9, 1.0))
def test_guests_when_moved_is_the_largest_n(rf: float, rest: float, extra: float) -> None:
    moved = Paired.failing((1 - rf) * (1 - extra))
    found = guests_when_moved(moved, rf, rest)
    if found is None:
        assert breakeven_rf(rf, rest, 10_000).down >= moved.down
        return
    assert breakeven_rf(rf, rest, found).down >= moved.down * (1 - 1e-12) or found == 1
    assert breakeven_rf(rf, rest, found + 1).down < moved.down


def test_inversions_of_inequality_3_at_the_limits() -> None:
    assert guests_when_moved(1.0, 0.5, 0.5) is None
    assert rf_when_moved(1.0, 0.5, 6) == 1.0
    assert rf_when_moved(0.0, 0.5, 6) == 0.0
    assert rf_when_moved(0.3, 0.5, 1) == 0.3
    assert rf_when_moved(0.875, 1.0, 3) == pytest.approx(0.5)
    assert rm_when_moved(0.99, 0.5, 3) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rm_needed(0.99, 0.98, 2, 3), "requires R < R_V"),
        (lambda: rm_needed(0.9, 0.98, 0, 3), "m is 0"),
        (lambda: rm_needed(0.9, 0.98, 1, 0), "n is 0"),
        (lambda: guests_for_majority(0.9, 0.98, 0.5), "R_M = 0.5 is not above .5"),
        (lambda: guests_for_majority(0.99, 1.0, 0.501), "more than 10,000 VMs"),
        (lambda: breakeven_with(0, 0.5), "R_M = 0"),
        (lambda: rf_when_moved(0.9, 0, 3), "R_M' = 0.*Inequality 3"),
        (lambda: rm_when_moved(0.9, 0.9, 1), "n = 1"),
        (lambda: rm_when_moved(0.5, 0.9, 3), "F must be more reliable than f"),
        (lambda: guests_when_moved(0.5, 0.9, 0.5), "loses even at n = 1"),
        (lambda: rv_needed(1.5, 0.5), "R is 1.5"),
    ],
)  # fmt: skip
def test_unanswerable_questions_raise(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message):
        call()


def test_rv_needed_exceeds_one_when_no_rv_is_enough() -> None:
    assert rv_needed(0.5, 0.0) == math.inf
    assert rv_needed(0.9, series(0.9, 0.9)) > 1.0


def test_rm_needed_agrees_with_guests_needed() -> None:
    rm = rm_needed(0.98, 0.999, 1, 5)
    assert guests_needed(0.98, 0.999, float(rm) + 1e-9).guests == 5
    assert guests_needed(0.98, 0.999, float(rm) - 1e-9).guests == 6
