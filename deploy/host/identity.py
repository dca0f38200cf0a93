"""Identify a process for as long as the machine is up, and wait for its end.

The kernel reuses pids.  An identity adds the start time (clock ticks since boot) and the boot's id:
no two processes share all three.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

import msgspec

__all__ = ["ProcessIdentity", "boot_id", "identify", "wait_end"]


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process: its pid, its start in clock ticks since boot, the kernel's id of that boot."""

    pid: int
    start_ticks: int
    boot_id: str

    @property
    def alive(self) -> bool:
        """Whether this very process runs now (a zombie does not)."""
        return identify(self.pid) == self


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has this pid now, or None if none runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain anything: count the fields after its end (proc(5)).
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return ProcessIdentity(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id())


def wait_end(pid: int, seconds: float) -> bool:
    """Wait until a process has ended; return False if it has not within ``seconds``."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended, _, _ = select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)
    return bool(ended)
