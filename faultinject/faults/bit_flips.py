"""Flips of single bits in a file or in a process's memory; each is read back at once.

The bits are distinct and drawn uniformly: a pure function of seed, dose and size.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from faultinject.faults.site import NotApplied

__all__ = [
    "Flips",
    "Span",
    "draw_bits",
    "flip_file",
    "flip_process",
    "own_memory",
    "require_read_back",
]

Span = tuple[int, int]
"""The bytes from the first offset up to the second, which is excluded."""

_PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63
"""Bit of an entry of /proc/PID/pagemap: the page is in memory."""


class Flips(NamedTuple):
    """The result of flipping ``dose`` bits: how many were read back, and the first few places."""

    read_back: int
    dose: int
    places: tuple[int, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{place:#x}" for place in self.places)
        more = ", ..." if self.dose > len(self.places) else ""
        return f"{self.read_back} of {self.dose} flipped bits read back (at {shown}{more})"


def require_read_back(flips: Flips) -> None:
    """Raise NotApplied unless at least 99 % of the flips were read back.

    The running machine may write to a byte in the microsecond between writing and reading it.
    """
    if flips.read_back < flips.dose - flips.dose // 100:
        raise NotApplied(str(flips))


def draw_bits(seed: int, dose: int, size: int) -> list[int]:
    """Return the numbers of ``dose`` distinct bits in ``size`` bytes.  Raises ValueError."""
    if not 1 <= dose <= size * 8:
        raise ValueError(f"a dose is 1 to {size * 8} flips of {size} bytes, not {dose}")
    return random.Random(seed).sample(range(size * 8), dose)


def flip_file(ram: Path, seed: int, dose: int, spans: Sequence[Span] = ()) -> Flips:
    """Flip bits anywhere in the file ``ram``, or in ``spans`` of it.

    The guest runs meanwhile.  A byte that it writes between our write and our read lowers
    ``read_back``.  Raises OSError, ValueError.
    """
    read_back = 0
    with ram.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        spans = spans or [(0, size)]
        if not all(0 <= first < end <= size for first, end in spans):
            raise ValueError(f"{ram} has {size} bytes: {spans} are not in it")
        bits = draw_bits(seed, dose, sum(end - first for first, end in spans))
        places = [_place(number >> 3, spans) for number in bits]
        with mmap.mmap(file.fileno(), size) as memory:
            for number, place in zip(bits, places, strict=True):
                changed = memory[place] ^ 1 << (number & 7)
                memory[place] = changed
                read_back += memory[place] == changed
    return Flips(read_back, dose, tuple(places[:4]))


def _place(byte: int, spans: Sequence[Span]) -> int:
    """Return the offset of the spans' byte of this number, counted over all spans."""
    for first, end in spans:
        if byte < end - first:
            return first + byte
        byte -= end - first
    raise AssertionError("drawn outside of the spans")


def own_memory(pid: int) -> list[int]:
    """Return the addresses of a process's pages that are private, writable and present.

    Raises OSError if it has ended, or if this user may not read its memory.
    """
    pages: list[int] = []
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, last = (int(part, 16) for part in span.split("-"))
            if not rights.startswith("rw") or not rights.endswith("p"):
                continue
            count = (last - first) // _PAGE
            entries = os.pread(pagemap.fileno(), count * 8, first // _PAGE * 8)
            pages += [
                first + number * _PAGE
                for number in range(len(entries) // 8)
                if int.from_bytes(entries[number * 8 : number * 8 + 8], "little") & _PRESENT
            ]
    return pages


def flip_process(pid: int, seed: int, dose: int, pages: Sequence[int] | None = None) -> Flips:
    """Flip bits anywhere in a process's own memory (or in ``pages``, addresses of whole pages).

    Raises ProcessLookupError if it ended meanwhile, OSError if this user may not write to it,
    ValueError if it has too few bits.
    """
    pages = own_memory(pid) if pages is None else pages
    bits = draw_bits(seed, dose, len(pages) * _PAGE)
    places = [pages[number // 8 // _PAGE] + number // 8 % _PAGE for number in bits]
    read_back = 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        for number, place in zip(bits, places, strict=True):
            before = os.pread(memory, 1, place)
            if not before:  # the process has ended
                raise ProcessLookupError(errno.ESRCH, f"it ended after {read_back} of {dose} flips")
            changed = bytes([before[0] ^ 1 << (number & 7)])
            os.pwrite(memory, changed, place)
            read_back += os.pread(memory, 1, place) == changed
    finally:
        os.close(memory)
    return Flips(read_back, dose, tuple(places[:4]))
