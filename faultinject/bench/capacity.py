"""``trivisor bench guests``: how many guests fit on this host, and what each costs.

Nodes of 1, 2, ... guests boot one after another, all guests of a node at once.  The run reads the
resident memory (RSS) and the proportional one (PSS) of their QEMU processes.  A page that several
processes map counts in each RSS.  PSS divides it among them, so PSS adds up and RSS does not.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from faultinject.bench import rig
from faultinject.bench.usage import cpu_seconds, host_memory, memory_of
from faultinject.host_facts import describe_host
from faultinject.results.guest_capacity import Crowd, CrowdPlan, CrowdReport

__all__ = ["marginal", "run_capacity"]

IDLE_WINDOW = 3.0
"""Seconds over which the processor time of idle guests is counted."""


def marginal(crowds: Sequence[Crowd]) -> int:
    """Return the PSS of one more guest: the slope over the nodes, or a single node's share."""
    if len(crowds) == 1:
        return crowds[0].memory.pss // crowds[0].guests
    line = statistics.linear_regression(
        [each.guests for each in crowds], [each.memory.pss for each in crowds]
    )
    return round(line.slope)


def _merges_pages() -> bool:
    path = Path("/sys/kernel/mm/ksm/run")
    return path.exists() and path.read_text().strip() == "1"


def run_capacity(plan: CrowdPlan, progress: Callable[[str], None]) -> CrowdReport:
    """Boot the nodes one after another.  Raises DeployError, ImageError, OSError, TimeoutError."""
    # One directory for all nodes: a process can open libvirt's embedded driver in one only.
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "g")


async def _run(plan: CrowdPlan, directory: Path, progress: Callable[[str], None]) -> CrowdReport:
    load = os.getloadavg()[0]
    total, available = host_memory()
    crowds: list[Crowd] = []
    accel = ""
    for guests in range(1, plan.most + 1):
        crowd, accel = await _boot(plan, guests, directory, progress)
        crowds.append(crowd)
        progress(
            f"{guests} guest{'s' if guests > 1 else ''}: ready in {crowd.seconds:.1f} s, "
            f"{crowd.memory.pss / 2**20 / guests:.0f} MiB each"
        )
    each = marginal(crowds)
    return CrowdReport(
        plan=plan,
        host=describe_host(accel=accel, load_before=load),
        total=total,
        available=available,
        ksm=_merges_pages(),
        crowds=tuple(crowds),
        each=each,
        fit=max(0, int((available - total / 10) // each)),
    )


async def _boot(
    plan: CrowdPlan, guests: int, directory: Path, progress: Callable[[str], None]
) -> tuple[Crowd, str]:
    """Boot a node, measure it, stop it; return the measurements and the accelerator."""
    node = await rig.plan_guests(
        directory, guests, plan.accel, progress if guests == 1 else lambda _: None,
        service=plan.service, memory_mib=plan.memory,
    )  # fmt: skip
    _, before = host_memory()
    began = time.monotonic()
    try:
        arrivals = await node.up()
        seconds = time.monotonic() - began
        pids = [guest.pid for guest in node.guests.values() if guest.pid is not None]
        _, after = host_memory()
        memory = memory_of(pids)
        used, since = cpu_seconds(pids), time.monotonic()
        await asyncio.sleep(IDLE_WINDOW)  # the window that is measured
        idle = (cpu_seconds(pids) - used) / (time.monotonic() - since)
    finally:
        await node.down()
    ready = tuple(round(each.seconds, 3) for each in arrivals.values())
    crowd = Crowd(
        guests=guests, ready=ready, seconds=seconds, memory=memory, taken=before - after, idle=idle
    )
    return crowd, node.spec.guests[0].accel
