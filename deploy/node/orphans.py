"""The processes of a node: found by proof that they are the node's, and ended.

No record is needed, as it may be missing or out of date after a full disk.  A process of ours has
the node's directory as its working directory, and PROCESS_NAME in its environment.  A QEMU has the
disk of a guest open.  Both follow a directory that is moved, and neither is true of a copy.  After
the directory was deleted, its last path decides.

The supervisor's watchdog may be about to start the next supervisor.  Whoever ends or takes over the
orphans first orders the watchdog not to (`stop_watchdog`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from deploy.errors import DeployError, ForeignState
from deploy.host.child import Child
from deploy.host.identity import ProcessIdentity, identify, wait_end
from deploy.host.spawn import PROCESS_NAME
from deploy.machine.ownership import read_record
from deploy.machine.qemu import running_qemus, uses_disk
from deploy.machine.spec import Progress
from deploy.node.interfaces import NodePort
from deploy.node.records import Layout, Lock, NodeRecord

__all__ = ["NodeProcess", "end_orphans", "find_orphans", "find_processes", "stop_watchdog"]

ORPHAN_GRACE = 5.0
"""Seconds for an orphan to end after SIGTERM; then it is killed."""
SUPERVISOR_GRACE = 30.0
"""Seconds for a supervisor that was ordered to end to take its node down; then it is killed."""
_KEEPERS = ("supervisor", "watchdog")
_PASSES = 5
"""Searches for what is left at most; a process may just have started another."""


class NodeProcess(NamedTuple):
    """A process of a node: voter, standby, proxy, supervisor, watchdog, or a guest (g1, ...)."""

    name: str
    identity: ProcessIdentity

    @property
    def place(self) -> str:
        """Its command line, in which the paths are those of its start."""
        try:
            words = Path(f"/proc/{self.identity.pid}/cmdline").read_bytes()
        except OSError:
            return ""  # it has ended
        return os.fsdecode(words)


def find_processes(layout: Layout) -> list[NodeProcess]:
    """Return the processes of the node, whether or not they were recorded.

    Processes of other users are only found by root.
    """
    try:
        uuids = layout.read_node().uuids if layout.known else ()
    except ForeignState:
        uuids = ()  # then a disk of this directory is proof enough
    found = []
    for pid, name in (*_programs(layout), *_qemus(layout, uuids)):
        identity = identify(pid)
        if identity is not None:
            found.append(NodeProcess(name, identity))
    return found


def _programs(layout: Layout) -> Iterable[tuple[int, str]]:
    """Yield pid and name of each program of this project that works in the directory."""
    try:
        wanted = layout.directory.stat()
    except OSError:
        wanted = None
    deleted = f"{os.path.realpath(layout.directory)} (deleted)"
    mark = f"{PROCESS_NAME}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            place = entry / "cwd"
            if (wanted is None or not os.path.samestat(place.stat(), wanted)) and (
                os.readlink(place) != deleted
            ):
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
            standby = os.readlink(entry / "fd" / "0").startswith("socket:")
        except OSError:
            continue  # it has ended, or is another user's
        for variable in variables:
            name = variable.removeprefix(mark).decode(errors="replace")
            if variable.startswith(mark) and name:
                yield int(entry.name), "standby" if name == "voter" and standby else name


def _qemus(layout: Layout, uuids: tuple[str, ...]) -> Iterable[tuple[int, str]]:
    """Yield pid and name of each guest whose QEMU uses a disk of the directory."""
    names = [f"g{number}" for number in range(1, 10)]
    for pid, machine in running_qemus():
        known = machine in uuids
        for name in [names[uuids.index(machine) - 1]] if known else names:
            if uses_disk(pid, layout.disk(name), moved=known):
                yield pid, name
                break


def find_orphans(layout: Layout) -> dict[str, int]:
    """Return the pids of what runs of a node, by name (voter, proxy, g1, ...).

    Supervisor and watchdog are not included, nor is a standby voter, which ends with them.
    """
    return {
        process.name: process.identity.pid
        for process in find_processes(layout)
        if process.name not in (*_KEEPERS, "standby")
    }


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
                f"{names} could not be ended", remedy="repeat this as the user that started it"
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
    record = layout.read_node()
    try:
        if read_record(layout.directory) is not None:
            progress("removing the guests' files")
            asyncio.run(make_node(layout, record).down())
        for path in (*layout.stale_sockets(), layout.running):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DeployError(
            f"everything of the node has ended, but a file cannot be removed: {error}",
            remedy="remove it, or leave it for the next `trivisor up`",
        ) from error
