"""Shared causes from shots, and pairs on common draws."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.estimate.common_cause import (
    CommonCauseTrials,
    Dependence,
    at_frequency,
    estimate_common_cause,
)
from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.pairs import Pair, mcnemar, pair_difference
from faultinject.model.causes import one_shot, shared_draw
from faultinject.model.reliability import two_of_three

pytest.importorskip("scipy", reason="scipy is not installed")

POISON = CommonCauseTrials(failed=(10, 0, 0, 290), system=Counts(trials=300, failures=290))
"""A request that nearly always fails all replicas of one build."""

shots = (
    st.lists(st.integers(0, 200), min_size=2, max_size=6)
    .filter(any)
    .map(lambda failed: CommonCauseTrials(failed=tuple(failed)))
)


def test_guests_that_fall_together_are_told_from_independent_ones() -> None:
    mixed = estimate_common_cause(CommonCauseTrials(failed=(150, 5, 5, 140)))
    assert mixed.dependence is Dependence.UNDECIDED  # at .5 both are fatal half of the time
    rare = estimate_common_cause(CommonCauseTrials(failed=(270, 0, 0, 30)))
    assert rare.dependence is Dependence.TOGETHER
    assert rare.each.value == pytest.approx(0.1)
    assert rare.fatal_if_independent.value == pytest.approx(two_of_three(1, 1, 0.9).down)
    often = estimate_common_cause(CommonCauseTrials(failed=(90, 0, 0, 210)))
    assert often.dependence is Dependence.APART  # together they also survive together


def test_the_arithmetic_is_the_models() -> None:
    found = at_frequency(POISON, 0.1, 0.95, rv=0.98, rh=0.99)
    c = [each / 300 for each in POISON.failed]
    assert found.rsys.value == pytest.approx(0.99 * 0.98 * float(one_shot(0.95, 0.1, c, 2)))
    assert found.rm.value == pytest.approx(0.95 * (1 - 0.1 * 290 / 300))
    q = 1 - found.rm.value
    assert found.beta.value == pytest.approx(0.1 * 290 / 300 / q)
    assert not found.helps and "costs" in found.words


def test_below_a_half_the_shared_cause_helps() -> None:
    """The point of the method note: R_M = .3, a common cause lifts 2-of-3 above .216."""
    found = at_frequency(CommonCauseTrials(failed=(0, 0, 0, 300)), 0.7, 1.0)
    assert found.rm.value == pytest.approx(0.3)
    assert found.helps and found.rsys.value > found.rsys_independent.value
    assert float(shared_draw(0.3, 0.2, 2, 3)) > 0.216


@given(found=shots, frequency=st.floats(0, 1), rm=st.floats(0, 1))
def test_intervals_hold_their_values_and_stay_probabilities(
    found: CommonCauseTrials, frequency: float, rm: float
) -> None:
    m = min(2, found.n)
    judged, at = estimate_common_cause(found, m=m), at_frequency(found, frequency, rm, m=m)
    for interval in (
        judged.fatal, judged.each, judged.fatal_if_independent,
        at.rsys, at.rm, at.beta, at.rsys_independent,
    ):  # fmt: skip
        assert -1e-9 <= interval.low <= interval.value + 1e-9
        assert interval.value <= interval.high + 1e-9 <= 1 + 1e-8


def test_the_extreme_over_box_and_simplex_is_found() -> None:
    """Against a search over the corners that a linear program could take."""
    found = estimate_common_cause(CommonCauseTrials(failed=(40, 30, 20, 10)))
    rng = random.Random(1)
    for _ in range(3000):
        draw = [rng.uniform(each.low, each.high) for each in found.c]
        total = math.fsum(draw)
        draw = [each / total for each in draw]
        inside = zip(draw, found.c, strict=True)
        if all(part.contains(each) for each, part in inside):
            assert found.fatal.low - 1e-12 <= draw[2] + draw[3] <= found.fatal.high + 1e-12


def test_what_the_node_and_plain_did_under_the_shot_is_kept_apart() -> None:
    found = estimate_common_cause(
        CommonCauseTrials(failed=(10, 0, 0, 290), system=Counts(trials=300, failures=290),
              nv=Counts(trials=100, failures=97))
    )  # fmt: skip
    assert found.system is not None and found.nv is not None
    assert found.system.value == pytest.approx(290 / 300) and found.nv.value == 0.97
    assert estimate_common_cause(CommonCauseTrials(failed=(1, 2)), m=1).system is None


def test_no_shots_and_bad_votes_are_refused() -> None:
    with pytest.raises(EstimateError, match="no shots"):
        CommonCauseTrials(failed=(0, 0))
    with pytest.raises(EstimateError, match="0 or more"):
        CommonCauseTrials(failed=(1, -1))
    with pytest.raises(EstimateError, match="1 <= m <= n"):
        estimate_common_cause(POISON, m=4)
    with pytest.raises(EstimateError, match="frequency is 2"):
        at_frequency(POISON, 2, 0.5)


def test_pairs_recombine_by_stratum() -> None:
    pairs = [
        Pair(both=0, first=0, second=0, neither=500),
        Pair(both=0, first=10, second=60, neither=430),
        Pair(both=480, first=10, second=10, neither=0),
        Pair(both=500, first=0, second=0, neither=0),
    ]
    found = pair_difference(pairs, 0.2)
    assert found.value == pytest.approx(3 * 0.2 * 0.8**2 * -0.1)
    assert found.high < 0  # the first fails less
    assert pair_difference([pairs[0]] * 4, 0.2).contains(0)


def test_mcnemars_exact_p_value() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((3, 15), (0, 0), (7, 7), (1, 40)):
        found = mcnemar(Pair(both=5, first=first, second=second, neither=100))
        apart = first + second
        expected = stats.binomtest(first, apart, 0.5).pvalue if apart else 1.0
        assert found.p_value == pytest.approx(expected)
    with pytest.raises(EstimateError, match="negative"):
        Pair(both=-1, first=0, second=0, neither=0)
