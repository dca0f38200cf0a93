"""The replay benchmark: a small run on real guests."""

from __future__ import annotations

import pytest

from faultinject.bench.replay import ReplayPlan, run_replay
from faultinject.bench.tables import show

PLAN = ReplayPlan(rounds=2, writes=500, in_flight=16, keys=50, accel="auto")


@pytest.mark.vm
def test_replay_repeats_every_reply_of_what_it_is_compared_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = run_replay(PLAN, print)
    assert [(each.compared, each.differing) for each in report.rounds] == [(500, 0), (500, 0)]
    assert all(each.live > 0 and each.replayed > 0 for each in report.rounds)
    show(report)
    assert "to reach: at least 1" in capsys.readouterr().out
