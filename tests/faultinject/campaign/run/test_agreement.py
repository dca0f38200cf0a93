"""The comparison of two runs of one plan."""

from __future__ import annotations

import pytest

from faultinject.campaign.run.agreement import compare
from faultinject.results.outcome import Outcome


def test_compare_counts_outcomes_and_verdicts() -> None:
    agreement = compare(
        [
            (0, "f0", Outcome.CORRECT, Outcome.CORRECT),
            (1, "f2", Outcome.DETECTED, Outcome.SILENT),  # another outcome, the same verdict
            (2, "f2", Outcome.DETECTED, Outcome.DETECTED),
            (3, "f1", Outcome.CORRECT, Outcome.TIMEOUT),
            (4, "f1", None, Outcome.CORRECT),  # no trial in the first
        ]
    )
    assert (agreement.both, agreement.trials) == (5, 4)
    assert (agreement.other_outcome, agreement.other_success) == (2, 1)
    assert agreement.apart == (1, 3)
    assert agreement.share == 0.25 and agreement.low < 0.25 < agreement.high
    assert agreement.p_value == 1.0
    rates = agreement.difference
    assert rates is not None and rates.value == 0.25, "one of four failed in the second run only"
    assert ("detected", "silent-corruption", 1) in agreement.pairs and (
        "excluded",
        "correct",
        1,
    ) in agreement.pairs
    f1, f2 = (each for each in agreement.strata if each.stratum != "f0")
    assert (f1.missions, f1.other_success) == (1, 1)
    assert (f2.missions, f2.other_outcome, f2.other_success) == (2, 1, 0)


def test_compare_has_a_small_p_value_when_one_run_fails_more() -> None:
    missions = [(index, "f1", Outcome.CORRECT, Outcome.TIMEOUT) for index in range(10)]
    assert compare(missions).p_value == pytest.approx(2 * 0.5**10)


def test_compare_accepts_runs_without_a_common_mission() -> None:
    agreement = compare([])
    assert (agreement.both, agreement.share, agreement.low, agreement.high) == (0, None, 0.0, 1.0)
    assert agreement.difference is None
