"""Who comes after a supervisor that died: its nanny, found, waited for, or told to stand down."""

from __future__ import annotations

import os
import select
import signal

from deploy.host.identity import ProcessIdentity
from deploy.node.records import Layout

__all__ = ["find_nanny", "stand_down", "wait_end"]


def find_nanny(layout: Layout) -> ProcessIdentity | None:
    """Return the nanny of this node's last supervisor, if it lives.  Raises ForeignState."""
    nanny = layout.read_running().processes.get("nanny")
    return nanny if nanny is not None and nanny.alive else None


def stand_down(layout: Layout, number: signal.Signals) -> None:
    """Tell the node's nanny to start no supervisor: SIGTERM ends one that it has just started,
    SIGHUP leaves it.
    """
    nanny = find_nanny(layout)
    if nanny is None:
        return
    try:
        pidfd = os.pidfd_open(nanny.pid)
    except ProcessLookupError:
        return
    try:
        if nanny.alive:  # asked after the pidfd: no other process can be meant
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def wait_end(pid: int, seconds: float) -> bool:
    """Wait until a process has ended; False if it has not within ``seconds``."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended, _, _ = select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)
    return bool(ended)
