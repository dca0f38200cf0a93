"""The end of a soak's node: taken down however it stands, then looked for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from deploy.commands.control_client import NotUp, ask
from deploy.host.identity import wait_end
from deploy.node.configuration import make_machines
from deploy.node.orphans import end_orphans
from deploy.node.records import Layout
from voter.commands.terminal import CommandError

__all__ = ["leftovers", "take_down"]

RETURN_PATIENCE = 20.0
"""Seconds for a supervisor that was killed to be there again."""
DOWN_DEADLINE = 60.0


def take_down(layout: Layout) -> None:
    """End all of the node; a supervisor that is gone is waited for, or done without.

    Raises DeployError, CommandError.
    """
    if not layout.known:
        return
    try:
        said = ask(layout, "GET", "/status", patience=RETURN_PATIENCE)["supervisor"]
        ask(layout, "POST", "/down", timeout=DOWN_DEADLINE)
    except NotUp:
        end_orphans(layout, make_machines, lambda _: None)
        return
    for pid in (said["pid"], said["watchdog"]):
        if pid is not None and not wait_end(pid, DOWN_DEADLINE):
            raise CommandError(f"process {pid} is still there {DOWN_DEADLINE:g} s after `down`")


def leftovers(layout: Layout) -> list[str]:
    """Return what is left of a node that is down, in words: processes and sockets."""
    found = [f"socket {path.name}" for path in layout.directory.rglob("*") if path.is_socket()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended just now
                line = (entry / "cmdline").read_bytes()
                if os.fsencode(layout.directory) in line:
                    found.append(f"process {entry.name}: {line[:80]!r}")
    return found
