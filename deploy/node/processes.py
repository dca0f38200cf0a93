"""The processes of a node, found by proof that they are the node's.

No record is needed, as it may be missing or out of date after a full disk: see
``deploy.host.search``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from deploy.errors import ForeignState
from deploy.host.identity import ProcessIdentity, identify
from deploy.host.search import command_line, programs_in, running_qemus, uses_disk
from deploy.node.records import Layout

__all__ = ["NodeProcess", "find_orphans", "find_processes"]


class NodeProcess(NamedTuple):
    """A process of a node: voter, standby, proxy, supervisor, watchdog, or a guest (g1, ...)."""

    name: str
    identity: ProcessIdentity

    @property
    def command_line(self) -> str:
        """Its command line, in which the paths are those of its start; empty if it has ended."""
        return "\0".join(command_line(self.identity.pid))


def find_processes(layout: Layout) -> list[NodeProcess]:
    """Return the processes of the node, whether or not they were recorded.

    Processes of other users are only found by root.
    """
    try:
        uuids = layout.read_node().uuids if layout.known else ()
    except ForeignState:
        uuids = ()  # then a disk of this directory is proof enough
    found = []
    for pid, name in (*programs_in(layout.directory), *_qemus(layout, uuids)):
        identity = identify(pid)
        if identity is not None:
            found.append(NodeProcess(name, identity))
    return found


def _qemus(layout: Layout, uuids: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield pid and name of each guest whose QEMU uses a disk of the directory."""
    names = [f"g{number}" for number in range(1, 11)]
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
        if process.name not in ("supervisor", "watchdog", "standby")
    }
