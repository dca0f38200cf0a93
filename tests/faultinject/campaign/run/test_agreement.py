"""Two runs of one plan beside each other."""

from __future__ import annotations

import pytest

from faultinject.campaign.records import Outcome
from faultinject.campaign.run.agreement import compare


def test_outcomes_and_verdicts_are_told_apart() -> None:
    agreed = compare(
        [
            (0, "f0", Outcome.CORRECT, Outcome.CORRECT),
            (1, "f2", Outcome.DETECTED, Outcome.SILENT),  # another outcome, the same verdict
            (2, "f2", Outcome.DETECTED, Outcome.DETECTED),
            (3, "f1", Outcome.CORRECT, Outcome.TIMEOUT),
            (4, "f1", None, Outcome.CORRECT),  # no trial in the first
        ]
    )
    assert (agreed.both, agreed.trials) == (5, 4)
    assert (agreed.other_outcome, agreed.other_verdict) == (2, 1)
    assert agreed.apart == (1, 3)
    assert agreed.share == 0.25 and agreed.low < 0.25 < agreed.high
    assert agreed.p_value == 1.0
    assert ("detected", "silent", 1) in agreed.pairs and ("void", "correct", 1) in agreed.pairs
    f1, f2 = (each for each in agreed.strata if each.stratum != "f0")
    assert (f1.missions, f1.other_verdict) == (1, 1)
    assert (f2.missions, f2.other_outcome, f2.other_verdict) == (2, 1, 0)


def test_a_run_that_only_fails_more_is_no_chance() -> None:
    missions = [(index, "f1", Outcome.CORRECT, Outcome.TIMEOUT) for index in range(10)]
    assert compare(missions).p_value == pytest.approx(2 * 0.5**10)


def test_nothing_in_common() -> None:
    agreed = compare([])
    assert (agreed.both, agreed.share, agreed.low, agreed.high) == (0, None, 0.0, 1.0)
