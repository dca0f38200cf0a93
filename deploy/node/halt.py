"""A node that the monitor has stopped: nothing is released until a person has seen why.

``halted.json`` in the node's directory says so.  While it is there, no voter and no guest of the
node is started.  If the monitor itself is killed before it is written, the supervisor repairs the
node, as after any other crash.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable

import msgspec

from deploy.errors import DeployError
from deploy.host.files import write_json
from deploy.node.processes import find_processes
from deploy.node.records import Layout

__all__ = ["HaltRecord", "NodeHalted", "check_not_halted", "end_releases", "halt"]

_RELEASING = re.compile(r"voter|standby|g[0-9]+")


class HaltRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node was stopped, and when (seconds since 1970)."""

    time: float
    rule: str
    detail: str


class NodeHalted(DeployError):
    """The monitor has stopped the node, and nobody has allowed it to start again."""

    error_code = "TV0785"


def check_not_halted(layout: Layout) -> None:
    """Raise NodeHalted if the monitor has stopped this node."""
    try:
        record = msgspec.json.decode(layout.halted.read_bytes(), type=HaltRecord)
        why = f"rule {record.rule}: {record.detail}"
    except FileNotFoundError:
        return
    except (OSError, msgspec.MsgspecError) as error:
        why = f"{layout.halted.name} cannot be read: {error}"
    raise NodeHalted(
        f"the monitor stopped the node in {layout.directory}: {why}",
        remedy=f"find out what happened, then move {layout.halted} away to start the node again",
    )


def halt(layout: Layout, record: HaltRecord, known: Iterable[int] = ()) -> None:
    """Stop a node for safety: end at once all that could release a reply, and write ``record``.

    ``known``: pidfds of its voter and its guests, which are ended before anything else.  Raises
    OSError if the record cannot be written; all is ended even so.
    """
    for pidfd in known:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    try:
        write_json(layout.halted, record, mode=0o600)
    finally:
        end_releases(layout)  # also what has been started since the pidfds were opened


def end_releases(layout: Layout) -> list[str]:
    """End voter and guests of a node at once; return the names of what ran."""
    ended = []
    for process in find_processes(layout):
        if not _RELEASING.fullmatch(process.name):
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.identity.pid)
            try:
                if process.identity.alive:  # the pid cannot be reused now
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    ended.append(process.name)
            finally:
                os.close(pidfd)
    return ended
