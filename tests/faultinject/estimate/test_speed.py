"""A million missions are estimated in seconds: everything takes counts."""

from __future__ import annotations

import time

import pytest

from faultinject.estimate.counts import Counts
from faultinject.estimate.equivalence import (
    bound_equivalence,
    compare_at_points,
    failure_equivalence,
)
from faultinject.estimate.precision import expected, lowest_q
from faultinject.estimate.sampling import compare_designs
from faultinject.estimate.strata import band

pytest.importorskip("scipy", reason="scipy is not installed")


def test_a_million_missions_take_seconds() -> None:
    began = time.process_time()
    outcomes = ("correct", "correct", "timeout", "silent", None)
    counted = Counts.of(outcomes[i % 5] for i in range(1_000_000))
    assert counted.trials == 800_000
    strata = expected((500_000, 300_000, 150_000, 50_000), (5_000, 5_000))
    band(strata).curve([0.5 + i / 1000 for i in range(500)])
    failure_equivalence(strata)
    bound_equivalence(strata)
    compare_at_points(strata, [(0.5 + i / 100, 0.98, 1.0) for i in range(50)])
    compare_designs(strata, 0.05)
    lowest_q((500_000, 300_000, 150_000, 50_000))
    assert time.process_time() - began < 10.0
