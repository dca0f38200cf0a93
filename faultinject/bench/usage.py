"""What processes use, from /proc: processor time and memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from faultinject.results.guest_capacity import Memory

__all__ = ["HostShare", "Meter", "cpu_seconds", "family", "host_memory", "memory_of", "resident"]

_TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on.  Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat(int(entry.name))[1])
            except OSError:
                continue  # it ended after it was listed
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:  # the list grows meanwhile
        found += children.get(member, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of these processes and of their ended children, seconds.

    A process that has ended itself counts zero.
    """
    total = 0
    for pid in pids:
        try:
            fields = _stat(pid)
        except OSError:
            continue
        total += sum(int(each) for each in fields[11:15])
    return total / _TICKS


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes.  Raises OSError."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * resource.getpagesize()


def _sizes(path: Path, wanted: Sequence[str]) -> list[int]:
    """Return bytes by name from a file of lines "Name:  123 kB".  Raises OSError."""
    found = dict.fromkeys(wanted, 0)
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] += int(rest.split()[0]) * 1024
    return list(found.values())


def memory_of(pids: Iterable[int]) -> Memory:
    """Return the memory that these processes occupy together.  Raises OSError."""
    names = ("Rss", "Pss", "Private_Clean", "Private_Dirty", "Swap")
    sizes = [_sizes(Path(f"/proc/{pid}/smaps_rollup"), names) for pid in pids]
    rss, pss, clean, dirty, swapped = (sum(column) for column in zip(*sizes, strict=True))
    return Memory(rss=rss, pss=pss, private=clean + dirty, swapped=swapped)


def host_memory() -> tuple[int, int]:
    """Return the host's memory and the available part of it, bytes."""
    total, available = _sizes(Path("/proc/meminfo"), ("MemTotal", "MemAvailable"))
    return total, available


class HostShare:
    """Counts which share of the host's processors other programs use.

    This command's processes are those below its guard (``deploy.host.guard``), to which orphans
    fall: a QEMU that libvirt has detached, too.  What a hypervisor below this host takes (steal)
    counts as others.
    """

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        line = Path("/proc/stat").read_text().partition("\n")[0]
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, line.split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) / _TICKS
        return time.monotonic(), busy, cpu_seconds(family(os.getppid()))

    def others(self) -> float:
        """Return the share since the start, 0 to 1."""
        began, busy, own = (
            now - then for now, then in zip(self._read(), self._before, strict=True)
        )
        return round(max(0.0, busy - own) / (began * (os.cpu_count() or 1)), 3)


class Meter:
    """Counts how many processors groups of processes are busy on; "driver" is this process."""

    def __init__(self, groups: dict[str, list[int]]) -> None:
        self._groups = groups | {"driver": [os.getpid()]}
        self._before = self._read()

    def _read(self) -> tuple[float, dict[str, float]]:
        used = {name: cpu_seconds(pids) for name, pids in self._groups.items()}
        return time.perf_counter(), used

    def shares(self) -> dict[str, float]:
        """Return the mean number of busy processors since the start, by group."""
        (began, before), (now, used) = self._before, self._read()
        return {name: round((used[name] - before[name]) / (now - began), 3) for name in used}
