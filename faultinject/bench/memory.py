"""Whether the voter's memory stays flat: very many writes over a bounded set of keys, in sessions,
and the resident memory of voter and replicas looked at every so many.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import msgspec

from deploy.node.records import Durability
from faultinject.bench import rig
from faultinject.bench.usage import family, resident
from faultinject.host_facts import DiskFacts, Host, look_at_disk, look_at_host
from guests.protocol.message import encode_request
from voter.client import Client
from voter.errors import RequestError

__all__ = ["MemoryPlan", "MemoryReport", "Sample", "growth", "run_memory"]

BODY = b"x" * 64
WARM = 0.2
"""Part of the run after which memory has to be flat: tables and logs have their size by then."""
MOST_GROWTH = 0.05


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for."""

    requests: int
    every: int  # requests between two samples
    keys: int
    sessions: int  # each on a connection of its own
    in_flight: int  # of all sessions together
    durability: Durability


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """After so many requests, at so many seconds: resident memory, and the journal's size on disk,
    in bytes.
    """

    requests: int
    seconds: float
    voter: int
    replicas: int
    journal: int


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The samples, and the voter's growth after the warm part: last samples over first ones."""

    plan: MemoryPlan
    seconds: float
    host: Host
    disk: DiskFacts
    samples: list[Sample]
    growth: float

    @property
    def flat(self) -> bool:
        """Whether the voter has grown no more than may be."""
        return self.growth <= MOST_GROWTH


def growth(samples: list[Sample]) -> float:
    """Return by which part the voter has grown after the warm part of a run.

    It compares the largest of the last quarter of the rest with the largest of its first one: what
    comes and goes (a checkpoint on its way) is in both.  0 with too few samples.
    """
    rest = [each.voter for each in samples[int(WARM * len(samples)) :]]
    quarter = len(rest) // 4
    if not quarter:
        return 0.0
    return max(rest[-quarter:]) / max(rest[:quarter]) - 1


def run_memory(
    plan: MemoryPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> MemoryReport:
    """Run it; the journal lies below ``scratch``.

    Raises OSError, TimeoutError, and RequestError for a request that was not done.
    """
    directory = Path(tempfile.mkdtemp(prefix="tv-memory-", dir=scratch))
    try:
        return asyncio.run(_run(plan, directory, progress))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _run(plan: MemoryPlan, directory: Path, progress: Callable[[str], None]) -> MemoryReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    disk = look_at_disk(directory)
    children = rig.ChildProcesses()
    try:
        progress(f"starting a voter with durability {plan.durability}, three process replicas")
        home = directory / "voter"
        running = await rig.voter(
            children, home, [f"exec:{rig.AGENT}"] * 3, durability=plan.durability
        )
        clients = [await Client.connect(running.native) for _ in range(plan.sessions)]
        pids = family(running.pid)  # later there are also those that make digests
        samples = await _drive(plan, clients, lambda: _look(pids, home / "journal"), progress)
        for client in clients:
            await client.close()
    finally:
        await children.stop()
    return MemoryReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=look_at_host(accel="", load_before=load),
        disk=disk,
        samples=samples,
        growth=growth(samples),
    )


def _look(pids: list[int], journal: Path) -> tuple[int, int, int]:
    """Memory of the voter (the first) and of its replicas, and bytes of the journal's files."""
    voter, *replicas = pids
    size = 0
    if journal.is_dir():
        for entry in os.scandir(journal):
            try:
                size += entry.stat().st_size
            except FileNotFoundError:
                continue  # a segment that has just been removed
    return resident(voter), sum(resident(each) for each in replicas), size


async def _drive(
    plan: MemoryPlan,
    clients: list[Client],
    look: Callable[[], tuple[int, int, int]],
    progress: Callable[[str], None],
) -> list[Sample]:
    requests = cycle(
        [encode_request("PUT", f"/kv/key-{n:05d}", (), BODY) for n in range(plan.keys)]
    )
    began = time.monotonic()
    samples: list[Sample] = []
    started = done = 0

    def sample() -> None:
        seconds = time.monotonic() - began
        voter, replicas, journal = look()
        samples.append(
            Sample(requests=done, seconds=seconds, voter=voter, replicas=replicas, journal=journal)
        )
        progress(
            f"{done} requests ({done / max(seconds, 1e-9):.0f}/s): voter {voter / 2**20:.1f} MiB, "
            f"replicas {replicas / 2**20:.0f} MiB, journal {journal / 2**20:.0f} MiB"
        )

    async def work(client: Client) -> None:
        nonlocal started, done
        while started < plan.requests:
            started += 1
            _, reply = await client.ask(next(requests))
            if reply[9:10] != b"2":
                raise RequestError(f"a PUT was answered {reply[:60]!r}")
            done += 1
            if done % plan.every == 0:
                sample()

    sample()
    async with asyncio.TaskGroup() as group:
        for at in range(plan.in_flight):
            group.create_task(work(clients[at % len(clients)]))
    return samples
