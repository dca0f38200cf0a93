"""The memory that a new process can have on this host."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["available_memory"]

MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Return how many bytes can be used without swapping; None where the kernel does not say.

    A limit of this process's control group is not considered.
    """
    try:
        text = MEMINFO.read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return None if found is None else int(found[1]) << 10
