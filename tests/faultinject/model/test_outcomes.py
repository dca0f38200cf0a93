"""Outcomes with lying guests, compared with an enumeration, and the choice of designs."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.model.causes import beta_factor
from faultinject.model.designs import Design, best_design, designs, evaluate, rank
from faultinject.model.outcomes import FailureMode, Outcomes, guest_outcomes, node_outcomes
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import m_of_n, one_of_n

chances = st.floats(0.0, 1.0)
POLICIES = [(1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3), (3, 4), (3, 5), (4, 5)]
policies = st.sampled_from(POLICIES)


def by_hand(rm: float, m: int, n: int, lying: float, alike: float) -> tuple[float, float, float]:
    """Enumerate guests: correct, lying or stopped; lies are equal or all different."""
    weight = {"right": rm, "lies": (1 - rm) * lying, "mute": (1 - rm) * (1 - lying)}
    found = dict.fromkeys(("correct", "detected", "silent"), 0.0)
    for states in product(weight, repeat=n):
        chance = math.prod(weight[each] for each in states)
        right, liars = states.count("right"), states.count("lies")
        for agree, part in ((True, alike), (False, 1 - alike)):
            if m == 1:
                what = "silent" if liars else "correct" if right else "detected"
            elif right >= m:
                what = "correct"
            else:
                what = "silent" if liars >= m and agree else "detected"
            found[what] += chance * part
    return found["correct"], found["detected"], found["silent"]


@given(rm=chances, policy=policies, lying=chances, alike=chances)
def test_outcomes_equal_the_enumeration(
    rm: float, policy: tuple[int, int], lying: float, alike: float
) -> None:
    found = guest_outcomes(rm, *policy, FailureMode(lying=lying, alike=alike))
    assert (float(found.correct), found.detected, found.silent) == pytest.approx(
        by_hand(rm, *policy, lying, alike), abs=1e-12
    )


@given(rm=chances, rv=chances, policy=policies, lying=chances, beta=chances)
def test_outcomes_add_up_to_one(
    rm: float, rv: float, policy: tuple[int, int], lying: float, beta: float
) -> None:
    found = node_outcomes(rv, guest_outcomes(rm, *policy, FailureMode(lying=lying, beta=beta)))
    assert math.fsum(
        (float(found.correct), found.detected, found.silent, found.lost)
    ) == pytest.approx(1.0, abs=1e-12)
    assert found.correct.down == pytest.approx(1 - float(found.correct), abs=1e-12)
    assert found.safe == pytest.approx(1 - found.silent, abs=1e-12)


@given(rm=chances, policy=policies, beta=chances)
def test_correct_is_the_papers_reliability_when_guests_stop(
    rm: float, policy: tuple[int, int], beta: float
) -> None:
    found = guest_outcomes(rm, *policy)
    assert found.silent == 0.0
    assert float(found.correct) == pytest.approx(float(m_of_n(1, 1, rm, *policy)), rel=1e-12)
    shared = guest_outcomes(rm, *policy, FailureMode(beta=beta))
    assert float(shared.correct) == pytest.approx(float(beta_factor(rm, beta, *policy)), abs=1e-12)


def test_vote_masks_lies_and_one_of_n_releases_them() -> None:
    lies = FailureMode(lying=1.0)
    assert guest_outcomes(0.9, 2, 3, lies).correct == pytest.approx(0.972)
    assert guest_outcomes(0.9, 1, 3, lies).correct == pytest.approx(0.729)
    assert guest_outcomes(0.9, 1, 3, lies).silent == pytest.approx(0.271)
    assert guest_outcomes(0.9, 1, 3, lies).detected == 0.0


def test_2of2_is_silent_only_after_equal_lies() -> None:
    found = guest_outcomes(0.9, 2, 2, FailureMode(lying=1.0, alike=0.01))
    assert found.correct == pytest.approx(0.81)
    assert found.silent == pytest.approx(1e-4)
    assert found.detected == pytest.approx(0.1899)


def test_small_probabilities_are_accurate() -> None:
    rare = Paired.failing(1e-15)
    assert guest_outcomes(rare, 2, 2, FailureMode(lying=1.0)).silent == pytest.approx(
        1e-30, rel=1e-12
    )
    assert guest_outcomes(rare, 1, 9, FailureMode(lying=0.5)).silent == pytest.approx(4.5e-15)
    weak = guest_outcomes(1e-15, 1, 9, FailureMode(lying=0.5))
    assert float(weak.correct) == pytest.approx(9e-15 * 0.5**8, rel=1e-9)


def test_lying_common_cause_is_silent() -> None:
    found = guest_outcomes(0.9, 2, 3, FailureMode(lying=1.0, beta=1.0))
    assert (float(found.correct), found.silent) == pytest.approx((0.9, 0.1))
    found = guest_outcomes(0.0, 2, 3, FailureMode(lying=1.0, beta=1.0))
    assert (float(found.correct), found.silent) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guest_outcomes(0.9, 2, 4), "2-of-4: two different replies could both win"),
        (lambda: guest_outcomes(0.9, 2, 1001), "1,000"),
        (lambda: guest_outcomes(0.9, 4, 3), "m is 4"),
        (lambda: guest_outcomes(1.9, 2, 3), "R_M is 1.9"),
        (lambda: FailureMode(lying=2), "that lie is 2"),
        (lambda: FailureMode(alike=-1), "liars agree is -1"),
        (lambda: FailureMode(beta=2), "beta is 2"),
    ],
)  # fmt: skip
def test_invalid_outcomes_raise(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message):
        call()


# ------------------------------------------------------------- which design is best


def name(rm: float, rv: float, n: int, **failing: float) -> str:
    return best_design(rm, rv, n, failing=FailureMode(**failing)).take.design.name


def test_designs_are_ordered_by_guests() -> None:
    found = [each.name for each in designs(5)]
    assert found[:6] == ["NV", "1-of-2", "2-of-2", "1-of-3", "2-of-3", "3-of-3"]
    assert "2-of-4" not in found and "3-of-5" in found


def test_best_design_of_the_papers_example_has_four_vms() -> None:
    assert name(0.1, 0.3, 3) == "NV"
    assert name(0.1, 0.3, 4) == "1-of-4"


def test_best_design_is_a_majority_when_guests_lie() -> None:
    assert name(0.4, 1.0, 9, lying=1.0) == "NV"
    assert name(0.75, 0.88, 3, lying=1.0) == "NV"
    assert name(0.75, 0.90, 3, lying=1.0) == "2-of-3"


def test_best_design_uses_more_guests_only_for_a_tenth_of_the_gain() -> None:
    chosen = best_design(0.99, 0.999, 9, failing=FailureMode(lying=1.0))
    assert chosen.take.design.name == "2-of-3"
    assert chosen.best.design.n > 3
    assert chosen.take.gain >= 0.9 * chosen.best.gain


@given(rm=chances, rv=chances, n=st.integers(2, 6), lying=chances)
def test_best_design_is_never_worse_than_plain(rm: float, rv: float, n: int, lying: float) -> None:
    chosen = best_design(rm, rv, n, failing=FailureMode(lying=lying))
    assert chosen.best.gain >= chosen.take.gain >= 0.9 * chosen.best.gain - 1e-15


def test_rank_orders_all_designs() -> None:
    found = rank(0.9, 0.999, 3)
    assert [each.design.name for each in found] == [
        "1-of-3", "1-of-2", "2-of-3", "NV", "2-of-2", "3-of-3",
    ]  # fmt: skip
    assert found[0].gain == pytest.approx(float(one_of_n(1, 0.999, 0.9, 3)) - 0.9)
    plain = evaluate(Design(n=1, m=1, plain=True), 0.9, 0.5)
    assert plain.outcomes == Outcomes(
        correct=Paired(0.9), detected=plain.outcomes.detected, silent=0.0, lost=0.0
    )
