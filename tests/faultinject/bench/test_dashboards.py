"""`trivisor bench dashboards` on a node without guests' machines: its readers and its report."""

from __future__ import annotations

import pytest

from faultinject.bench.dashboards import (
    CROWD,
    FEW,
    DashboardsPlan,
    DashboardsReport,
    ShownWindow,
    hold_dashboards,
)
from faultinject.host_facts import describe_host
from faultinject.load import LatencySummary
from tests.deploy.dashboard.shown import FakeSource, dashboard
from voter.commands.terminal import CommandError


async def test_readers_hold_streams_and_say_what_they_saw() -> None:
    seen: dict[str, int] = {}
    async with (
        dashboard(FakeSource()) as shown,
        hold_dashboards(shown.new_link(), 130, seen),
    ):
        pass
    assert (seen["streams"], seen["answers 503"]) == (100, 30)
    assert seen["bytes"] > 0


def shown_window(p99: float, memory: int) -> ShownWindow:
    latency = LatencySummary(p50=0.001, p99=p99, p999=p99, worst=p99)
    return ShownWindow(latency=latency, failed=0, supervisor=memory, seen={})


def test_ratios_are_taken_within_a_round() -> None:
    names = ("0", str(FEW), str(CROWD))
    rounds = [
        {name: shown_window(p99, 10) for name, p99 in zip(names, values, strict=True)}
        for values in ((0.01, 0.011, 0.02), (0.1, 0.1, 0.1), (0.02, 0.024, 0.02))
    ]
    rounds[1][str(CROWD)] = shown_window(0.1, 77)
    report = DashboardsReport(
        plan=DashboardsPlan(seconds=1, window=1, load=0.5, accel="auto", seed=1), seconds=1,
        host=describe_host(accel="tcg", load_before=0), throughput=1, rate=1, supervisor=1,
        rounds=rounds, others=0,
    )  # fmt: skip
    assert round(report.ratio(FEW), 6) == 1.1
    assert report.largest(CROWD) == 77


async def test_dashboards_that_cannot_be_opened_end_the_run() -> None:
    async with dashboard(FakeSource()) as shown:
        with pytest.raises(CommandError) as error:
            async with hold_dashboards(f"http://{shown.address}/#wrong", 2, {}):
                pass
    assert error.value.error_code == "TV0842"
