"""How many guests fit on this host, and what each costs: memory, boot time, an idle processor.

Nodes of 1, 2, ... guests are booted one after another, all guests of a node at once.  Of the
guests' QEMU processes the kernel tells the resident memory (RSS), and the proportional one (PSS),
in which a page that several map (QEMU's own code, libraries) counts once, divided among them:
PSS adds up, RSS does not.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from faultinject.bench import rig
from faultinject.bench.usage import cpu_seconds
from faultinject.host_facts import look_at_host
from faultinject.results.guest_capacity import Crowd, CrowdPlan, CrowdReport, Memory

__all__ = ["Crowd", "CrowdPlan", "CrowdReport", "Memory", "marginal", "memory_of", "run_crowd"]

SETTLE = 3.0
"""Seconds over which the processor time of idle guests is counted."""


def _field(path: Path, wanted: Sequence[str]) -> list[int]:
    """Values in bytes of a file of lines "Name:  123 kB".  Raises OSError."""
    found = dict.fromkeys(wanted, 0)
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] += int(rest.split()[0]) * 1024
    return list(found.values())


def memory_of(pids: Iterable[int]) -> Memory:
    """Return what these processes occupy together.  Raises OSError."""
    names = ("Rss", "Pss", "Private_Clean", "Private_Dirty", "Swap")
    total = [0] * len(names)
    for pid in pids:
        values = _field(Path(f"/proc/{pid}/smaps_rollup"), names)
        total = [before + value for before, value in zip(total, values, strict=True)]
    rss, pss, clean, dirty, swapped = total
    return Memory(rss=rss, pss=pss, private=clean + dirty, swapped=swapped)


def marginal(crowds: Sequence[Crowd]) -> int:
    """Return the PSS of one guest more: the slope over the nodes; of one node, its share."""
    if len(crowds) == 1:
        return crowds[0].memory.pss // crowds[0].guests
    line = statistics.linear_regression(
        [each.guests for each in crowds], [each.memory.pss for each in crowds]
    )
    return round(line.slope)


def _ksm() -> bool:
    path = Path("/sys/kernel/mm/ksm/run")
    return path.exists() and path.read_text().strip() == "1"


def _host_memory() -> tuple[int, int]:
    total, available = _field(Path("/proc/meminfo"), ("MemTotal", "MemAvailable"))
    return total, available


def run_crowd(plan: CrowdPlan, cache: Path, progress: Callable[[str], None]) -> CrowdReport:
    """Boot the nodes one after another.  Raises DeployError, ImageError, OSError, TimeoutError."""
    return asyncio.run(_run(plan, cache, progress))


async def _run(plan: CrowdPlan, cache: Path, progress: Callable[[str], None]) -> CrowdReport:
    load = float(Path("/proc/loadavg").read_text().split()[0])
    total, available = _host_memory()
    crowds: list[Crowd] = []
    accel = ""
    # One for all: a process opens libvirt's embedded driver in one directory only.
    directory = Path(tempfile.mkdtemp(prefix="tvc-"))
    try:
        for guests in range(1, plan.most + 1):
            crowd, accel = await _boot(plan, guests, directory, cache, progress)
            crowds.append(crowd)
            progress(
                f"{guests} guest{'s' if guests > 1 else ''}: ready in {crowd.seconds:.1f} s, "
                f"{crowd.memory.pss / 2**20 / guests:.0f} MiB each"
            )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    each = marginal(crowds)
    return CrowdReport(
        plan=plan,
        host=look_at_host(accel=accel, load_before=load),
        total=total,
        available=available,
        ksm=_ksm(),
        crowds=tuple(crowds),
        each=each,
        fit=max(0, int((available - total / 10) // each)),
    )


async def _boot(
    plan: CrowdPlan, guests: int, directory: Path, cache: Path, progress: Callable[[str], None]
) -> tuple[Crowd, str]:
    node = await rig.plan_guests(
        directory, cache, guests, plan.accel, progress if guests == 1 else lambda _: None,
        service=plan.service, memory_mib=plan.memory,
    )  # fmt: skip
    _, before = _host_memory()
    began = time.monotonic()
    try:
        arrivals = await node.up()
        seconds = time.monotonic() - began
        pids = [guest.pid for guest in node.guests.values() if guest.pid is not None]
        _, after = _host_memory()
        memory = memory_of(pids)
        used, since = cpu_seconds(pids), time.monotonic()
        await asyncio.sleep(SETTLE)  # the window that is measured
        idle = (cpu_seconds(pids) - used) / (time.monotonic() - since)
    finally:
        await node.down()
    ready = tuple(round(each.seconds, 3) for each in arrivals.values())
    crowd = Crowd(
        guests=guests, ready=ready, seconds=seconds, memory=memory, taken=before - after, idle=idle
    )
    return crowd, node.spec.guests[0].accel
