"""How far data reach, and what stratifying buys: the figures of the method note."""

from __future__ import annotations

import math

import pytest

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.equivalence import paper_failure
from faultinject.estimate.intervals import clopper_pearson
from faultinject.estimate.precision import clean_missions, expected, lowest_q, reach
from faultinject.estimate.sampling import compare_designs
from faultinject.estimate.strata import Strata, band, weights

pytest.importorskip("scipy", reason="scipy is not installed")


def test_about_ten_over_q_squared_clean_missions_bound_f0() -> None:
    """3,500 at q = .05, one-sided."""
    assert clean_missions(weights(0.05, 3)[0], paper_failure(0.05, 2, 3), 0.1, 0.05) == (
        pytest.approx(3500, rel=0.02)
    )


def test_f1_takes_thirty_over_q_one_sided_and_fifty_over_q_in_the_box() -> None:
    for q in (0.02, 0.05):
        weight, failure = weights(q, 3)[1], paper_failure(q, 2, 3)
        assert clean_missions(weight, failure, 0.1, 0.05) == pytest.approx(30 / q, rel=0.1)
        assert reach((6000, 6000, 1000, 200), q).needed[1] == pytest.approx(50 / q, rel=0.1)


def test_the_reference_plan_reaches_down_to_a_twentieth() -> None:
    plan = (6000, 6000, 1000, 200)
    assert lowest_q(plan) == 0.05
    found = reach(plan, 0.05)
    assert found.shares[0] == pytest.approx(0.1, abs=0.001)
    assert "reach: f_0" in found.words
    short = reach(plan, 0.02)
    assert short.shares[0] > 0.5 and short.needed[0] == pytest.approx(6000 * 6.25, rel=0.1)
    assert "do not reach" in short.words


def test_a_failure_with_nothing_hit_shortens_the_reach() -> None:
    plan = (6000, 6000, 1000, 200)
    assert reach(plan, 0.05, failures=(2, 0, 1000, 200)).shares[0] > 0.15


def test_no_missions_reach_nowhere_that_anyone_would_want() -> None:
    assert lowest_q((0, 0, 0, 0)) > 0.8  # where guests fail so surely that f_0 and f_1 hardly count


def test_the_widths_of_the_method_note() -> None:
    """3,330 missions at q = .05: +-3 % given f_0 = 0, +-15 % skipping k = 0, +-42 % naturally."""
    found = compare_designs(expected((0, 1800, 1300, 230)), 0.05)
    assert found.missions == 3330
    assert found.given_f0 == pytest.approx(0.03, abs=0.005)
    assert found.skipping == pytest.approx(0.15, abs=0.005)
    assert found.natural == pytest.approx(0.42, abs=0.005)
    assert found.missions_natural > 100 * found.missions
    assert found.stratified > 10  # f_0 was not measured at all
    for missions, chance, part in (
        (found.missions_natural, found.failure, 1.0),
        (found.missions_skipping, found.failure / (1 - 0.95**3), 1 - 0.95**3),
    ):
        there = clopper_pearson(round(chance * missions), missions, 0.05)
        assert there.width / 2 * part / found.failure == pytest.approx(found.given_f0, rel=0.02)


def test_the_stratified_width_is_the_bands() -> None:
    strata = expected((6000, 6000, 1000, 200), (500, 500))
    found = compare_designs(strata, 0.1)
    box = band(Strata(guests=strata.guests)).failure(0.1)
    assert found.stratified == pytest.approx(box.width / 2 / box.value)
    assert found.stratified < found.skipping < found.natural


def test_huge_comparisons_are_quick_and_shrink_as_roots_do() -> None:
    small = compare_designs(expected((2_500,) * 4), 0.2).natural
    large = compare_designs(expected((250_000,) * 4), 0.2).natural
    assert large == pytest.approx(small / 10, rel=0.05)


def test_without_failures_there_is_no_relative_width() -> None:
    with pytest.raises(EstimateError, match="relative"):
        compare_designs(expected((100, 100, 100, 100)), 0.0)
    with pytest.raises(EstimateError, match="q must lie"):
        reach((1, 1, 1, 1), 0.0)
    assert math.isfinite(compare_designs(expected((100, 100, 100, 100)), 1.0).natural)
