"""The independence test: exact shares, false positive rate, power; McNemar's test."""

from __future__ import annotations

import random

import pytest

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.hypothesis_tests import (
    correlated_shares,
    fit_correlation,
    independence_test,
    mcnemar_p,
    paired_difference,
)


def drawn(
    rng: random.Random, missions: int, q: float, shared: float = 0.0, classes: int = 3
) -> list[int]:
    """Sample missions by failed guests of three, the last class open; some with a common cause."""
    counts = [0] * classes
    for _ in range(missions):
        failed = 3 if rng.random() < shared else sum(rng.random() < q for _ in range(3))
        counts[min(failed, classes - 1)] += 1
    return counts


def test_independence_fits_exact_binomial_shares() -> None:
    found = independence_test([512, 384, 104], 3)  # q = .2 of 1,000
    assert found.expected == pytest.approx((512, 384, 104), abs=0.1)
    assert found.p_value is not None and found.p_value > 0.99


def test_independence_is_rejected_at_the_nominal_rate() -> None:
    rng = random.Random(7)
    found = [independence_test(drawn(rng, 300, 0.3), 3) for _ in range(400)]
    ps = [each.p_value for each in found if each.p_value is not None]
    assert len(ps) == 400
    assert 8 <= sum(p < 0.05 for p in ps) <= 34  # 20 expected


def test_independence_is_rejected_under_a_common_cause() -> None:
    rng = random.Random(7)
    for _ in range(20):
        found = independence_test(drawn(rng, 300, 0.1, shared=0.15), 3)
        assert found.p_value is not None and found.p_value < 1e-3


def test_rare_classes_are_pooled() -> None:
    """flip-all x 500 of commoncause: of all three falling at once .4 would be expected."""
    found = independence_test([110, 28, 3, 9], 3)
    assert found.expected[3] < 1.0
    assert found.p_value is not None and 1e-4 < found.p_value < 2e-3, "pooled: 110, 28, 12"
    rare = independence_test([278, 22, 0], 3)  # half a mission with two failed is expected
    assert rare.p_value is None


def test_independence_is_rejected_at_the_nominal_rate_with_rare_classes() -> None:
    rng = random.Random(8)
    found = [independence_test(drawn(rng, 150, 0.136, classes=4), 3) for _ in range(400)]
    ps = [each.p_value for each in found if each.p_value is not None]
    assert len(ps) > 350
    assert sum(p < 0.05 for p in ps) <= 34


@pytest.mark.parametrize("counts", [[10, 0, 0], [0, 0, 10], [0, 0, 0], [5, 5]])
def test_p_value_is_none_when_nothing_can_be_compared(counts: list[int]) -> None:
    found = independence_test(counts, 3)
    assert (found.expected, found.p_value) == ((), None)


@pytest.mark.parametrize("counts", [[1], [1, 1, 1, 1, 1], [1, -1, 3]])
def test_invalid_counts_raise(counts: list[int]) -> None:
    with pytest.raises(EstimateError):
        independence_test(counts, 3)


def test_mcnemar_p_matches_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((3, 15), (0, 0), (7, 7), (1, 40)):
        apart = first + second
        expected = stats.binomtest(first, apart, 0.5).pvalue if apart else 1.0
        assert mcnemar_p(first, second) == pytest.approx(expected)
    with pytest.raises(EstimateError, match="negative"):
        mcnemar_p(-1, 0)


KEPT = ([230, 67, 3], [150, 120, 30], [98, 133, 69], [56, 117, 127], [16, 96, 188], [2, 23, 275])
"""Missions of docs/results/softerrors by failed guests, at the doses that can be tested."""


def test_correlation_of_the_kept_doses_is_that_of_an_independent_recomputation() -> None:
    """There -.02 (-.05 to +.015), with another model of dependence."""
    found = fit_correlation(KEPT, 3)
    assert found is not None and found.p_value > 0.3
    assert found.rho.value == pytest.approx(-0.02, abs=0.005)
    assert found.rho.low == pytest.approx(-0.05, abs=0.005)
    assert found.rho.high == pytest.approx(0.015, abs=0.005)


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.4])
def test_correlation_is_recovered_from_its_expected_counts(rho: float) -> None:
    counts = [
        [round(20_000 * share) for share in correlated_shares(q, 3, 3, rho)] for q in (0.2, 0.5)
    ]
    found = fit_correlation(counts, 3)
    assert found is not None and found.rho.value == pytest.approx(rho, abs=0.003)
    assert found.rho.contains(rho)


def test_correlated_shares_have_the_mean_and_the_correlation() -> None:
    for q, rho in ((0.3, 0.25), (0.8, 0.0), (0.5, -0.1)):
        shares = correlated_shares(q, 3, 4, rho)
        assert sum(shares) == pytest.approx(1.0)
        mean = sum(j * share for j, share in enumerate(shares))
        spread = sum((j - mean) ** 2 * share for j, share in enumerate(shares))
        assert mean == pytest.approx(3 * q)
        assert spread == pytest.approx(3 * q * (1 - q) * (1 + 2 * rho))


def test_correlation_needs_three_classes() -> None:
    assert fit_correlation([], 3) is None
    with pytest.raises(EstimateError, match="3 classes"):
        fit_correlation([[5, 5]], 3)


def test_paired_difference_bounds_what_a_large_p_value_does_not() -> None:
    """The kept softerrors, run twice: p = .75 excludes a drift of more than 8 points, no less."""
    found = paired_difference(18, 21, 200)
    assert mcnemar_p(18, 21) == pytest.approx(0.75, abs=0.01)
    assert found.value == pytest.approx(0.015)
    assert [round(x, 3) for x in (found.low, found.high)] == [-0.05, 0.078]
    assert paired_difference(0, 0, 200).value == 0.0
    with pytest.raises(EstimateError, match="one run only"):
        paired_difference(3, 4, 5)
