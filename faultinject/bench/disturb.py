"""What a failing guest does to everybody else's latency, and how soon it votes again.

Requests are started at fixed times (half of the measured throughput) whether or not earlier ones
are answered, and latency counts from the time a request was due: a stall is seen in full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

import msgspec

from deploy.machine.node_machines import NodeMachines
from faultinject.bench.rig import VoterProcess
from faultinject.load import Arrivals, Start, percentile

__all__ = ["Disturbance", "RecoveryTimes", "disturb", "recover"]

WINDOW = 4.0
"""Seconds of one window."""
BOOT_DEADLINE = 60.0
"""Seconds for putting back, should it come to a cold boot."""


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault over paired windows: p99.9 in seconds without and with it, and failures."""

    kind: str
    rate: float  # requests a second
    quiet: list[float]
    faulty: list[float]
    failed: int

    @property
    def added(self) -> float:
        """Median over pairs of what the fault adds to p99.9, seconds."""
        return median(f - q for q, f in zip(self.quiet, self.faulty, strict=True))

    @property
    def worst(self) -> float:
        """The most that one pair shows, seconds."""
        return max(f - q for q, f in zip(self.quiet, self.faulty, strict=True))


class RecoveryTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from heal to voting again, of each try."""

    kind: str
    keys: int
    seconds: list[float]


async def _window(start: Start, rate: float, seconds: float) -> tuple[list[float], int]:
    """Start requests at fixed times for so long; return latencies and the number that failed."""
    async with Arrivals(start, rate) as arrivals:
        await asyncio.sleep(seconds)  # part of the experiment: the window's length
    return [taken for _, taken in arrivals.latencies], arrivals.failed


async def _put_back(node: NodeMachines, voter: VoterProcess, name: str) -> None:
    await node.guests[name].restore(BOOT_DEADLINE)
    await voter.call("POST", f"/replicas/{name}/admit")
    await voter.wait_active({name}, 30)


async def disturb(
    node: NodeMachines,
    voter: VoterProcess,
    start: Start,
    *,
    rate: float,
    pairs: int,
    progress: Callable[[str], None],
) -> list[Disturbance]:
    """Kill and freeze each guest in turn under load, put back within the window, beside quiet
    windows.
    """
    results = []
    for kind in ("kill", "freeze"):
        quiet, faulty, failed = [], [], 0
        for pair in range(pairs):
            name = f"g{pair % 3 + 1}"
            progress(f"{kind} {name} under {rate:.0f} requests/s ({pair + 1} of {pairs})")
            latencies, lost = await _window(start, rate, WINDOW)
            quiet.append(percentile(latencies, 0.999))
            failed += lost
            guest = node.guests[name]
            act: Callable[[], Awaitable[None]] = guest.kill if kind == "kill" else guest.pause
            window = asyncio.create_task(_window(start, rate, WINDOW))
            await asyncio.sleep(
                WINDOW / 8
            )  # part of the experiment: the fault comes inside the window
            await act()
            await asyncio.sleep(WINDOW / 8)
            await _put_back(node, voter, name)
            latencies, lost = await window
            faulty.append(percentile(latencies, 0.999))
            failed += lost
        results.append(Disturbance(kind=kind, rate=rate, quiet=quiet, faulty=faulty, failed=failed))
    return results


async def recover(
    node: NodeMachines,
    voter: VoterProcess,
    *,
    keys: int,
    tries: int,
    progress: Callable[[str], None],
) -> list[RecoveryTimes]:
    """Measure from heal (put back and admit) to voting again, QEMU alive and QEMU killed."""
    results = []
    for kind in ("freeze", "kill"):
        seconds = []
        for attempt in range(tries):
            name = f"g{attempt % 3 + 1}"
            progress(f"back and voting again after {kind} of {name}")
            guest = node.guests[name]
            await (guest.kill() if kind == "kill" else guest.pause())
            await voter.wait_left(name, 30)
            began = time.perf_counter()
            await _put_back(node, voter, name)
            seconds.append(time.perf_counter() - began)
        results.append(RecoveryTimes(kind=kind, keys=keys, seconds=seconds))
    return results
