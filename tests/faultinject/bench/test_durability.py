"""The durability benchmark: its ratios, and a small run, also with etcd."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.bench import etcd
from faultinject.bench.durability import (
    GOALS,
    DurabilityPlan,
    DurabilityRound,
    run_durability,
    summary,
)
from faultinject.bench.rounds import ratios
from faultinject.load import LatencySummary, Timed


def measured(target: str, rate: float, p50: float) -> DurabilityRound:
    timed = Timed(rate, LatencySummary(p50, 2 * p50, 3 * p50, 4 * p50))
    return DurabilityRound(
        target=target, durability="fsync", one=timed, many=timed, one_busy={"driver": rate},
        many_busy={"driver": rate},
    )  # fmt: skip


def test_ratios_are_medians_of_the_ratios_within_rounds() -> None:
    rounds = [
        [measured("fsync", 300, 1.0), measured("etcd", 100, 1.0)],
        [measured("fsync", 20, 2.0), measured("etcd", 10, 1.0)],
        [measured("fsync", 500, 3.0), measured("etcd", 500, 1.0)],
    ]
    found = ratios(GOALS, rounds)
    assert found == {"fsync/etcd rate, 64": 2, "fsync/etcd p50, 1": 2}
    assert GOALS["fsync/etcd rate, 64"].reached(2)
    assert not GOALS["fsync/etcd p50, 1"].reached(2)
    middle = summary(rounds)
    assert [each.many.rate for each in middle] == [300, 100]
    assert middle[0].one.latency.p99 == 4
    assert middle[1].many_busy == {"driver": 100}


@pytest.mark.parametrize("with_etcd", [False, True])
def test_durability_measures_every_target(
    with_etcd: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_etcd:
        monkeypatch.setattr(etcd, "missing_requirement", lambda: "no etcd here")
    elif missing := etcd.missing_requirement():
        pytest.skip(missing)
    progress: list[str] = []
    plan = DurabilityPlan(rounds=1, requests=200, keys=20, seed=1)
    report = run_durability(plan, progress.append, scratch)
    (done,) = report.rounds
    ours = ["none", "os", "fsync", "fsync, in a session"]
    theirs = ["etcd", "etcd, 64 connections"] if with_etcd else []
    assert [each.target for each in done] == ours + theirs
    assert [each.durability for each in done[:4]] == ["none", "os", "fsync", "fsync"]
    for each in done:
        assert each.many.rate > 0 and each.one.latency.p50 > 0
    assert done[0].many_busy.keys() == {"voter", "replicas", "driver"}
    assert ("fsync/etcd rate, 64" in report.ratios) is with_etcd
    assert with_etcd or "no etcd here: etcd is left out" in progress
    assert report.disk.sync_p50 > 0
    assert list(scratch.iterdir()) == []


def test_put_message_is_a_protobuf_of_key_and_value() -> None:
    assert etcd.put_message(b"key", b"value") == b"\x0a\x03key\x12\x05value"
    with pytest.raises(ValueError, match="127 bytes"):
        etcd.put_message(b"key", bytes(128))


def test_missing_requirement_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "apt-get install etcd-server" in etcd.missing_requirement()
    monkeypatch.setattr("shutil.which", lambda _: "etcd")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install grpcio" in etcd.missing_requirement()
