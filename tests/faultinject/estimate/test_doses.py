"""Soft errors: the model where it is true, where it is not, and the crossing at a half."""

from __future__ import annotations

import random

import pytest

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.doses import DoseCounts, Fit, compare_doses
from faultinject.model.causes import shared_draw
from faultinject.model.reliability import two_of_three

pytest.importorskip("scipy", reason="scipy is not installed")

RMS = (0.97, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3)


def played(trials: int, share: float = 0.0, seed: int = 1) -> list[DoseCounts]:
    """Doses at which guests share one fate with probability ``share``."""
    rng = random.Random(seed)

    def counts(up: float) -> Counts:
        failures = sum(rng.random() >= up for _ in range(trials))
        return Counts(trials=trials, failures=failures)

    return [
        DoseCounts(dose=i, nv=counts(rm), voted=counts(float(shared_draw(rm, share, 2, 3))))
        for i, rm in enumerate(RMS)
    ]


def test_independent_guests_agree_given_enough_missions() -> None:
    found = compare_doses(played(12_000))
    assert found.verdict is Fit.AGREES and found.mean_verdict is Fit.AGREES
    assert found.reaches_f2
    assert all(each.missions == 0 for each in found.doses)
    for each, rm in zip(found.doses, RMS, strict=True):
        assert each.model.value == pytest.approx(float(two_of_three(1, 1, rm)), abs=0.03)


def test_few_missions_decide_nothing_but_the_mean_already_says_something() -> None:
    found = compare_doses(played(600))
    assert found.verdict is Fit.UNDECIDED and found.mean_verdict is Fit.AGREES
    undecided = [each for each in found.doses if each.verdict is Fit.UNDECIDED]
    assert all(each.missions is None or each.missions > 0 for each in undecided)


def test_a_shared_fate_departs_to_either_side_of_a_half() -> None:
    found = compare_doses(played(6_000, share=0.8))
    assert found.verdict is Fit.DEPARTS
    by_dose = {each.dose: each for each in found.doses}
    assert by_dose[2].departure.high < 0  # R_M = .8: worse than the model
    assert by_dose[6].departure.low > 0  # R_M = .3: better than it
    assert "better than the model" in by_dose[6].words


def test_the_crossing_is_at_a_half() -> None:
    crossing = compare_doses(played(12_000)).crossing
    assert crossing is not None
    assert crossing.rm.contains(0.5) and crossing.rm.width < 0.1
    assert compare_doses(played(12_000)[:3]).crossing is None


def test_doses_that_never_come_near_a_half_say_so() -> None:
    found = compare_doses(played(600)[:2])
    assert not found.reaches_f2 and "does not span" in found.words


def test_a_dose_without_missions_is_undecided() -> None:
    none = Counts(trials=0, failures=0)
    found = compare_doses([*played(600), DoseCounts(dose=9, nv=none, voted=none)])
    assert found.doses[-1].verdict is Fit.UNDECIDED
    assert found.doses[-1].missions is None


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(EstimateError, match="margin"):
        compare_doses(played(10), margin=0)
    with pytest.raises(EstimateError, match="no doses"):
        compare_doses([])
    with pytest.raises(EstimateError, match="R_V"):
        compare_doses(played(10), rv=2)
