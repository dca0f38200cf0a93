"""A node that the monitor has stopped for safety: nothing may be released until a person has seen why.

``halted.json`` in the node's directory says so.  While it is there, no voter and no guest of the
node is started.  It is written before anything is ended, so that a crash of the monitor, of the
supervisor or of the host in between leaves a node that stays down.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import msgspec

from deploy.errors import DeployError
from deploy.host.files import write_json
from deploy.node.processes import find_processes
from deploy.node.records import Layout

__all__ = ["HaltRecord", "NodeHalted", "check_not_halted", "end_releases", "halt"]

_RELEASING = ("voter", "standby")


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
        remedy=f"find out what happened, then remove {layout.halted} to start the node again",
    )


def halt(layout: Layout, record: HaltRecord, known: Iterable[int] = ()) -> None:
    """Stop a node for safety: write ``record``, then end at once all that could release a reply.

    ``known``: pidfds of its voter and its guests, which are ended first.  Raises OSError if the
    record cannot be written; all is ended even so.
    """
    try:
        write_json(layout.halted, record, mode=0o600)
    finally:
        for pidfd in known:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        end_releases(layout)


def end_releases(layout: Layout) -> list[str]:
    """End voter and guests of a node at once; return the names of what ran."""
    ended = []
    for process in find_processes(layout):
        if process.name not in _RELEASING and process.name not in layout.guest_names:
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
