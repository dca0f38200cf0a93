"""Intervals of one probability: closed forms, statsmodels as reference, exact coverage."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import (
    clopper_pearson,
    jeffreys_draws,
    success,
    worst_case,
)
from faultinject.model.paired import Paired
from faultinject.model.tails import exactly
from tests.errors import raises

pytest.importorskip("scipy", reason="scipy is not installed")

counted = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
few = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
alphas = st.sampled_from([0.2, 0.05, 0.05 / 6, 1e-4])


@given(n=st.integers(1, 100_000), alpha=alphas)
def test_interval_ends_have_closed_forms_without_failure_or_success(n: int, alpha: float) -> None:
    found = clopper_pearson(0, n, alpha)
    assert found.low == 0.0
    assert found.high == pytest.approx(1 - (alpha / 2) ** (1 / n), rel=1e-9)
    all_failed = clopper_pearson(n, n, alpha)
    assert all_failed.low == pytest.approx(1 - found.high)
    assert all_failed.high == 1.0


@given(counts=counted, alpha=alphas)
def test_interval_matches_statsmodels(counts: tuple[int, int], alpha: float) -> None:
    proportion: Any = pytest.importorskip("statsmodels.stats.proportion")
    failures, trials = counts
    low, high = proportion.proportion_confint(failures, trials, alpha, method="beta")
    found = clopper_pearson(failures, trials, alpha)
    assert found.low == pytest.approx(low, rel=1e-7, abs=1e-12)
    assert found.high == pytest.approx(high, rel=1e-7, abs=1e-12)


@given(counts=few, alpha=alphas)
def test_tails_at_the_ends_are_half_of_alpha(counts: tuple[int, int], alpha: float) -> None:
    failures, trials = counts
    found = clopper_pearson(failures, trials, alpha)
    assert found.low <= failures / trials <= found.high
    if failures:
        tail = 1 - math.fsum(exactly(k, trials, Paired(found.low)) for k in range(failures))
        assert tail == pytest.approx(alpha / 2, rel=1e-5)


@pytest.mark.parametrize("n", [7, 40, 200])
@pytest.mark.parametrize("p", [0.001, 0.03, 0.2, 0.5, 0.97])
def test_coverage_is_at_least_nominal(n: int, p: float) -> None:
    """Exact, not simulated: the sum over all counts."""
    covered = math.fsum(
        exactly(k, n, Paired(p)) for k in range(n + 1) if clopper_pearson(k, n, 0.05).contains(p)
    )
    assert covered >= 0.95 - 1e-12


def test_interval_is_zero_to_one_without_trials() -> None:
    found = clopper_pearson(0, 0)
    assert (found.low, found.high) == (0.0, 1.0)
    assert math.isnan(found.value)
    assert math.isnan(Counts(trials=0, failures=0).rate)


@given(counts=counted, excluded=st.integers(0, 50), as_failed=st.integers(0, 50))
def test_worst_case_contains_every_outcome_of_void_missions(
    counts: tuple[int, int], excluded: int, as_failed: int
) -> None:
    failures, trials = counts
    if as_failed > excluded:
        return
    found = worst_case(Counts(trials=trials, failures=failures, excluded=excluded))
    would = clopper_pearson(failures + as_failed, trials + excluded)
    assert found.low <= would.low and would.high <= found.high


def test_success_is_the_complement_of_failure() -> None:
    up, down = success(Counts(trials=50, failures=3)), clopper_pearson(3, 50)
    assert (up.low, up.high) == (1 - down.high, 1 - down.low)


def test_outcomes_are_counted() -> None:
    found = Counts.of(
        ["correct", "silent-corruption", None, "timeout", "voter-lost", "correct", None]
    )
    assert found == Counts(trials=5, failures=3, silent=1, excluded=2)
    assert found + found == Counts(trials=10, failures=6, silent=2, excluded=4)


def test_posterior_draws_repeat_by_their_seed() -> None:
    strata = [Counts(trials=10, failures=2), Counts(trials=0, failures=0)]
    first, again = jeffreys_draws(strata, 100, 3), jeffreys_draws(strata, 100, 3)
    assert (first == again).all() and first.shape == (100, 2)


@pytest.mark.parametrize("bad", [(3, 2), (-1, 5)])
def test_invalid_counts_raise(bad: tuple[int, int]) -> None:
    with pytest.raises(EstimateError, match="failures <= trials"):
        clopper_pearson(*bad)
    with pytest.raises(EstimateError, match="failures <= trials"):
        Counts(trials=bad[1], failures=bad[0])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 95.0, math.nan])
def test_invalid_alpha_raises(alpha: float) -> None:
    with pytest.raises(EstimateError, match="alpha"):
        clopper_pearson(1, 2, alpha)


def test_missing_scipy_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with raises("TV0606", match="pip install scipy"):
        clopper_pearson(1, 54321)
