"""The transfer benchmark: a small run on real guests."""

from __future__ import annotations

import pytest

from faultinject.bench.transfer import TransferPlan, run_transfer


@pytest.mark.vm
@pytest.mark.long
def test_transfer_measures_all_windows() -> None:
    plan = TransferPlan(
        size=2, rate=4, load=0.3, passages=1, memory=256, durability="fsync", accel="auto"
    )  # fmt: skip
    report = run_transfer(plan, print)
    (passage,) = report.passages
    assert report.state >= 2 << 20
    assert passage.guest == "g3"
    assert passage.seconds > 0
    assert passage.during.p99 > 0 and passage.before.p99 > 0
    assert passage.busy.keys() == {"g1", "g2", "g3", "voter", "driver"}
