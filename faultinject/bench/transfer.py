"""``trivisor bench transfer``: a large state sent to a returning guest, and what clients notice.

Real guests hold the state.  Requests start at fixed times, at a part of the measured throughput,
in three windows: all guests vote (before), one is absent (gone), and it returns and takes the state
until it votes again (during).  Latency counts from the time a request was due.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from deploy.machine.node_machines import NodeMachines
from deploy.node.records import Durability
from faultinject.bench import rig
from faultinject.bench.usage import Meter
from faultinject.host_facts import Host, describe_host
from faultinject.load import Arrivals, LatencySummary, Start, pipelined, summarize, window
from guests.protocol.message import encode_request
from voter.client import Client
from voter.client.errors import Overload, RequestError

__all__ = ["TransferPlan", "TransferReport", "TransferRun", "run_transfer"]

MIB = 1 << 20
VALUE = 1 << 16
"""Bytes of each stored value."""
WINDOW = 6.0
"""Seconds of a window without a transfer."""
TRANSFER_TIMEOUT = 300.0
"""Seconds for a checkpoint or a transfer of the state; then the run fails with TimeoutError."""
PROBE_REQUESTS = 1000
"""Requests that the throughput is measured with."""
SERVICE = '''"""The key-value store, with room for a large state."""

from guests.services import kv


class RoomyKeyValue(kv.KeyValue):
    capacity = 192 << 20
'''
"""What the guests run: the shipped store with another capacity (bytes)."""


class TransferPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: sizes in MiB, ``rate`` in MiB a second."""

    size: int
    rate: int
    load: float  # part of the measured throughput
    passages: int
    memory: int  # of a guest
    durability: Durability
    accel: rig.Requested


class TransferRun(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's return: latencies in each window, and times, in seconds."""

    guest: str
    before: LatencySummary
    gone: LatencySummary
    during: LatencySummary
    put_back: float  # until the guest was reverted to its clean snapshot
    seconds: float  # from then until it voted
    failures: dict[str, int]  # by the name of the error, in all three windows
    busy: dict[str, float]  # processors, during the transfer

    @property
    def ratio(self) -> float:
        """p99 during the transfer divided by p99 before."""
        return self.during.p99 / self.before.p99


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run."""

    plan: TransferPlan
    seconds: float
    host: Host
    state: int  # bytes, as the voter holds it
    fill: float  # seconds
    throughput: float  # requests a second
    passages: list[TransferRun]

    @property
    def ratio(self) -> float:
        """Median over passages."""
        return median(each.ratio for each in self.passages)


def run_transfer(
    plan: TransferPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> TransferReport:
    """Boot, fill, measure, stop everything.  Raises TimeoutError, RequestError, DeployError."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "t", scratch)


async def _run(
    plan: TransferPlan, directory: Path, progress: Callable[[str], None]
) -> TransferReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    service = directory / "roomy.py"
    service.write_text(SERVICE)
    planned = rig.plan_guests(
        directory / "vm", 3, plan.accel, progress, service=service, memory_mib=plan.memory
    )
    async with rig.ChildProcesses() as children, rig.guests(planned, progress) as node:
        links = [f"unix:{guest.spec.link_socket}" for guest in node.guests.values()]
        voter = await rig.start_voter(
            children, directory / "voter", links, durability=plan.durability,
            limits={"transfer_rate": plan.rate * MIB},
        )  # fmt: skip
        async with await Client.connect(voter.native) as client:
            filling = time.monotonic()
            await _fill(client, plan.size * MIB // VALUE, progress)
            state = await _checkpoint_size(voter, client, plan.size * MIB)
            fill = time.monotonic() - filling
            progress(f"stored {plan.size} MiB, in the checkpoint after {fill:.1f} s")
            requests = rig.puts(1000)

            def start() -> asyncio.Future[Any]:
                return client.start(next(requests))

            throughput = await pipelined(start, PROBE_REQUESTS, 64)
            rate = throughput * plan.load
            passages = []
            for at in range(plan.passages):
                name = f"g{3 - at % 3}"
                progress(f"{name} leaves and returns, under {rate:.0f} requests/s")
                passages.append(await _return(node, voter, name, start, rate))
        accel = node.guests["g1"].spec.accel
    return TransferReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=describe_host(accel=accel, load_before=load),
        state=state,
        fill=fill,
        throughput=throughput,
        passages=passages,
    )


async def _fill(client: Client, number: int, progress: Callable[[str], None]) -> None:
    """Store ``number`` different values."""
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
        except Overload:  # the log is full until the voter has a new checkpoint
            await asyncio.sleep(0.2)
    if reply[9:10] != b"2":
        raise RequestError(f"a PUT was answered {reply[:80]!r}", error_code="TV0803")


async def _checkpoint_size(voter: rig.VoterProcess, client: Client, size: int) -> int:
    """Return the size of the voter's checkpoint as soon as it has at least ``size`` bytes.

    The voter takes a checkpoint when its log has grown enough, so this writes values again.
    """
    async with asyncio.timeout(TRANSFER_TIMEOUT):
        for at in count():
            status = await voter.call("GET", "/status")
            held = int(status["checkpoint"]["size"])
            if held >= size:
                return held
            await _put_large(client, at % (size // VALUE))
    raise AssertionError("unreachable")


async def _return(
    node: NodeMachines, voter: rig.VoterProcess, name: str, start: Start, rate: float
) -> TransferRun:
    """Measure before, during and after one guest's absence."""
    guest = node.guests[name]
    before = await window(start, rate, WINDOW)
    await guest.kill()
    await voter.wait_inactive(name)
    gone = await window(start, rate, WINDOW)
    began = time.monotonic()
    async with Arrivals(start, rate) as arrivals:
        async with rig.yielding(voter, guest):
            await guest.restore()
            clean = time.monotonic()
            pids = {each: [found.pid] for each, found in node.guests.items() if found.pid}
            meter = Meter({"voter": [voter.pid], **pids})
            await voter.call("POST", f"/replicas/{name}/admit")
            admitted = time.perf_counter()
            await voter.wait_active(name, deadline=TRANSFER_TIMEOUT)
        ended = time.monotonic()
    during = [latency for due, latency in arrivals.due_latencies if due >= admitted]
    return TransferRun(
        guest=name,
        before=summarize(before.latencies),
        gone=summarize(gone.latencies),
        during=summarize(during),
        put_back=clean - began,
        seconds=ended - clean,
        failures=dict(before.failures + gone.failures + arrivals.failures),
        busy=meter.shares(),
    )
