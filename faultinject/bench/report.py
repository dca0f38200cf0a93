"""One run of everything, and what it was measured on."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from deploy.node.records import Durability, cache_directory
from faultinject.bench import rig
from faultinject.bench.compare import Comparison, compare
from faultinject.bench.disturb import Disturbance, RecoveryTimes, disturb, recover
from faultinject.bench.idle import Idle, hold
from faultinject.host_facts import Host, look_at_host
from faultinject.load import BareLink, HttpPool, Start, pipelined
from guests.protocol.message import encode_request
from voter.address import parse_address
from voter.client import Client

__all__ = ["BenchPlan", "BenchReport", "run_all"]

BODY = b"x" * 64
POOL = 64
KEYS = 1000


class BenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: the options of ``trivisor bench``."""

    rounds: int
    requests: int  # for each target in each round
    pairs: int  # of windows, and tries of recovery, for each kind
    idle: int  # connections
    seed: int
    accel: rig.Requested
    durability: Durability = "none"  # of the voters


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run; latencies in seconds, rates a second, sizes in bytes."""

    plan: BenchPlan
    seconds: float
    host: Host
    comparison: Comparison
    disturbances: list[Disturbance]
    recoveries: list[RecoveryTimes]
    idle: Idle | None


def run_all(plan: BenchPlan, progress: Callable[[str], None]) -> BenchReport:
    """Boot, measure all, end everything; return the report."""
    directory = Path(tempfile.mkdtemp(prefix="tv-bench-"))
    try:
        return asyncio.run(_run(directory, plan, progress))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _run(directory: Path, plan: BenchPlan, progress: Callable[[str], None]) -> BenchReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    request = encode_request("PUT", "/kv/bench", [("host", "bench")], BODY)
    children = rig.ChildProcesses()
    images = cache_directory() / "images"
    try:
        planned = rig.plan_guests(directory / "vm", images, 4, plan.accel, progress)
        async with rig.guests(directory / "vm", planned, progress) as node:
            links = {name: guest.spec.link_socket for name, guest in node.guests.items()}
            progress("starting voters and peers")
            voted = [f"unix:{links[name]}" for name in ("g1", "g2", "g3")]
            on_guests = await rig.voter(
                children, directory / "b", voted, durability=plan.durability
            )
            local = [f"exec:{rig.AGENT}"] * 3
            on_processes = await rig.voter(
                children, directory / "f", local, durability=plan.durability
            )
            replica, proxy, front = (rig.free_port() for _ in range(3))
            await rig.peer(children, "replica", replica)
            await rig.peer(children, "proxy", proxy, replica)
            ports = {"c": on_guests.http, "d": proxy}
            if await rig.haproxy(children, directory, front, replica):
                ports["e"] = front
            else:
                progress("HAProxy is not installed: (e) is left out (apt-get install haproxy)")
            bare = await BareLink.open(parse_address(f"unix:{links['g4']}"), request)
            clients = {
                "b": await Client.connect(on_guests.native),
                "f": await Client.connect(on_processes.native),
            }
            pools = {
                name: await HttpPool.open("127.0.0.1", port, POOL, request)
                for name, port in ports.items()
            }
            targets: dict[str, Start] = {"a": bare.start}
            for name, client in clients.items():
                targets[name] = _native(client, request)
            targets |= {name: pool.start for name, pool in pools.items()}
            comparison = await compare(
                targets,
                rounds=plan.rounds,
                number=plan.requests,
                seed=plan.seed,
                progress=progress,
            )
            progress(f"{KEYS} keys of state")
            await _fill(clients["b"])
            recoveries = await recover(
                node, on_guests, keys=KEYS, tries=plan.pairs, progress=progress
            )
            disturbances = await disturb(
                node,
                on_guests,
                targets["b"],
                rate=comparison.rate["b"] / 2,
                pairs=plan.pairs,
                progress=progress,
            )
            held = None
            if plan.idle:
                progress(f"holding {plan.idle} idle connections")
                held = await hold(on_processes.http, plan.idle, on_processes.pid)
            for pool in pools.values():
                pool.close()
            for client in clients.values():
                await client.close()
            bare.close()
            used = node.guests["g1"].spec.accel
    finally:
        await children.stop()
    host = look_at_host(accel=used, load_before=load)
    return BenchReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=host,
        comparison=comparison,
        disturbances=disturbances,
        recoveries=recoveries,
        idle=held,
    )


def _native(client: Client, request: bytes) -> Start:
    return lambda: client.start(request)


async def _fill(client: Client) -> None:
    """Store KEYS different keys."""
    numbers = iter(range(KEYS))

    def start() -> asyncio.Future[object]:
        target = f"/kv/key-{next(numbers):05d}"
        return client.start(encode_request("PUT", target, (), BODY))  # type: ignore[return-value]

    await pipelined(start, KEYS, 16)
