"""What processes use, from /proc: processor time and memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Meter", "cpu_seconds", "family", "resident"]

_TICKS = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on.  Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """Return a process and everything that descends from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_fields(int(entry.name))[1])
            except OSError:
                continue  # it has ended since it was listed
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found += children.get(member, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of these processes so far, seconds, and of those children of theirs
    that have ended; a process that has ended itself counts nothing.
    """
    total = 0
    for pid in pids:
        try:
            fields = _fields(pid)
        except OSError:
            continue
        total += sum(int(each) for each in fields[11:15])  # with its children that have ended
    return total / _TICKS


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes.  Raises OSError."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * resource.getpagesize()


class Meter:
    """Processors that groups of processes kept busy since it was made; "driver" is this process."""

    def __init__(self, groups: dict[str, list[int]]) -> None:
        self._groups = groups | {"driver": [os.getpid()]}
        self._before = self._read()

    def _read(self) -> tuple[float, dict[str, float]]:
        used = {name: cpu_seconds(pids) for name, pids in self._groups.items()}
        return time.perf_counter(), used

    def shares(self) -> dict[str, float]:
        """Return the mean number of processors that each group was busy on."""
        (began, before), (now, used) = self._before, self._read()
        return {name: round((used[name] - before[name]) / (now - began), 3) for name in used}
