"""``trivisor bench memory``: whether the voter's memory stays flat over very many writes.

The writes go to a bounded set of keys, in sessions.  The run samples the resident memory of the
voter and its replicas every so many writes; ``plot_memory`` draws the samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from deploy.host.install import require_libraries
from deploy.node.records import Durability
from faultinject.bench import rig
from faultinject.bench.usage import family, resident
from faultinject.host_facts import DiskFacts, Host, describe_host, measure_disk
from voter.client import Client
from voter.client.errors import RequestError

__all__ = [
    "MemoryPlan", "MemoryReport", "Sample", "growth", "plot_memory", "require_plotting",
    "run_memory",
]  # fmt: skip

MIB = 1 << 20
WARM_UP = 0.2
"""Part of the samples after which memory has to be flat: tables and logs are full by then."""
GROWTH_LIMIT = 0.05
"""Growth after the warm-up that still counts as flat."""


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for."""

    requests: int
    every: int  # requests between two samples
    keys: int
    sessions: int  # each on a connection of its own
    in_flight: int  # of all sessions together
    durability: Durability


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory, and the journal's size on disk, in bytes, after so many requests."""

    requests: int
    seconds: float
    voter: int
    replicas: int
    journal: int


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The samples, and the voter's growth after the warm-up."""

    plan: MemoryPlan
    seconds: float
    host: Host
    disk: DiskFacts
    samples: list[Sample]
    growth: float

    @property
    def flat(self) -> bool:
        """Whether the voter stayed within the limit."""
        return self.growth <= GROWTH_LIMIT


def growth(samples: list[Sample]) -> float:
    """Return by which part the voter grew after the warm-up; 0 with too few samples.

    It compares the largest sample of the last quarter with the largest of the first quarter, so
    that temporary memory (a checkpoint in transfer) counts in both.
    """
    rest = [each.voter for each in samples[int(WARM_UP * len(samples)) :]]
    quarter = len(rest) // 4
    if not quarter:
        return 0.0
    return max(rest[-quarter:]) / max(rest[:quarter]) - 1


def run_memory(
    plan: MemoryPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> MemoryReport:
    """Start a voter, drive it, stop it; its journal is below ``scratch``.

    Raises OSError, TimeoutError, and RequestError for a request that was not executed.
    """
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "memory", scratch)


async def _run(plan: MemoryPlan, directory: Path, progress: Callable[[str], None]) -> MemoryReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    disk = measure_disk(directory)
    home = directory / "voter"
    async with rig.ChildProcesses() as children, contextlib.AsyncExitStack() as stack:
        progress(f"starting a voter with durability {plan.durability}, three process replicas")
        voter = await rig.process_voter(children, home, plan.durability)
        clients = [
            await stack.enter_async_context(await Client.connect(voter.native))
            for _ in range(plan.sessions)
        ]
        pids = family(voter.pid)  # later there are also processes that compute digests
        samples = await _drive(plan, clients, lambda: _measure(pids, home / "journal"), progress)
    return MemoryReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=describe_host(accel="", load_before=load),
        disk=disk,
        samples=samples,
        growth=growth(samples),
    )


def _measure(pids: list[int], journal: Path) -> tuple[int, int, int]:
    """Return the memory of the voter (the first) and of its replicas, and the journal's bytes."""
    voter, *replicas = pids
    size = 0
    if journal.is_dir():
        for entry in os.scandir(journal):
            try:
                size += entry.stat().st_size
            except FileNotFoundError:
                continue  # a segment removed meanwhile
    return resident(voter), sum(resident(each) for each in replicas), size


async def _drive(
    plan: MemoryPlan,
    clients: list[Client],
    measure: Callable[[], tuple[int, int, int]],
    progress: Callable[[str], None],
) -> list[Sample]:
    requests = rig.puts(plan.keys)
    began = time.monotonic()
    samples: list[Sample] = []
    started = done = 0

    def sample() -> None:
        seconds = time.monotonic() - began
        voter, replicas, journal = measure()
        samples.append(
            Sample(requests=done, seconds=seconds, voter=voter, replicas=replicas, journal=journal)
        )
        progress(
            f"{done} requests ({done / max(seconds, 1e-9):.0f}/s): voter {voter / MIB:.1f} MiB, "
            f"replicas {replicas / MIB:.0f} MiB, journal {journal / MIB:.0f} MiB"
        )

    async def work(client: Client) -> None:
        nonlocal started, done
        while started < plan.requests:
            started += 1
            _, reply = await client.ask(next(requests))
            if reply[9:10] != b"2":
                raise RequestError(f"a PUT was answered {reply[:60]!r}", error_code="TV0803")
            done += 1
            if done % plan.every == 0:
                sample()

    sample()
    async with asyncio.TaskGroup() as group:
        for at in range(plan.in_flight):
            group.create_task(work(clients[at % len(clients)]))
    return samples


def require_plotting() -> None:
    """Raise CannotRunHere without matplotlib: call it before a long run."""
    require_libraries("matplotlib", purpose="pictures (--plot)")


def plot_memory(report: MemoryReport, path: Path) -> None:
    """Draw memory over requests; the format is that of the file's ending.  Raises OSError."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

    plan, samples = report.plan, report.samples
    requests = [each.requests for each in samples]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(requests, [each.voter / MIB for each in samples], label="voter")
    axes.plot(
        requests, [each.replicas / MIB / 3 for each in samples],
        label="replica (mean of three processes)", linestyle="--",
    )  # fmt: skip
    axes.set_xlabel("writes done")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"{plan.requests:,} writes to {plan.keys:,} keys, {plan.sessions} sessions, durability "
        f"{plan.durability}: voter {report.growth:+.1%} after the warm-up",
        fontsize="medium",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
