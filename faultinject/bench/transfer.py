"""A large state going into a guest that comes back, and what the others' clients feel of it.

Real guests hold so many values.  Requests are started at fixed times, at half of the measured
throughput, in windows: all three vote (before), one is gone, and it is back and takes the state
until it votes again (during).  Latency counts from the time a request was due.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from deploy.machine.guest import Guest
from deploy.machine.node_machines import NodeMachines
from deploy.node.records import Durability, cache_directory
from deploy.supervisor.cpu_yield import CpuYield, yield_limit
from deploy.supervisor.repair_policy import ReplicaView
from faultinject.bench import rig, roomy
from faultinject.bench.usage import Meter
from faultinject.host_facts import Host, look_at_host
from faultinject.load import Arrivals, LatencySummary, Start, pipelined, summarize
from guests.protocol.message import encode_request
from voter.client import Client
from voter.errors import Overload, RequestError

__all__ = ["TransferRun", "TransferPlan", "TransferReport", "run_transfer"]

MIB = 1 << 20
VALUE = 1 << 16
"""Bytes of each stored value."""
BODY = b"x" * 64
WINDOW = 6.0
"""Seconds of a window without a transfer."""
DEADLINE = 300.0
"""Seconds for a guest to come back and take the state."""
PROBE = 1000
"""Requests that the throughput is measured with."""


class TransferPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: sizes in MiB, ``rate`` in MiB a second, ``load`` a part of the
    throughput.
    """

    size: int
    rate: int
    load: float
    passages: int
    memory: int  # of a guest
    durability: Durability
    accel: rig.Requested


class TransferRun(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's return: latencies of the clients' requests in each window, in seconds;
    ``seconds`` from its clean start to its vote, ``put_back`` of them until it was clean, and the
    processors that were busy meanwhile.
    """

    guest: str
    before: LatencySummary
    gone: LatencySummary
    during: LatencySummary
    put_back: float
    seconds: float
    failures: dict[str, int]  # by the name of the error, in all three windows
    busy: dict[str, float]

    @property
    def ratio(self) -> float:
        """p99 while the state went over that before."""
        return self.during.p99 / self.before.p99


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result; ``state`` in bytes as the voter holds it, ``throughput`` in requests a second."""

    plan: TransferPlan
    seconds: float
    host: Host
    state: int
    fill: float  # seconds
    throughput: float
    passages: list[TransferRun]

    @property
    def ratio(self) -> float:
        """Median over passages."""
        return median(each.ratio for each in self.passages)


def run_transfer(
    plan: TransferPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> TransferReport:
    """Boot, fill, measure, end everything.  Raises TimeoutError, RequestError."""
    directory = Path(tempfile.mkdtemp(prefix="tv-move-", dir=scratch))
    try:
        return asyncio.run(_run(plan, directory, progress))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _run(
    plan: TransferPlan, directory: Path, progress: Callable[[str], None]
) -> TransferReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    children = rig.ChildProcesses()
    planned = rig.plan_guests(
        directory / "vm", cache_directory() / "images", 3, plan.accel, progress,
        service=Path(roomy.__file__), memory_mib=plan.memory,
    )  # fmt: skip
    try:
        async with rig.guests(directory / "vm", planned, progress) as node:
            links = [f"unix:{guest.spec.link_socket}" for guest in node.guests.values()]
            voter = await rig.voter(
                children, directory / "voter", links, durability=plan.durability,
                limits={"transfer_rate": plan.rate * MIB},
            )  # fmt: skip
            client = await Client.connect(voter.native)
            filling = time.monotonic()
            await _fill(client, plan.size * MIB // VALUE, progress)
            start = _small(client)
            state = await _held_by(voter, client, plan.size * MIB)
            fill = time.monotonic() - filling
            progress(f"{plan.size} MiB are there and in the checkpoint after {fill:.1f} s")
            throughput = await pipelined(start, PROBE, 64)
            rate = throughput * plan.load
            passages = []
            for at in range(plan.passages):
                name = f"g{3 - at % 3}"
                progress(f"{name} goes and comes back, under {rate:.0f} requests/s")
                passages.append(await _pass(node, voter, name, start, rate))
            await client.close()
            accel = node.guests["g1"].spec.accel
    finally:
        await children.stop()
    return TransferReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=look_at_host(accel=accel, load_before=load),
        state=state,
        fill=fill,
        throughput=throughput,
        passages=passages,
    )


async def _fill(client: Client, number: int, progress: Callable[[str], None]) -> None:
    """Store ``number`` values, no two alike."""
    numbers = iter(range(number))

    async def work() -> None:
        for at in numbers:
            await _put_large(client, at)
            if at % 200 == 0:
                progress(f"{at} of {number} values of {VALUE // 1024} KiB")

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work())


async def _put_large(client: Client, at: int) -> None:
    body = at.to_bytes(8) * (VALUE // 8)
    request = encode_request("PUT", f"/kv/large-{at:05d}", (), body)
    while True:
        try:
            _, reply = await client.ask(request, timeout=120)
            break
        except Overload:  # the log is full until a checkpoint is fetched
            await asyncio.sleep(0.2)
    if reply[9:10] != b"2":
        raise RequestError(f"a PUT was answered {reply[:80]!r}")


def _small(client: Client) -> Start:
    numbers = count()

    def start() -> asyncio.Future[Any]:
        return client.start(_put_small(next(numbers)))

    return start


def _put_small(number: int) -> bytes:
    return encode_request("PUT", f"/kv/small-{number % 1000:04d}", (), BODY)


async def _held_by(voter: rig.VoterProcess, client: Client, size: int) -> int:
    """Return the size of the voter's checkpoint once it holds all that was filled in; values
    written once more bring it on: it is taken when the log has grown enough.
    """
    async with asyncio.timeout(DEADLINE):
        for at in count():
            status = await voter.call("GET", "/status")
            assert isinstance(status, dict)
            held = int(status["checkpoint"]["size"])
            if held >= size:
                return held
            await _put_large(client, at % (size // VALUE))
    raise AssertionError("unreachable")


async def _pass(
    node: NodeMachines, voter: rig.VoterProcess, name: str, start: Start, rate: float
) -> TransferRun:
    guest = node.guests[name]
    before, lost = await _window(start, rate, WINDOW)
    await guest.kill()
    await voter.wait_left(name, 30)
    gone, more = await _window(start, rate, WINDOW)
    arrivals = Arrivals(start, rate)
    began = time.monotonic()
    async with arrivals:
        await guest.restore(60.0)
        clean = time.monotonic()
        pids = {each: [found.pid] for each, found in node.guests.items() if found.pid}
        meter = Meter({"voter": [voter.pid], **pids})
        async with _yielding(voter, guest):
            await voter.call("POST", f"/replicas/{name}/admit")
            from_here = time.perf_counter()
            await voter.wait_active({name}, DEADLINE)
        ended = time.monotonic()
    during = [taken for due, taken in arrivals.latencies if due >= from_here]
    return TransferRun(
        guest=name,
        before=before,
        gone=gone,
        during=summarize(during),
        put_back=clean - began,
        seconds=ended - clean,
        failures=dict(lost + more + arrivals.failures),
        busy=meter.shares(),
    )


@contextlib.asynccontextmanager
async def _yielding(voter: rig.VoterProcess, guest: Guest) -> AsyncIterator[None]:
    """Have a guest that comes back yield to those that vote, as the supervisor has it."""

    async def look() -> None:
        yielding = CpuYield()
        while True:
            status = await voter.call("GET", "/status")
            assert isinstance(status, dict)
            state = {each["name"]: each["state"] for each in status["replicas"]}[guest.name]
            sight = ReplicaView(vm=guest.state.value, replica=state, reason="", since=0.0)
            yields = yielding.update(
                sight, time.monotonic(), served=status["active"] >= 2,
                throttled=status["throttled"], limit=yield_limit(status["checkpoint"]["size"]),
            )  # fmt: skip
            await guest.yield_processor(yields)
            await asyncio.sleep(0.1)  # nothing tells that writes are throttled

    looking = asyncio.create_task(look(), name=f"{guest.name} yields")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        await guest.yield_processor(False)
    if not looking.cancelled():
        looking.result()  # it raises what went wrong


async def _window(start: Start, rate: float, seconds: float) -> tuple[LatencySummary, Counter[str]]:
    async with Arrivals(start, rate) as arrivals:
        await asyncio.sleep(seconds)  # the window's length is the experiment's
    return summarize([taken for _, taken in arrivals.latencies]), arrivals.failures
