"""The processes that a killed supervisor left: found by proof that they are the node's, and ended.

The supervisor's watchdog may be about to start the next one.  Whoever ends or takes over the
orphans first orders the watchdog not to (`stop_watchdog`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from deploy.errors import AlreadyUp
from deploy.host.child import Child
from deploy.host.identity import wait_end
from deploy.machine.qemu import find_qemu
from deploy.machine.spec import Progress
from deploy.node.interfaces import NodePort
from deploy.node.records import Layout, Lock, NodeRecord, RunningRecord

__all__ = ["end_orphans", "find_orphans", "stop_watchdog"]

ORPHAN_GRACE = 5.0
"""Seconds for an orphan to end after SIGTERM; then it is killed."""
LOCK_TIMEOUT = 30.0
"""Seconds for a supervisor that was just starting to take its node down again."""


def find_orphans(layout: Layout) -> dict[str, int]:
    """Return the pids of what provably belongs to a node, by name (voter, proxy, g1, ...).

    Supervisor and watchdog are not included.  Raises ForeignState.
    """
    if not layout.known:
        return {}
    found = {
        name: identity.pid
        for name, identity in layout.read_running().processes.items()
        if name not in ("supervisor", "watchdog") and identity.alive
    }
    record = layout.read_node()
    for number, guest in enumerate(record.uuids[1:], start=1):
        pid = find_qemu(guest, naming=f"{layout.directory}/g{number}.qcow2")
        if pid is not None:
            found[f"g{number}"] = pid
    return found


def stop_watchdog(layout: Layout, number: signal.Signals) -> bool:
    """Order the node's watchdog to start no supervisor; return whether one runs.

    SIGTERM also ends a supervisor that it has just started; SIGHUP does not.  Raises ForeignState.
    """
    watchdog = layout.find_watchdog()
    if watchdog is None:
        return False
    try:
        pidfd = os.pidfd_open(watchdog.pid)
    except ProcessLookupError:
        return True
    try:
        if watchdog.alive:  # checked after the pidfd was opened: the pid cannot be reused now
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
    return True


def end_orphans(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> list[str]:
    """End what a dead supervisor left of a node, and nothing else; return the names of what ran.

    Raises AlreadyUp if a supervisor runs, ForeignState, DeployError.
    """
    watched = stop_watchdog(layout, signal.SIGTERM)
    lock = Lock(layout)
    _take(lock)
    try:
        orphans = find_orphans(layout)
        if orphans:
            asyncio.run(_end(layout, make_node, progress))
            layout.write(RunningRecord())
        for path in layout.stale_sockets():
            path.unlink(missing_ok=True)
        return list(orphans) or (["supervisor"] if watched else [])
    finally:
        lock.release()


def _take(lock: Lock) -> None:
    """Take the lock, after the end of a supervisor that was just ordered to end."""
    try:
        lock.take()
    except AlreadyUp:
        holder = lock.holder()
        if holder is not None and not wait_end(holder, LOCK_TIMEOUT):
            raise
        lock.take()


async def _end(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> None:
    for name, identity in layout.read_running().processes.items():
        child = None if name == "watchdog" else Child.adopt(identity)  # ends with its children
        if child is not None:
            progress(f"ending {name} (process {identity.pid})")
            await child.end(ORPHAN_GRACE)
    progress("ending the guests")
    await make_node(layout, layout.read_node()).down()
