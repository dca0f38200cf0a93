"""Which process is meant: told apart from all others for as long as the machine is up.

A pid alone may have been given to someone else's process.  An Identity adds when the process
began (in clock ticks since boot) and which boot that was: no two processes share all three.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["ProcessIdentity", "boot_id", "identify"]


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which process it is: pid, start in clock ticks since boot, and the kernel's id of that
    boot.
    """

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
    # The name in parentheses may hold anything, so fields are counted from its end (proc(5)).
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return ProcessIdentity(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id())
