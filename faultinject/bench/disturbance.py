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
from faultinject.load import Arrivals, FailedRequest, Start, percentile, window

__all__ = ["Disturbance", "Failures", "RecoveryTimes", "disturb", "group_failures", "recover"]

WINDOW = 4.0
"""Seconds of one window."""

Failure = Literal["kill", "freeze"]


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of failure over pairs of windows: p99.9 in seconds without and with it."""

    kind: str
    rate: float  # requests a second
    quiet: list[float]
    faulty: list[float]
    failures: list[Failures]  # in all windows

    @property
    def failed(self) -> int:
        """Failed requests in all windows."""
        return sum(each.requests for each in self.failures)

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


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that failed alike in one window.  Times in seconds after the window's begin."""

    window: str  # "quiet", or the guest that failed
    pair: int
    kind: str
    text: str  # of the first one
    requests: int
    first: float  # when the first of them was due
    last: float
    restoring: float = 0.0  # when the guest's repair began; 0 in a quiet window
    voting: float = 0.0  # when it voted again

    def __str__(self) -> str:
        where = f"quiet window {self.pair}"
        if self.voting:
            where = (
                f"window {self.pair}: {self.window} fails at {WINDOW / 8:g} s, its repair begins "
                f"at {self.restoring:.2f} s, it votes at {self.voting:.2f} s"
            )
        return (
            f"{self.requests} {self.kind}, due {self.first:.2f} to {self.last:.2f} s ({where}): "
            f"{self.text}"
        )


def group_failures(
    load: Arrivals, *, window: str, pair: int, restoring: float = 0.0, voting: float = 0.0
) -> list[Failures]:
    """Return the failed requests of a window, grouped by the name of their error."""
    groups: dict[str, list[FailedRequest]] = {}
    for each in load.failed:
        groups.setdefault(each.kind, []).append(each)
    return [
        Failures(
            window=window, pair=pair, kind=kind, text=found[0].text, requests=len(found),
            first=min(each.due for each in found), last=max(each.due for each in found),
            restoring=restoring, voting=voting,
        )
        for kind, found in groups.items()
    ]  # fmt: skip


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
        windows, failures = [], []
        for pair in range(pairs):
            name = f"g{pair % 3 + 1}"
            progress(f"{kind} {name} under {rate:.0f} requests/s ({pair + 1} of {pairs})")
            await voter.wait_active()  # one fault at a time
            quiet = await window(start, rate, WINDOW)
            during = asyncio.create_task(window(start, rate, WINDOW))
            # The times of failure and repair inside the window are part of the experiment.
            await asyncio.sleep(WINDOW / 8)
            await _fail(node, name, kind)
            await asyncio.sleep(WINDOW / 8)
            restoring = time.perf_counter()
            await return_guest(node, voter, name)
            voting, faulty = time.perf_counter(), await during
            windows.append((quiet, faulty))
            failures += group_failures(quiet, window="quiet", pair=pair + 1)
            failures += group_failures(
                faulty, window=name, pair=pair + 1, restoring=restoring - faulty.began,
                voting=voting - faulty.began,
            )  # fmt: skip
        results.append(
            Disturbance(
                kind=kind,
                rate=rate,
                quiet=[percentile(quiet.latencies, 0.999) for quiet, _ in windows],
                faulty=[percentile(faulty.latencies, 0.999) for _, faulty in windows],
                failures=failures,
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
