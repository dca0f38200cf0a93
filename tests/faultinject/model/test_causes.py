"""Shared causes: the point that corrects the paper, and each model at its simple ends."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.model.causes import (
    beta_factor,
    binomial_failure_rate,
    one_shot,
    shared_cause_helps,
    shared_draw,
)
from faultinject.model.paired import ModelError
from faultinject.model.reliability import m_of_n

chances = st.floats(0.0, 1.0)


def test_below_a_half_a_common_cause_helps_two_of_three() -> None:
    """The paper calls .216 an upper bound; with a fifth of the draws shared it is .233."""
    assert shared_draw(0.3, 0.2, 2, 3) == pytest.approx(0.2328)
    assert shared_cause_helps(0.3, 2, 3)
    assert not shared_cause_helps(0.7, 2, 3)
    assert not shared_cause_helps(0.3, 1, 3)


@given(rm=chances, share=chances)
def test_sharing_everything_is_one_guest_and_nothing_is_independence(
    rm: float, share: float
) -> None:
    assert float(shared_draw(rm, 1.0, 2, 3)) == pytest.approx(rm)
    assert float(shared_draw(rm, 0.0, 2, 3)) == pytest.approx(float(m_of_n(1, 1, rm, 2, 3)))
    between = float(shared_draw(rm, share, 2, 3))
    ends = sorted([rm, float(m_of_n(1, 1, rm, 2, 3))])
    assert ends[0] - 1e-12 <= between <= ends[1] + 1e-12


@given(rm=chances, beta=chances)
def test_the_beta_factor_keeps_a_guests_own_reliability(rm: float, beta: float) -> None:
    assert float(beta_factor(rm, beta, 1, 1)) == pytest.approx(rm, abs=1e-12)
    assert float(beta_factor(rm, 1.0, 2, 3)) == pytest.approx(rm)
    assert float(beta_factor(rm, 0.0, 2, 3)) == pytest.approx(float(m_of_n(1, 1, rm, 2, 3)))


def test_the_mef_reading_adds_the_two_parts_as_open_psa_does() -> None:
    own, common = 0.8 * 0.1, 0.2 * 0.1
    expected = (1 - common) * float(m_of_n(1, 1, 1 - own, 2, 3))
    assert float(beta_factor(0.9, 0.2, 2, 3, "mef")) == pytest.approx(expected)


@given(rm=chances, s=chances)
def test_a_shot_that_fails_all_is_a_common_mode(rm: float, s: float) -> None:
    expected = (1 - s) * float(m_of_n(1, 1, rm, 2, 3))
    assert float(one_shot(rm, s, [0, 0, 0, 1], 2)) == pytest.approx(expected)
    harmless = one_shot(rm, s, [1, 0, 0, 0], 2)
    assert float(harmless) == pytest.approx(float(m_of_n(1, 1, rm, 2, 3)))


@given(rm=chances, shots=st.floats(0, 20), lethal=st.floats(0, 5))
def test_shots_that_fail_no_one_or_everyone(rm: float, shots: float, lethal: float) -> None:
    plain = float(m_of_n(1, 1, rm, 2, 3))
    none = float(binomial_failure_rate(rm, shots, 0.0, 2, 3, lethal))
    assert none == pytest.approx(math.exp(-lethal) * plain, abs=1e-12)
    every = float(binomial_failure_rate(rm, shots, 1.0, 2, 3))
    assert every == pytest.approx(math.exp(-shots) * plain, abs=1e-12)


def test_atwoods_model_against_playing_it() -> None:
    rng = random.Random(7)
    rm, mean, each, lethal, good, games = 0.9, 0.7, 0.4, 0.1, 0, 40_000
    for _ in range(games):
        guests = [rng.random() < rm for _ in range(3)]
        elapsed = rng.expovariate(mean)
        while elapsed < 1.0:
            guests = [up and rng.random() >= each for up in guests]
            elapsed += rng.expovariate(mean)
        good += sum(guests) >= 2 and rng.expovariate(lethal) > 1.0
    found = float(binomial_failure_rate(rm, mean, each, 2, 3, lethal))
    assert good / games == pytest.approx(found, abs=4 * math.sqrt(found * (1 - found) / games))


@given(rm=chances, shots=st.floats(0, 500), each=chances)
def test_it_stays_a_probability_at_many_shots(rm: float, shots: float, each: float) -> None:
    found = binomial_failure_rate(rm, shots, each, 2, 3)
    assert 0.0 <= found <= 1.0 + 1e-12
    assert float(found) + found.down == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: shared_draw(0.5, 1.5, 2, 3), "common draws is 1.5"),
        (lambda: beta_factor(0.5, -1, 2, 3), "beta is -1"),
        (lambda: one_shot(0.9, 0.1, [0.5, 0.2, 0.1, 0.1], 2), "add up to 0.9"),
        (lambda: one_shot(0.9, 2, [1, 0, 0, 0], 2), "frequency is 2"),
        (lambda: binomial_failure_rate(0.9, 501, 0.1, 2, 3), "from 0 to 500"),
    ],
)  # fmt: skip
def test_bad_shares_are_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=words):
        call()
