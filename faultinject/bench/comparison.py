"""``trivisor bench``: what voting costs compared with its peers, all measured in one run.

    a  one guest's bare link            d  a plain aiohttp proxy, one process replica
    b  native client, three guests      e  HAProxy, the same replica
    c  HTTP, three guests               f  native client, three exec: process replicas

Each target stores the same value.  Then the run measures recovery and disturbance by a failing
guest (``disturbance``), and what idle HTTP connections cost the voter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from deploy.host.spawn import python_command
from deploy.node.records import Durability
from faultinject.bench import rig
from faultinject.bench.clients import BareLink, HttpPool
from faultinject.bench.disturbance import Disturbance, RecoveryTimes, disturb, recover
from faultinject.bench.rounds import IN_FLIGHT, Goal, medians, ratios, run_rounds
from faultinject.bench.usage import resident
from faultinject.host_facts import Host, describe_host
from faultinject.load import LatencySummary, Start, pipelined, timed
from guests.protocol.message import encode_request
from voter.address import parse_address
from voter.client import Client

__all__ = ["GOALS", "BenchPlan", "BenchReport", "Comparison", "run_bench"]

KEYS = 1000
"""Keys stored before recovery is measured."""

GOALS = {
    "b/a p50": Goal("p50", "b", "a", 3.0),
    "b/a rate": Goal("rate", "b", "a", 0.30),
    "f/d rate": Goal("rate", "f", "d", 1.5),
    "c/b rate": Goal("rate", "c", "b"),
    "f/e rate": Goal("rate", "f", "e"),
    "f/d p50": Goal("p50", "f", "d"),
}


class BenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: the options of ``trivisor bench``."""

    rounds: int
    requests: int  # for each target in each round
    pairs: int  # of windows, and tries of recovery, for each kind
    idle: int  # connections
    seed: int
    accel: rig.Requested
    durability: Durability = "none"  # of the voters


class ComparisonRound(msgspec.Struct, frozen=True, kw_only=True):
    """One target in one round: latency with one request in flight, rate with 64."""

    target: str
    latency: LatencySummary
    rate: float

    @property
    def p50(self) -> float:
        """The median latency, seconds."""
        return self.latency.p50


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, and the medians over them."""

    rounds: list[list[ComparisonRound]]
    p50: dict[str, float]
    rate: dict[str, float]
    ratios: dict[str, float]


class IdleCost(msgspec.Struct, frozen=True, kw_only=True):
    """Idle connections held, and the voter's resident memory in bytes before and meanwhile."""

    connections: int
    before: int
    holding: int
    answered: bool  # the first and the last connection still answered a request

    @property
    def each(self) -> float:
        """The voter's memory for each connection, bytes."""
        return (self.holding - self.before) / self.connections


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run; latencies in seconds, rates a second, sizes in bytes."""

    plan: BenchPlan
    seconds: float
    host: Host
    comparison: Comparison
    disturbances: list[Disturbance]
    recoveries: list[RecoveryTimes]
    idle: IdleCost | None


def run_bench(plan: BenchPlan, progress: Callable[[str], None]) -> BenchReport:
    """Start everything, measure, stop everything.  Raises OSError, TimeoutError, DeployError."""
    return rig.run_in_scratch(lambda directory: _run(directory, plan, progress), "bench")


async def _run(directory: Path, plan: BenchPlan, progress: Callable[[str], None]) -> BenchReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    planned = rig.plan_guests(directory / "vm", 4, plan.accel, progress)
    async with rig.ChildProcesses() as children, rig.guests(planned, progress) as node:
        progress("starting voters and peers")
        links = [f"unix:{node.guests[name].spec.link_socket}" for name in ("g1", "g2", "g3", "g4")]
        on_guests = await rig.start_voter(
            children, directory / "b", links[:3], durability=plan.durability
        )
        on_processes = await rig.process_voter(children, directory / "f", plan.durability)
        ports = {"c": on_guests.http, **await _start_peers(children, directory, progress)}
        natives = {"b": on_guests.native, "f": on_processes.native}
        async with _targets(links[3], natives, ports) as targets:
            comparison = await _compare(targets, plan, progress)
            progress(f"storing {KEYS} keys")
            requests = rig.puts(KEYS)
            async with await Client.connect(on_guests.native) as client:
                await pipelined(lambda: client.start(next(requests)), KEYS, 16)
            recoveries = await recover(
                node, on_guests, keys=KEYS, tries=plan.pairs, progress=progress
            )
            disturbances = await disturb(
                node, on_guests, targets["b"], rate=comparison.rate["b"] / 2, pairs=plan.pairs,
                progress=progress,
            )  # fmt: skip
            idle = None
            if plan.idle:
                progress(f"holding {plan.idle} idle connections")
                idle = await _hold_idle(on_processes, plan.idle)
        accel = node.guests["g1"].spec.accel
    return BenchReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=describe_host(accel=accel, load_before=load),
        comparison=comparison,
        disturbances=disturbances,
        recoveries=recoveries,
        idle=idle,
    )


async def _start_peers(
    children: rig.ChildProcesses, directory: Path, progress: Callable[[str], None]
) -> dict[str, int]:
    """Start the HTTP peers; return their ports by target."""
    replica, proxy, haproxy = (rig.free_port() for _ in range(3))
    await rig.start_peer(children, "replica", replica)
    await rig.start_peer(children, "proxy", proxy, replica)
    if await rig.start_haproxy(children, directory, haproxy, replica):
        return {"d": proxy, "e": haproxy}
    progress("HAProxy is not installed: e is left out (apt-get install haproxy)")
    return {"d": proxy}


@contextlib.asynccontextmanager
async def _targets(
    bare_link: str, natives: Mapping[str, str], ports: Mapping[str, int]
) -> AsyncIterator[dict[str, Start]]:
    """Connect to all targets; close the connections afterwards."""
    request = encode_request("PUT", "/kv/bench", [("host", "bench")], rig.BODY)
    async with contextlib.AsyncExitStack() as stack:
        bare = await BareLink.open(parse_address(bare_link), request)
        stack.callback(bare.close)
        targets: dict[str, Start] = {"a": bare.start}
        for name, address in natives.items():
            client = await stack.enter_async_context(await Client.connect(address))
            targets[name] = partial(client.start, request)
        for name, port in ports.items():
            pool = await HttpPool.open(port, IN_FLIGHT, request)
            stack.callback(pool.close)
            targets[name] = pool.start
        yield targets


async def _compare(
    targets: Mapping[str, Start], plan: BenchPlan, progress: Callable[[str], None]
) -> Comparison:
    async def measure(name: str, _: int) -> ComparisonRound:
        start = targets[name]
        await pipelined(start, plan.requests // 10, 8)  # warm up
        one = await timed(start, plan.requests // 4, 1)
        rate = await pipelined(start, plan.requests, IN_FLIGHT)
        return ComparisonRound(target=name, latency=one.latency, rate=rate)

    rounds = await run_rounds(
        sorted(targets), measure, rounds=plan.rounds, seed=plan.seed, progress=progress
    )
    return Comparison(
        rounds=rounds,
        p50=medians(rounds, lambda each: each.p50),
        rate=medians(rounds, lambda each: each.rate),
        ratios=ratios(GOALS, rounds),
    )


async def _hold_idle(voter: rig.VoterProcess, number: int) -> IdleCost:
    """Have another process hold idle connections to a voter, and measure the voter's memory."""
    before = resident(voter.pid)
    process = await asyncio.create_subprocess_exec(
        *python_command("faultinject.bench.peers", "idle", str(voter.http), str(number)),
        cwd=rig.ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(120):
        line = await process.stdout.readline()
    if line.strip() != b"ready":
        raise RuntimeError(f"{number} idle connections could not be opened")
    holding = resident(voter.pid)
    process.stdin.close()
    async with asyncio.timeout(30):
        statuses = await process.stdout.read()
        await process.wait()
    return IdleCost(
        connections=number, before=before, holding=holding,
        answered=statuses.count(b"HTTP/1.1 ") == 2,
    )  # fmt: skip
