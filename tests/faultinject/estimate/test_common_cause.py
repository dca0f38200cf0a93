"""Common-cause trials: c_j, too few guests left, and R_sys at an assumed frequency."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.estimate.common_cause import at_frequency, estimate_common_cause
from faultinject.estimate.counts import EstimateError
from faultinject.model.reliability import two_of_three
from tests.errors import raises

pytest.importorskip("scipy", reason="scipy is not installed")

POISON = (10, 0, 0, 290)
"""A request that nearly always fails all guests of one build."""

trials = st.lists(st.integers(0, 200), min_size=2, max_size=6).filter(any)


def test_estimate_compares_fatal_trials_with_independent_guests() -> None:
    found = estimate_common_cause((270, 0, 0, 30))
    assert found.each.value == pytest.approx(0.1)
    assert found.fatal.value == pytest.approx(0.1)
    assert found.fatal_if_independent == pytest.approx(two_of_three(1, 1, 0.9).down)


def test_at_frequency_mixes_missions_with_and_without_the_event() -> None:
    found = at_frequency(POISON, 0.1, 0.95)
    alone = float(two_of_three(1, 1, 0.95))
    assert found.rsys.value == pytest.approx(0.9 * alone + 0.1 * alone * 10 / 300)
    assert found.rm.value == pytest.approx(0.95 * (1 - 0.1 * 290 / 300))
    assert found.beta.value == pytest.approx(0.1 * 290 / 300 / (1 - found.rm.value))


@given(found=trials, frequency=st.floats(0, 1), rm=st.floats(0, 1))
def test_intervals_contain_their_values_and_are_probabilities(
    found: list[int], frequency: float, rm: float
) -> None:
    m = min(2, len(found) - 1)
    result, at = estimate_common_cause(found, m=m), at_frequency(found, frequency, rm, m=m)
    for interval in (result.fatal, result.each, at.rsys, at.rm, at.beta):
        assert -1e-9 <= interval.low <= interval.value + 1e-9
        assert interval.value <= interval.high + 1e-9 <= 1 + 1e-8


def test_fatal_interval_contains_every_distribution_of_the_box() -> None:
    found = estimate_common_cause((40, 30, 20, 10))
    rng = random.Random(1)
    for _ in range(3000):
        draw = [rng.uniform(each.low, each.high) for each in found.c]
        total = math.fsum(draw)
        draw = [each / total for each in draw]
        inside = zip(draw, found.c, strict=True)
        if all(part.contains(each) for each, part in inside):
            assert found.fatal.low - 1e-12 <= draw[2] + draw[3] <= found.fatal.high + 1e-12


def test_invalid_trials_votes_and_frequencies_raise() -> None:
    with raises("TV0605", match="no common-cause trials"):
        estimate_common_cause((0, 0))
    with raises("TV0604", match="0 or more"):
        estimate_common_cause((1, -1))
    with raises("TV0604", match="1 <= m <= n"):
        estimate_common_cause(POISON, m=4)
    with pytest.raises(EstimateError, match="events is 2"):
        at_frequency(POISON, 2, 0.5)
