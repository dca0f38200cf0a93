"""``trivisor bench roles``: what an observer in quarantine costs the clients.

A node has three voters and a fourth guest.  In each round there is a window in which the fourth
guest is paused and its replica retired, and one in which the guest runs and its replica observes.
So the difference is all that a quarantine adds: the guest, its requests, and the comparisons.  The
fourth guest's QEMU has the lowest priority once it has caught up, as no client needs its replies.
The windows of a round are compared with each other.

Each window is measured in two ways: one client makes one request after the other, and requests
start at fixed times, at a part of the measured throughput.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import msgspec

from deploy.machine.node_machines import NodeMachines
from faultinject.bench import rig
from faultinject.bench.rounds import ratios, run_rounds
from faultinject.bench.usage import HostShare
from faultinject.host_facts import Host, describe_host
from faultinject.load import LatencySummary, pipelined, summarize, window
from voter.client import Client

__all__ = ["KINDS", "ObservedWindow", "RolesPlan", "RolesReport", "run_roles"]

KINDS = ("none", "observer")
"""What the fourth replica does in a window."""
SPARE = "g4"
CATCH_UP = 120.0
"""Seconds for the observer to catch up; then the run fails with TimeoutError."""
PROBE_REQUESTS = 2000
"""Requests that the throughput is measured with."""


class RolesPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: seconds for all rounds and for one window."""

    seconds: float
    window: float
    load: float  # part of the measured throughput
    stand_in: bool  # processes (``exec:``) stand in for guests
    yields: bool  # the fourth guest's QEMU has the lowest priority
    accel: rig.Requested
    seed: int


class ObservedWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One window: latencies of one client, and of requests at fixed times."""

    client: LatencySummary
    arrivals: LatencySummary
    failed: int
    compared: int  # replies of the observer
    differed: int


class RolesReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run."""

    plan: RolesPlan
    seconds: float
    host: Host
    replicas: str  # guests, or processes (``exec:``) that stand in for guests
    throughput: float  # requests a second, without an observer
    rate: float  # requests a second at fixed times
    rounds: list[dict[str, ObservedWindow]]
    others: float  # share of the processors that other programs used

    def ratios(self, figure: Callable[[ObservedWindow], float]) -> list[float]:
        """Return a figure with an observer, divided by that without, of each round."""
        return ratios(self.rounds, figure, "observer", "none")

    @property
    def client_p50(self) -> float:
        """Median over rounds of the ratio of one client's p50."""
        return median(self.ratios(lambda each: each.client.p50))

    @property
    def arrivals_p50(self) -> float:
        """The same for requests at fixed times."""
        return median(self.ratios(lambda each: each.arrivals.p50))

    @property
    def arrivals_p99(self) -> float:
        """The same for p99."""
        return median(self.ratios(lambda each: each.arrivals.p99))

    @property
    def failed(self) -> int:
        """Requests that failed in all windows."""
        return sum(each.failed for found in self.rounds for each in found.values())


def run_roles(
    plan: RolesPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> RolesReport:
    """Start a node of four, measure, stop it."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "b", scratch)


async def _run(plan: RolesPlan, directory: Path, progress: Callable[[str], None]) -> RolesReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    async with contextlib.AsyncExitStack() as stack:
        children = await stack.enter_async_context(rig.ChildProcesses())
        node: NodeMachines | None = None
        links = [rig.PROCESS_REPLICA] * 4
        if not plan.stand_in:
            planned = rig.plan_guests(directory, 4, plan.accel, progress)
            node = await stack.enter_async_context(rig.guests(planned, progress))
            links = [f"unix:{guest.spec.link_socket}" for guest in node.guests.values()]
        voter = await rig.start_voter(
            children, directory / "voter", links, durability="fsync", spares=1
        )
        if node is not None:
            await node.guests[SPARE].pause()
        client = await stack.enter_async_context(await Client.connect(voter.native))
        requests = rig.puts(100)

        def start() -> asyncio.Future[Any]:
            return client.start(next(requests))

        throughput = await pipelined(start, PROBE_REQUESTS, 64)
        rate = plan.load * throughput
        rounds: list[dict[str, ObservedWindow]] = []

        async def measure(kind: str) -> ObservedWindow:
            progress(f"round {len(rounds) + 1}: {kind} at {rate:.0f} requests/s")
            async with _role(voter, node, kind, yields=plan.yields) as counts:
                alone: list[float] = []
                until = time.perf_counter() + plan.window / 2
                while (began := time.perf_counter()) < until:
                    await start()
                    alone.append(time.perf_counter() - began)
                arrivals = await window(start, rate, plan.window / 2)
            return ObservedWindow(
                client=summarize(alone), arrivals=summarize(arrivals.latencies),
                failed=len(arrivals.failed), compared=counts["compared"],
                differed=counts["differed"],
            )  # fmt: skip

        share = HostShare()
        await run_rounds(
            KINDS, measure, rounds, random=Random(plan.seed), seconds=plan.seconds, least=1
        )
    accel = "none" if node is None else node.guests[SPARE].spec.accel
    return RolesReport(
        plan=plan, seconds=time.monotonic() - began,
        host=describe_host(accel=accel, load_before=load),
        replicas="processes (exec:) that stand in for guests" if node is None else "guests",
        throughput=throughput, rate=rate, rounds=rounds, others=share.others(),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _role(
    voter: rig.VoterProcess, node: NodeMachines | None, kind: str, *, yields: bool
) -> AsyncIterator[dict[str, int]]:
    """Let the fourth replica observe, if ``kind`` says so; then hold its counters.

    Its QEMU gets the lowest priority once it has caught up: before, it might never do so.
    """
    counts = {"compared": 0, "differed": 0}
    if kind == "none":
        yield counts
        return
    if node is not None:
        await node.guests[SPARE].resume()
    await _change(voter, "observer")
    await voter.wait_state(SPARE, "observer", CATCH_UP)
    if node is not None:
        await node.guests[SPARE].yield_processor(yields)
    yield counts
    found = (await voter.call("GET", "/status"))["replicas"][-1]
    counts |= {name: found[name] for name in counts}
    await _change(voter, "retired")
    if node is not None:
        await node.guests[SPARE].yield_processor(False)
        await node.guests[SPARE].pause()


async def _change(voter: rig.VoterProcess, role: str) -> None:
    version = (await voter.call("GET", "/status"))["roles"]["version"]
    await voter.call("POST", "/roles", {"version": version, "roles": {SPARE: role}})
