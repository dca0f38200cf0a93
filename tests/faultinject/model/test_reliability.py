"""Node reliability: the paper's points, sums against each other, and what must hold everywhere."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import (
    at_least,
    m_of_n,
    moved_c1,
    moved_c2,
    nv,
    one_of_n,
    series,
    two_of_three,
)

chances = st.floats(0.0, 1.0)


def test_reliabilities_match_the_papers_examples() -> None:
    """Section 4: at R_M = .1, R_V = .3 fewer than 4 VMs only lower the node's reliability."""
    assert nv(1, 0.1) == pytest.approx(0.1)
    assert one_of_n(1, 0.3, 0.1, 3) == pytest.approx(0.0813)
    assert one_of_n(1, 0.3, 0.1, 4) == pytest.approx(0.10317)
    assert two_of_three(1, 1, 0.3) == pytest.approx(0.216)
    assert two_of_three(0.99, 0.98, 0.9) == pytest.approx(0.99 * 0.98 * 0.972)


def test_series_without_parts_is_one() -> None:
    assert (float(series()), series().down) == (1.0, 0.0)


@given(r=chances, n=st.integers(1, 9))
def test_at_least_equals_the_binomial_sum_for_equal_parts(r: float, n: int) -> None:
    for m in range(1, n + 1):
        ours, binomial = at_least(m, [r] * n), m_of_n(1, 1, r, m, n)
        assert float(ours) == pytest.approx(float(binomial), rel=1e-12, abs=1e-300)
        assert ours.down == pytest.approx(binomial.down, rel=1e-12, abs=1e-15)


@given(parts=st.lists(chances, min_size=1, max_size=5))
def test_at_least_equals_the_enumeration_for_unequal_parts(parts: list[float]) -> None:
    for m in range(1, len(parts) + 1):
        total = math.fsum(
            math.prod(r if up else 1 - r for r, up in zip(parts, states, strict=True))
            for states in product([True, False], repeat=len(parts))
            if sum(states) >= m
        )
        assert float(at_least(m, parts)) == pytest.approx(total, rel=1e-9, abs=1e-12)


@given(rh=chances, rv=chances, rm=chances, n=st.integers(1, 12))
def test_both_sides_add_up_to_one(rh: float, rv: float, rm: float, n: int) -> None:
    for m in range(1, n + 1):
        found = m_of_n(rh, rv, rm, m, n)
        assert 0.0 <= found <= 1.0
        assert -1e-15 <= found.down <= 1.0 + 1e-15
        assert float(found) + found.down == pytest.approx(1.0, abs=1e-12)


@given(rm=st.floats(0.01, 0.99), n=st.integers(2, 12))
def test_reliability_does_not_rise_with_m(rm: float, n: int) -> None:
    found = [float(m_of_n(1, 1, rm, m, n)) for m in range(1, n + 1)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(float(one_of_n(1, 1, rm, n)))


@given(r=chances, rest=chances)
def test_c1_equals_c2_for_one_vm(r: float, rest: float) -> None:
    """Section 4: substituting n = 1 in Inequality (3)."""
    one, two = moved_c1(0.9, 0.9, r, rest, 1), moved_c2(0.9, 0.9, r, rest, 1)
    assert float(one) == pytest.approx(float(two), abs=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nv(1.2, 0.5), "R_H is 1.2"),
        (lambda: nv(1, float("nan")), "R_M is nan"),
        (lambda: one_of_n(1, -0.1, 0.5, 3), "R_V is -0.1"),
        (lambda: one_of_n(1, 1, 0.5, 0), "number of VMs n is 0"),
        (lambda: m_of_n(1, 1, 0.5, 4, 3), "must agree m is 4"),
        (lambda: one_of_n(1, 1, 0.5, 10_001), "10,000"),
        (lambda: at_least(1, []), "number of VMs n is 0"),
        (lambda: at_least(2, [0.5, 2.0]), "R_{M_2} is 2"),
        (lambda: Paired.parse("often"), "no probability"),
        (lambda: Paired.parse("1.5"), "from 0 to 1"),
    ],
)  # fmt: skip
def test_invalid_probabilities_raise_with_their_name(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message.replace("{", r"\{").replace("}", r"\}")):
        call()
