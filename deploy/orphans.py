"""What a supervisor that was killed left running: found by what proves it the node's, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deploy.child import Child
from deploy.ports import NodePort, Progress
from deploy.process import find_qemu
from deploy.records import Layout, Lock, NodeRecord, Running

__all__ = ["end_orphans", "find_orphans"]

ORPHAN_GRACE = 5.0
"""Seconds for a process that a dead supervisor left to end by itself."""


def find_orphans(layout: Layout) -> dict[str, int]:
    """Return what runs of a node, provably its own, by name (voter, proxy, g1, ...): its pid.

    The supervisor is not among them.  Raises ForeignState.
    """
    if not layout.known:
        return {}
    found = {
        name: identity.pid
        for name, identity in layout.read_running().processes.items()
        if name != "supervisor" and identity.alive
    }
    record = layout.read_node()
    for number, guest in enumerate(record.uuids[1:], start=1):
        pid = find_qemu(guest, naming=f"{layout.directory}/g{number}.qcow2")
        if pid is not None:
            found[f"g{number}"] = pid
    return found


def end_orphans(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> list[str]:
    """End what a dead supervisor left of a node, and nothing else; return the names of what ran.

    Raises AlreadyUp if a supervisor lives, ForeignState, DeployError.
    """
    lock = Lock(layout)
    lock.take()
    try:
        orphans = find_orphans(layout)
        if orphans:
            asyncio.run(_end(layout, make_node, progress))
            layout.write(Running())
        for path in layout.own_sockets():
            path.unlink(missing_ok=True)
        return list(orphans)
    finally:
        lock.release()


async def _end(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> None:
    for name, identity in layout.read_running().processes.items():
        child = Child.adopt(identity)
        if child is not None:
            progress(f"ending {name} (process {identity.pid})")
            await child.end(ORPHAN_GRACE)
    progress("ending the guests")
    await make_node(layout, layout.read_node()).down()
