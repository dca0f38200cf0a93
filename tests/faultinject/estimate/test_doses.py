"""Doses of soft errors: agreement with the model, departure from it, and the crossing."""

from __future__ import annotations

import random

import pytest

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.doses import DoseCounts, Fit, compare_doses, joint_test, mean_departure
from faultinject.model.causes import shared_draw
from faultinject.model.reliability import two_of_three
from tests.errors import raises

pytest.importorskip("scipy", reason="scipy is not installed")

RMS = (0.97, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3)


def sampled(trials: int, share: float = 0.0, seed: int = 1) -> list[DoseCounts]:
    """Return doses at which guests share one fate with probability ``share``."""
    rng = random.Random(seed)

    def counts(up: float) -> Counts:
        failures = sum(rng.random() >= up for _ in range(trials))
        return Counts(trials=trials, failures=failures)

    return [
        DoseCounts(dose=i, nv=counts(rm), voted=counts(float(shared_draw(rm, share, 2, 3))))
        for i, rm in enumerate(RMS)
    ]


def test_independent_guests_agree_with_the_model_given_enough_missions() -> None:
    found = compare_doses(sampled(12_000))
    assert found.verdict is Fit.AGREES
    assert found.spans_crossing
    for each, rm in zip(found.doses, RMS, strict=True):
        assert each.model.value == pytest.approx(float(two_of_three(1, 1, rm)), abs=0.03)


def test_few_missions_are_undecided() -> None:
    found = compare_doses(sampled(600))
    assert found.verdict is Fit.UNDECIDED


def test_shared_fate_departs_in_opposite_directions_around_a_half() -> None:
    found = compare_doses(sampled(6_000, share=0.8))
    assert found.verdict is Fit.DEPARTS
    by_dose = {each.dose: each for each in found.doses}
    assert by_dose[2].departure.high < 0  # R_M = .8: worse than the model
    assert by_dose[6].departure.low > 0  # R_M = .3: better than it


def test_crossing_interval_contains_a_half() -> None:
    crossing = compare_doses(sampled(12_000)).crossing
    assert crossing is not None
    assert crossing.rm.contains(0.5) and crossing.rm.width < 0.1
    assert compare_doses(sampled(12_000)[:3]).crossing is None


def test_low_doses_do_not_span_the_crossing() -> None:
    assert not compare_doses(sampled(600)[:2]).spans_crossing


def test_dose_without_missions_is_undecided() -> None:
    none = Counts(trials=0, failures=0)
    found = compare_doses([*sampled(600), DoseCounts(dose=9, nv=none, voted=none)])
    assert found.doses[-1].verdict is Fit.UNDECIDED


def test_invalid_settings_raise() -> None:
    with pytest.raises(EstimateError, match="margin"):
        compare_doses(sampled(10), margin=0)
    with raises("TV0605", match="no doses"):
        compare_doses([])


KEPT = ((290, 300), (276, 297), (254, 275), (213, 244), (168, 182), (139, 123), (56, 27), (15, 1))
"""Missions of 300 that succeeded in docs/results/softerrors: plain, voted."""


def kept() -> list[DoseCounts]:
    return [
        DoseCounts(dose=i, nv=Counts(trials=300, failures=300 - plain),
                   voted=Counts(trials=300, failures=300 - voted))
        for i, (plain, voted) in enumerate(KEPT)
    ]  # fmt: skip


def test_pooled_evidence_of_the_kept_doses_is_that_of_an_independent_recomputation() -> None:
    test, mean = joint_test(kept()), mean_departure(kept())
    assert test is not None and mean is not None
    assert (round(test.ratio, 1), test.freedom, round(test.p_value, 2)) == (4.6, 8, 0.80)
    assert [round(x, 3) for x in (mean.value, mean.low, mean.high)] == [-0.002, -0.025, 0.021]


def test_joint_test_rejects_the_model_at_the_nominal_rate() -> None:
    tests = [joint_test(sampled(300, seed=seed)) for seed in range(150)]
    rejected = sum(test.p_value < 0.05 for test in tests if test is not None)
    assert 1 <= rejected <= 18  # 7.5 expected


def test_joint_test_sees_a_shared_fate_that_the_mean_departure_does_not() -> None:
    doses = sampled(900, share=0.5)
    test, mean = joint_test(doses), mean_departure(doses)
    assert test is not None and test.p_value < 0.001
    assert mean is not None and abs(mean.value) < 0.05, "the signs cancel"


def test_pooled_evidence_is_none_without_a_dose_on_both_nodes() -> None:
    none = Counts(trials=0, failures=0)
    doses = [DoseCounts(dose=1, nv=none, voted=Counts(trials=9, failures=1))]
    assert joint_test(doses) is None and mean_departure(doses) is None
