"""``trivisor bench dashboards``: what open dashboards cost those who send requests.

A real node, started as users start it, serves requests at fixed times, at a part of its measured
throughput.  In each round there is a window without a dashboard, one with 20 that read, and one
with 1,000 connections, far more than the supervisor serves.  The windows of a round are compared
with each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import msgspec

from deploy.host.spawn import python_command, python_environment
from faultinject.bench import rig
from faultinject.bench.rounds import ratios, run_rounds
from faultinject.bench.usage import HostShare, resident
from faultinject.host_facts import Host, describe_host
from faultinject.load import LatencySummary, pipelined, summarize, window
from faultinject.node_command import run_trivisor
from voter.client import Client
from voter.commands.terminal import CommandError

__all__ = [
    "CROWD", "FEW", "DashboardsPlan", "DashboardsReport", "ShownWindow", "hold_dashboards",
    "run_dashboards",
]  # fmt: skip

FEW = 20
CROWD = 1000
"""Dashboards in the two kinds of window that have some."""
PROBE_REQUESTS = 2000
"""Requests that the throughput is measured with."""
READERS_TIMEOUT = 60.0
"""Seconds for the readers to open their connections."""


class DashboardsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: seconds for all rounds and for one window."""

    seconds: float
    window: float
    load: float  # part of the measured throughput
    accel: rig.Requested
    seed: int


class ShownWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One window.  ``supervisor``: resident bytes at its end; ``seen``: what the readers saw."""

    latency: LatencySummary
    failed: int
    supervisor: int
    seen: dict[str, int]


class DashboardsReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run; each round has a window for each number of dashboards."""

    plan: DashboardsPlan
    seconds: float
    host: Host
    throughput: float  # requests a second, without a dashboard
    rate: float  # requests a second in the windows
    supervisor: int  # resident bytes before the first dashboard
    rounds: list[dict[str, ShownWindow]]
    others: float  # share of the processors that other programs used

    def ratios(self, number: int) -> list[float]:
        """Return p99 with so many dashboards, divided by p99 without, of each round."""
        return ratios(self.rounds, lambda each: each.latency.p99, str(number), "0")

    def ratio(self, number: int) -> float:
        """Return the median of these."""
        return median(self.ratios(number))

    def largest(self, number: int) -> int:
        """Return the supervisor's most resident bytes with so many dashboards."""
        return max(each[str(number)].supervisor for each in self.rounds)

    def failed(self, number: int) -> int:
        """Return the requests that failed with so many dashboards."""
        return sum(each[str(number)].failed for each in self.rounds)


def run_dashboards(
    plan: DashboardsPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> DashboardsReport:
    """Start a node, measure, stop it.  Raises CommandError if it does not start."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "b", scratch)


async def _run(
    plan: DashboardsPlan, directory: Path, progress: Callable[[str], None]
) -> DashboardsReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    place = directory / "n"
    progress("starting a node")
    try:
        status = json.loads(
            await run_trivisor(
                place, "up", "--json", "--http", "127.0.0.1:0", "--dashboard", "127.0.0.1:0",
                "--accel", plan.accel,
            )
        )  # fmt: skip
        return await _measure(plan, place, status, progress, began, load)
    finally:
        await run_trivisor(place, "down")


async def _measure(
    plan: DashboardsPlan,
    place: Path,
    status: dict[str, object],
    progress: Callable[[str], None],
    began: float,
    load: float,
) -> DashboardsReport:
    supervisor = json.loads(await run_trivisor(place, "status", "--json"))["supervisor"]["pid"]
    rounds: list[dict[str, ShownWindow]] = []
    async with await Client.connect(f"unix:{place}/native.sock") as client:
        requests = rig.puts(100)

        def start() -> asyncio.Future[Any]:
            return client.start(next(requests))

        throughput = await pipelined(start, PROBE_REQUESTS, 64)
        rate, before = plan.load * throughput, resident(supervisor)

        async def measure(name: str) -> ShownWindow:
            progress(f"round {len(rounds) + 1}: {name} dashboards at {rate:.0f} requests/s")
            seen: dict[str, int] = {}
            link = json.loads(await run_trivisor(place, "dashboard", "--json"))["url"]
            async with hold_dashboards(link, int(name), seen):
                arrivals = await window(start, rate, plan.window)
                memory = resident(supervisor)
            return ShownWindow(
                latency=summarize(arrivals.latencies), failed=len(arrivals.failed),
                supervisor=memory, seen=seen,
            )  # fmt: skip

        share = HostShare()
        await run_rounds(
            ["0", str(FEW), str(CROWD)], measure, rounds, random=Random(plan.seed),
            seconds=plan.seconds, least=1,
        )  # fmt: skip
    return DashboardsReport(
        plan=plan, seconds=time.monotonic() - began,
        host=describe_host(accel=str(status["accel"]), load_before=load), throughput=throughput,
        rate=rate, supervisor=before, rounds=rounds, others=share.others(),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def hold_dashboards(link: str, number: int, seen: dict[str, int]) -> AsyncIterator[None]:
    """Have another process hold so many dashboards; ``seen`` then holds what they saw.

    Raises CommandError if it cannot open them.
    """
    if not number:
        yield
        return
    process = await asyncio.create_subprocess_exec(
        *python_command("faultinject.bench.dashboard_readers", link, str(number)),
        env=python_environment(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READERS_TIMEOUT):
            line = await process.stdout.readline()
        if line.strip() != b"ready":
            raise CommandError(f"{number} dashboards could not be opened", error_code="TV0842")
        yield
        output, _ = await process.communicate(b"")
        seen.update(json.loads(output))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
