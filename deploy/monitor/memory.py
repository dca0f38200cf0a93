"""Rules on the memory of guests, read from the file that is the memory.

The file is read, not mapped: a mapping would allocate pages that the guest never used.  A region
between two marks must be contiguous in the guest's physical memory, so keep it inside one page
(4 KiB).  A guest may write while this reads: a reading that differs is confirmed by another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from deploy.monitor.observations import Finding
from deploy.monitor.rules import MemoryRule, mark_bytes

__all__ = ["MemoryJudge"]

_CHUNK = 4 << 20
LARGEST_REGION = 1 << 20
"""Bytes between two marks; a begin mark without its end mark within them is no region."""
_MOST_REGIONS = 64
"""Places of a region that are compared; copies of it may be in buffers of the guest."""


class MemoryJudge:
    """One rule on the guests' memory."""

    def __init__(self, rule: MemoryRule) -> None:
        self.rule = rule
        self._contains = mark_bytes(rule.contains)
        self._begin, self._end = mark_bytes(rule.begin), mark_bytes(rule.end)
        self._known: dict[str, set[str]] = {}  # digests by guest, of the first reading
        self._fired: set[str] = set()

    def judge(self, guest: str, ram: Path) -> Finding | None:
        """Read a guest's memory; return a finding if it matches and did not before.

        Raises OSError.
        """
        text = self._read(guest, ram)
        if text is not None:
            text = self._read(guest, ram)  # it was not a write under way
        if text is None:
            self._fired.discard(guest)
        elif guest not in self._fired:
            self._fired.add(guest)
            return Finding(self.rule, f"memory of {guest}: {text}", guest)
        return None

    def _read(self, guest: str, ram: Path) -> str | None:
        if self._contains:
            place = next(find_bytes(ram, self._contains), None)
            return None if place is None else f"the bytes are at {place:#x}"
        digests = dict(self._regions(ram))
        if self.rule.sha256:
            known = {self.rule.sha256}
        elif digests:
            known = self._known.setdefault(guest, set(digests))
        for digest, place in digests.items():
            if digest not in known:
                return f"the region at {place:#x} has the SHA-256 {digest}"
        return None

    def _regions(self, ram: Path) -> Iterator[tuple[str, int]]:
        """Yield digest and offset of each region."""
        descriptor = os.open(ram, os.O_RDONLY)
        try:
            for count, place in enumerate(find_bytes(ram, self._begin)):
                if count == _MOST_REGIONS:
                    return
                start = place + len(self._begin)
                data = os.pread(descriptor, LARGEST_REGION + len(self._end), start)
                size = data.find(self._end)
                if size >= 0:
                    yield sha256(data[:size]).hexdigest(), start
        finally:
            os.close(descriptor)


def find_bytes(ram: Path, wanted: bytes) -> Iterator[int]:
    """Yield the offsets of bytes in a file, in order; holes are not read.  Raises OSError."""
    descriptor = os.open(ram, os.O_RDONLY)
    try:
        end, at = os.fstat(descriptor).st_size, 0
        while at < end:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:  # only a hole follows
                return
            chunk = os.pread(descriptor, _CHUNK + len(wanted) - 1, at)
            place = chunk.find(wanted)
            while 0 <= place < _CHUNK:
                yield at + place
                place = chunk.find(wanted, place + 1)
            at += _CHUNK
    finally:
        os.close(descriptor)
