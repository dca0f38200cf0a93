"""The processes that a killed supervisor left: ended, or left for the next supervisor.

The supervisor's watchdog may be about to start the next one.  Whoever ends or takes over the
orphans first orders the watchdog not to (`stop_watchdog`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from deploy.errors import DeployError, ForeignState
from deploy.host.child import Child
from deploy.host.identity import ProcessIdentity, wait_end
from deploy.machine.ownership import read_record
from deploy.machine.spec import Progress
from deploy.node.interfaces import NodePort
from deploy.node.processes import NodeProcess, find_processes
from deploy.node.records import Layout, Lock, NodeRecord

__all__ = ["end_orphans", "stop_watchdog"]

ORPHAN_GRACE = 5.0
"""Seconds for an orphan to end after SIGTERM; then it is killed."""
SUPERVISOR_GRACE = 30.0
"""Seconds for a supervisor that was ordered to end to take its node down; then it is killed."""
_PASSES = 5
"""Searches for what is left at most; a process may just have started another."""


def stop_watchdog(layout: Layout, number: signal.Signals) -> bool:
    """Order the node's watchdog to start no supervisor; return whether one runs.

    SIGTERM also ends a supervisor that it has just started; SIGHUP does not.
    """
    watchdogs = [process for process in find_processes(layout) if process.name == "watchdog"]
    for watchdog in watchdogs:
        _signal(watchdog.identity, number)
    return bool(watchdogs)


def _signal(identity: ProcessIdentity, number: signal.Signals) -> None:
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if identity.alive:  # checked after the pidfd was opened: the pid cannot be reused now
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def end_orphans(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> list[str]:
    """End everything of a node, and nothing else; return the names of what ran.

    A supervisor has SUPERVISOR_GRACE seconds to do it.  Raises AlreadyUp if another one starts
    meanwhile, ForeignState or DeployError if files or processes could not be removed.
    """
    ended: list[str] = []
    watched = stop_watchdog(layout, signal.SIGTERM)
    for process in find_processes(layout):
        if process.name == "supervisor":
            progress(f"ending the supervisor (process {process.identity.pid})")
            _signal(process.identity, signal.SIGTERM)
            if not wait_end(process.identity.pid, SUPERVISOR_GRACE):
                _signal(process.identity, signal.SIGKILL)
                wait_end(process.identity.pid, ORPHAN_GRACE)
            ended.append("supervisor")
    lock = Lock(layout)
    try:
        if layout.known:
            lock.take()
    except ForeignState as error:  # it became read-only: no supervisor can start in it either
        progress(f"without a lock: {error.problem}")
    try:
        for _ in range(_PASSES):
            left = find_processes(layout)
            if not left:
                break
            ended += [each.name for each in left if each.name not in (*ended, "watchdog")]
            asyncio.run(_end(left, progress))
        _remove_files(layout, make_node, progress)
        left = find_processes(layout)
        if left:
            names = ", ".join(f"{each.name} (process {each.identity.pid})" for each in left)
            raise DeployError(
                f"{names} could not be ended",
                remedy="repeat this as the user that started it",
                error_code="TV0712",
            )
    finally:
        lock.release()
    return ended or (["supervisor"] if watched else [])


async def _end(processes: list[NodeProcess], progress: Progress) -> None:
    """End processes: the guests at once, the watchdog last, as it ends with its children."""
    for name, identity in sorted(processes, key=lambda each: each.name == "watchdog"):
        child = Child.adopt(identity)
        if child is None:
            continue
        progress(f"ending {name} (process {identity.pid})")
        try:
            if name.startswith("g"):
                child.signal(signal.SIGKILL)
            await child.end(ORPHAN_GRACE)
        except PermissionError:
            progress(f"{name} belongs to another user: libvirt has to end it")


def _remove_files(
    layout: Layout, make_node: Callable[[Layout, NodeRecord], NodePort], progress: Progress
) -> None:
    """Remove what a node that does not run any more has left.  Raises DeployError."""
    if not layout.known:
        return
    try:
        record = layout.read_node()
        if read_record(layout.directory) is not None:
            progress("removing the guests' files")
            asyncio.run(make_node(layout, record).down())
    except ForeignState as error:
        progress(f"the guests' files are left: {error}")
    try:
        for path in (*layout.stale_sockets(), layout.running):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DeployError(
            f"everything of the node has ended, but a file cannot be removed: {error}",
            remedy="remove it, or leave it for the next `trivisor up`",
            error_code="TV0713",
        ) from error
