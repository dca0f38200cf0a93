"""The durability ladder: its arithmetic, and a very small run of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.bench import etcd
from faultinject.bench.ladder import GOALS, LadderPlan, LadderResult, ratios, run_ladder, summary
from faultinject.load import LatencySummary, Timed


def measured(target: str, rate: float, p50: float) -> LadderResult:
    timed = Timed(rate, LatencySummary(p50, 2 * p50, 3 * p50, 4 * p50))
    return LadderResult(
        target=target, durability="fsync", one=timed, many=timed, one_busy={"driver": rate},
        many_busy={"driver": rate},
    )  # fmt: skip


def test_ratios_are_made_within_a_round() -> None:
    rounds = [
        [measured("fsync", 300, 1.0), measured("etcd", 100, 1.0)],
        [measured("fsync", 20, 2.0), measured("etcd", 10, 1.0)],
        [measured("fsync", 500, 3.0), measured("etcd", 500, 1.0)],
    ]
    found = ratios(rounds)
    assert found["fsync/etcd rate, 64"] == 2
    assert found["fsync/etcd p50, 1"] == 2
    assert "os/none rate, 64" not in found
    assert GOALS["fsync/etcd rate, 64"].reached(2)
    assert not GOALS["fsync/etcd p50, 1"].reached(2)
    middle = summary(rounds)
    assert [each.many.rate for each in middle] == [300, 100]
    assert middle[0].one.latency.p99 == 4
    assert middle[1].many_busy == {"driver": 100}


@pytest.mark.parametrize("installed", [False, True])
def test_a_small_run(installed: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr(etcd, "program", lambda: None)
    elif etcd.program() is None:
        pytest.skip("etcd is not installed (apt-get install etcd-server)")
    said: list[str] = []
    plan = LadderPlan(rounds=1, requests=200, keys=20, seed=1)
    report = run_ladder(plan, said.append, scratch)
    (done,) = report.rounds
    ours = ["none", "os", "fsync", "fsync, in a session"]
    theirs = ["etcd", "etcd, 64 connections"] if installed else []
    assert [each.target for each in done] == ours + theirs
    assert [each.durability for each in done[:4]] == ["none", "os", "fsync", "fsync"]
    for each in done:
        assert each.many.rate > 0 and each.one.latency.p50 > 0
    assert done[0].many_busy.keys() == {"voter", "replicas", "driver"}
    assert ("fsync/etcd rate, 64" in report.ratios) is installed
    assert installed or any("etcd is not installed" in text for text in said)
    assert report.disk.sync_p50 > 0
    assert list(scratch.iterdir()) == []
