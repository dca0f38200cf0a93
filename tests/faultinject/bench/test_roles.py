"""`trivisor bench roles`: its ratios, and a short run on processes in place of guests."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from faultinject.bench.commands import bench
from faultinject.bench.roles import ObservedWindow, RolesPlan, RolesReport
from faultinject.host_facts import describe_host
from faultinject.load import LatencySummary


def observed(p50: float, failed: int = 0) -> ObservedWindow:
    latency = LatencySummary(p50=p50, p99=2 * p50, p999=p50, worst=p50)
    return ObservedWindow(client=latency, arrivals=latency, failed=failed, compared=10, differed=0)


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        {"none": observed(0.01), "observer": observed(0.0104)},
        {"none": observed(0.1), "observer": observed(0.1, failed=1)},
        {"none": observed(0.02), "observer": observed(0.024)},
    ]
    plan = RolesPlan(
        seconds=1, window=1, load=0.3, stand_in=True, yields=True, accel="auto", seed=1
    )
    report = RolesReport(
        plan=plan, seconds=1, host=describe_host(accel="none", load_before=0), replicas="none",
        throughput=1, rate=1, rounds=rounds, others=0,
    )  # fmt: skip
    assert round(report.client_p50, 6) == 1.04
    assert round(report.arrivals_p99, 6) == 1.04
    assert report.failed == 1


def test_short_run_compares_windows_with_and_without_an_observer(scratch: Path) -> None:
    options = ["--stand-in", "--seconds", "5", "--window", "1", "--load", "0.05", "--json"]
    done = CliRunner().invoke(bench, ["roles", *options, "--data", str(scratch)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["replicas"] == "processes (exec:) that stand in for guests"
    for each in report["rounds"]:
        assert each["none"]["compared"] == 0
        assert each["observer"]["compared"] > 0
        assert each["observer"]["differed"] == 0
        assert each["observer"]["failed"] == each["none"]["failed"] == 0
