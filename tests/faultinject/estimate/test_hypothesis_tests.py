"""Whether guests fall independently: against scipy's own fit, and by simulation."""

from __future__ import annotations

import random

import pytest

from faultinject.estimate import EstimateError, independence_of_failures


def drawn(
    rng: random.Random, missions: int, q: float, shared: float = 0.0, classes: int = 3
) -> list[int]:
    """Missions by fallen guests of three, the last class open; with a cause of all now and then."""
    counts = [0] * classes
    for _ in range(missions):
        fell = 3 if rng.random() < shared else sum(rng.random() < q for _ in range(3))
        counts[min(fell, classes - 1)] += 1
    return counts


def test_exact_shares_of_independent_guests_fit_exactly() -> None:
    found = independence_of_failures([512, 384, 104], 3)  # q = .2 of 1,000
    assert found is not None
    assert found.q == pytest.approx(0.2, abs=1e-4)
    assert found.expected == pytest.approx((512, 384, 104), abs=0.1)
    assert found.p is not None and found.p > 0.99


def test_independent_guests_are_called_dependent_as_rarely_as_promised() -> None:
    rng = random.Random(7)
    found = [independence_of_failures(drawn(rng, 300, 0.3), 3) for _ in range(400)]
    ps = [each.p for each in found if each and each.p is not None]
    assert len(ps) == 400
    assert 8 <= sum(p < 0.05 for p in ps) <= 34  # 20 expected


def test_a_shared_cause_is_seen() -> None:
    rng = random.Random(7)
    for _ in range(20):
        found = independence_of_failures(drawn(rng, 300, 0.1, shared=0.15), 3)
        assert found is not None and found.p is not None and found.p < 1e-3


def test_where_hardly_one_is_expected_classes_are_put_together() -> None:
    """flip-all x 500 of commoncause: of all three falling at once .4 would be expected."""
    found = independence_of_failures([110, 28, 3, 9], 3)
    assert found is not None and found.p is not None
    assert found.expected[3] < 1.0
    assert 1e-4 < found.p < 2e-3, "as three classes: 110, 28, 12"
    rare = independence_of_failures(
        [278, 22, 0], 3
    )  # softerrors at 100 flips: half a mission with two expected
    assert rare is not None and rare.p is None


def test_with_rare_classes_too_independent_guests_are_called_dependent_as_rarely() -> None:
    rng = random.Random(8)
    found = [independence_of_failures(drawn(rng, 150, 0.136, classes=4), 3) for _ in range(400)]
    ps = [each.p for each in found if each and each.p is not None]
    assert len(ps) > 350
    assert sum(p < 0.05 for p in ps) <= 34


@pytest.mark.parametrize("counts", [[10, 0, 0], [0, 0, 10], [0, 0, 0], [5, 5]])
def test_where_there_is_nothing_to_compare_nothing_is_said(counts: list[int]) -> None:
    assert independence_of_failures(counts, 3) is None


@pytest.mark.parametrize("counts", [[1], [1, 1, 1, 1, 1], [1, -1, 3]])
def test_counts_that_cannot_be_are_refused(counts: list[int]) -> None:
    with pytest.raises(EstimateError):
        independence_of_failures(counts, 3)
