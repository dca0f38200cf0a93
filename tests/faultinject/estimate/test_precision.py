"""Precision of strata, and the gain from stratified sampling: known figures."""

from __future__ import annotations

import math

import pytest

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.equivalence import paper_failure
from faultinject.estimate.intervals import clopper_pearson
from faultinject.estimate.precision import clean_missions, expected, lowest_q, precision_at
from faultinject.estimate.sampling import compare_sampling
from faultinject.estimate.strata import Strata, band, weights

pytest.importorskip("scipy", reason="scipy is not installed")


def test_bounding_f0_takes_about_ten_over_q_squared_missions() -> None:
    """3,500 at q = .05, one-sided."""
    assert clean_missions(weights(0.05, 3)[0], paper_failure(0.05, 2, 3), 0.1, 0.05) == (
        pytest.approx(3500, rel=0.02)
    )


def test_bounding_f1_takes_thirty_over_q_one_sided_and_fifty_in_the_box() -> None:
    for q in (0.02, 0.05):
        weight, failure = weights(q, 3)[1], paper_failure(q, 2, 3)
        assert clean_missions(weight, failure, 0.1, 0.05) == pytest.approx(30 / q, rel=0.1)
        assert precision_at(expected((6000, 6000, 1000, 200)), q).needed[1] == pytest.approx(
            50 / q, rel=0.1
        )


def test_reference_plan_is_precise_down_to_q_of_a_twentieth() -> None:
    plan = expected((6000, 6000, 1000, 200))
    assert lowest_q(plan) == 0.05
    assert precision_at(plan, 0.05).shares[0] == pytest.approx(0.1, abs=0.001)
    short = precision_at(plan, 0.02)
    assert short.shares[0] > 0.5 and short.needed[0] == pytest.approx(6000 * 6.25, rel=0.1)


def test_failure_with_nothing_hit_reduces_precision() -> None:
    plan = expected((6000, 6000, 1000, 200))
    failed = (Counts(trials=6000, failures=2), *plan.guests[1:])
    assert precision_at(Strata(guests=failed), 0.05).shares[0] > 0.15


def test_no_missions_are_precise_only_where_guests_nearly_always_fail() -> None:
    assert lowest_q(expected((0, 0, 0, 0))) > 0.8  # where f_0 and f_1 hardly matter


def test_sampling_comparison_has_known_widths() -> None:
    """3,330 missions at q = .05: +-3 % given f_0 = 0, +-15 % skipping k = 0, +-42 % naturally."""
    found = compare_sampling(expected((0, 1800, 1300, 230)), 0.05)
    assert found.missions == 3330
    assert found.given_f0 == pytest.approx(0.03, abs=0.005)
    assert found.skipping == pytest.approx(0.15, abs=0.005)
    assert found.natural == pytest.approx(0.42, abs=0.005)
    assert found.missions_natural > 100 * found.missions
    assert found.stratified > 10  # f_0 was not measured at all
    missions, failure = found.missions_natural, paper_failure(0.05, 2, 3)
    there = clopper_pearson(round(failure * missions), missions, 0.05)
    assert there.width / 2 / failure == pytest.approx(found.given_f0, rel=0.02)


def test_stratified_width_equals_the_bands() -> None:
    strata = expected((6000, 6000, 1000, 200), (500, 500))
    found = compare_sampling(strata, 0.1)
    box = band(Strata(guests=strata.guests)).failure(0.1)
    assert found.stratified == pytest.approx(box.width / 2 / box.value)
    assert found.stratified < found.skipping < found.natural


def test_natural_width_shrinks_with_the_root_of_missions() -> None:
    small = compare_sampling(expected((2_500,) * 4), 0.2).natural
    large = compare_sampling(expected((250_000,) * 4), 0.2).natural
    assert large == pytest.approx(small / 10, rel=0.05)


def test_relative_width_raises_without_failures() -> None:
    with pytest.raises(EstimateError, match="relative"):
        compare_sampling(expected((100, 100, 100, 100)), 0.0)
    with pytest.raises(EstimateError, match="q must lie"):
        precision_at(expected((1, 1, 1, 1)), 0.0)
    assert math.isfinite(compare_sampling(expected((100, 100, 100, 100)), 1.0).natural)
