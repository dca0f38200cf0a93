"""How a failing guest disturbs other requests, and how soon the guest votes again.

Requests start at fixed times, at half of the measured throughput, and latency counts from the time
a request was due.  So a stall shows in full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median
from typing import Literal

import msgspec

from deploy.machine.node_machines import NodeMachines
from faultinject.bench.rig import VoterProcess, return_guest
from faultinject.load import Start, percentile, window

__all__ = ["Disturbance", "RecoveryTimes", "disturb", "recover"]

WINDOW = 4.0
"""Seconds of one window."""

Failure = Literal["kill", "freeze"]


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of failure over pairs of windows: p99.9 in seconds without and with it."""

    kind: str
    rate: float  # requests a second
    quiet: list[float]
    faulty: list[float]
    failed: int  # requests, in all windows

    @property
    def added(self) -> float:
        """What the failure adds to p99.9, seconds: the median over pairs."""
        return median(self._differences())

    @property
    def worst(self) -> float:
        """The most that it adds in one pair, seconds."""
        return max(self._differences())

    def _differences(self) -> list[float]:
        return [faulty - quiet for quiet, faulty in zip(self.quiet, self.faulty, strict=True)]


class RecoveryTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the start of the repair until the guest votes, of each try."""

    kind: str
    keys: int
    seconds: list[float]


async def _fail(node: NodeMachines, name: str, kind: Failure) -> None:
    guest = node.guests[name]
    await (guest.kill() if kind == "kill" else guest.pause())


async def disturb(
    node: NodeMachines,
    voter: VoterProcess,
    start: Start,
    *,
    rate: float,
    pairs: int,
    progress: Callable[[str], None],
) -> list[Disturbance]:
    """Compare a quiet window with one in which a guest fails and returns, guest after guest."""
    results = []
    kinds: tuple[Failure, ...] = ("kill", "freeze")
    for kind in kinds:
        windows = []
        for pair in range(pairs):
            name = f"g{pair % 3 + 1}"
            progress(f"{kind} {name} under {rate:.0f} requests/s ({pair + 1} of {pairs})")
            quiet = await window(start, rate, WINDOW)
            during = asyncio.create_task(window(start, rate, WINDOW))
            # The times of failure and repair inside the window are part of the experiment.
            await asyncio.sleep(WINDOW / 8)
            await _fail(node, name, kind)
            await asyncio.sleep(WINDOW / 8)
            await return_guest(node, voter, name)
            windows.append((quiet, await during))
        results.append(
            Disturbance(
                kind=kind,
                rate=rate,
                quiet=[percentile(quiet.latencies, 0.999) for quiet, _ in windows],
                faulty=[percentile(faulty.latencies, 0.999) for _, faulty in windows],
                failed=sum(each.failures.total() for pair in windows for each in pair),
            )
        )
    return results


async def recover(
    node: NodeMachines,
    voter: VoterProcess,
    *,
    keys: int,
    tries: int,
    progress: Callable[[str], None],
) -> list[RecoveryTimes]:
    """Measure the repair of a guest whose QEMU is alive (freeze) and of one whose QEMU is dead."""
    results = []
    kinds: tuple[Failure, ...] = ("freeze", "kill")
    for kind in kinds:
        seconds = []
        for attempt in range(tries):
            name = f"g{attempt % 3 + 1}"
            progress(f"recovery of {name} after {kind}")
            await _fail(node, name, kind)
            await voter.wait_inactive(name)
            began = time.perf_counter()
            await return_guest(node, voter, name)
            seconds.append(time.perf_counter() - began)
        results.append(RecoveryTimes(kind=kind, keys=keys, seconds=seconds))
    return results
