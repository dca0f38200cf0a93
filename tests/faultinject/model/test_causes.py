"""Common causes: the counterexample to the paper, and each model at its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.model.causes import (
    beta_factor,
    shared_draw,
)
from faultinject.model.paired import ModelError
from faultinject.model.reliability import m_of_n

chances = st.floats(0.0, 1.0)


def test_below_a_half_a_common_cause_helps_two_of_three() -> None:
    """The paper calls .216 an upper bound; with a fifth of the draws shared it is .233."""
    assert shared_draw(0.3, 0.2, 2, 3) == pytest.approx(0.2328)


@given(rm=chances, share=chances)
def test_shared_draw_is_between_one_guest_and_independence(rm: float, share: float) -> None:
    assert float(shared_draw(rm, 1.0, 2, 3)) == pytest.approx(rm)
    assert float(shared_draw(rm, 0.0, 2, 3)) == pytest.approx(float(m_of_n(1, 1, rm, 2, 3)))
    between = float(shared_draw(rm, share, 2, 3))
    ends = sorted([rm, float(m_of_n(1, 1, rm, 2, 3))])
    assert ends[0] - 1e-12 <= between <= ends[1] + 1e-12


@given(rm=chances, beta=chances)
def test_beta_factor_preserves_the_reliability_of_one_guest(rm: float, beta: float) -> None:
    assert float(beta_factor(rm, beta, 1, 1)) == pytest.approx(rm, abs=1e-12)
    assert float(beta_factor(rm, 1.0, 2, 3)) == pytest.approx(rm)
    assert float(beta_factor(rm, 0.0, 2, 3)) == pytest.approx(float(m_of_n(1, 1, rm, 2, 3)))


def test_mef_reading_matches_open_psa() -> None:
    own, common = 0.8 * 0.1, 0.2 * 0.1
    expected = (1 - common) * float(m_of_n(1, 1, 1 - own, 2, 3))
    assert float(beta_factor(0.9, 0.2, 2, 3, "mef")) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shared_draw(0.5, 1.5, 2, 3), "common draws is 1.5"),
        (lambda: beta_factor(0.5, -1, 2, 3), "beta is -1"),
    ],
)  # fmt: skip
def test_invalid_shares_raise(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message):
        call()
