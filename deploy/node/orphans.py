"""What a supervisor that was killed left running: found by what proves it the node's, and ended.

Its nanny may be about to start another one: whoever ends or takes over what was left tells it first
that it need not.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from deploy.errors import AlreadyUp
from deploy.host.child import Child
from deploy.host.process import find_qemu
from deploy.node.interfaces import NodePort, Progress
from deploy.node.records import Layout, Lock, NodeRecord, RunningRecord
from deploy.node.succession import find_nanny, stand_down, wait_end

__all__ = ["end_orphans", "find_orphans"]

ORPHAN_GRACE = 5.0
"""Seconds for a process that a dead supervisor left to end by itself."""
LOCK_PATIENCE = 30.0
"""Seconds for a supervisor that was starting to take its node down again."""


def find_orphans(layout: Layout) -> dict[str, int]:
    """Return what runs of a node, provably its own, by name (voter, proxy, g1, ...): its pid.

    Supervisor and nanny are not among them.  Raises ForeignState.
    """
    if not layout.known:
        return {}
    found = {
        name: identity.pid
        for name, identity in layout.read_running().processes.items()
        if name not in ("supervisor", "nanny") and identity.alive
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
    nursed = find_nanny(layout) is not None
    stand_down(layout, signal.SIGTERM)
    lock = Lock(layout)
    _take_patiently(lock)
    try:
        orphans = find_orphans(layout)
        if orphans:
            asyncio.run(_end(layout, make_node, progress))
            layout.write(RunningRecord())
        for path in layout.own_sockets():
            path.unlink(missing_ok=True)
        return list(orphans) or (["supervisor"] if nursed else [])
    finally:
        lock.release()


def _take_patiently(lock: Lock) -> None:
    """Take the lock, also if a supervisor that was just told to end has it for a while."""
    try:
        lock.take()
    except AlreadyUp:
        holder = lock.holder()
        if holder is not None and not wait_end(holder, LOCK_PATIENCE):
            raise
        lock.take()


async def _end(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> None:
    for name, identity in layout.read_running().processes.items():
        child = None if name == "nanny" else Child.adopt(identity)  # that one ends by itself
        if child is not None:
            progress(f"ending {name} (process {identity.pid})")
            await child.end(ORPHAN_GRACE)
    progress("ending the guests")
    await make_node(layout, layout.read_node()).down()
