"""Flips of single bits in memory that is mapped or open as a file; each is read back at once.

The bits are distinct and drawn uniformly, a function of seed, dose and size alone.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Flipped", "Span", "draw_bits", "flip_file", "flip_process", "own_memory"]

Span = tuple[int, int]
"""Bytes from the first up to, and not with, the second."""

_PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63
"""Bit of an entry of /proc/PID/pagemap: the page is in memory."""


class Flipped(NamedTuple):
    """What was read back: bits that were found flipped, bits asked for, the first few places."""

    held: int
    dose: int
    places: tuple[int, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{place:#x}" for place in self.places)
        more = ", ..." if self.dose > len(self.places) else ""
        return f"{self.held} of {self.dose} flipped bits read back (at {shown}{more})"


def draw_bits(seed: int, dose: int, size: int) -> list[int]:
    """Return ``dose`` distinct numbers of bits in ``size`` bytes.  Raises ValueError."""
    if not 1 <= dose <= size * 8:
        raise ValueError(f"a dose is 1 to {size * 8} flips of {size} bytes, not {dose}")
    return random.Random(seed).sample(range(size * 8), dose)


def flip_file(ram: Path, seed: int, dose: int, spans: Sequence[Span] = ()) -> Flipped:
    """Flip bits anywhere in the file ``ram``, or in ``spans`` of it, by their bytes.

    The guest runs on meanwhile: a byte that it wrote between our write and our reading is told by
    ``held`` being less.  Raises OSError, ValueError.
    """
    held = 0
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
                held += memory[place] == changed
    return Flipped(held, dose, tuple(places[:4]))


def _place(byte: int, spans: Sequence[Span]) -> int:
    """Where the byte of this number is, the spans' bytes counted one after another."""
    for first, end in spans:
        if byte < end - first:
            return first + byte
        byte -= end - first
    raise AssertionError("drawn outside of the spans")


def own_memory(pid: int) -> list[int]:
    """Return the addresses of a process's pages that are private, writable and in memory.

    Raises OSError if it has ended or is not ours to look into.
    """
    pages: list[int] = []
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, last = (int(word, 16) for word in span.split("-"))
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


def flip_process(pid: int, seed: int, dose: int, pages: Sequence[int] | None = None) -> Flipped:
    """Flip bits anywhere in a process's own memory (or in ``pages``, addresses of whole pages).

    Raises ProcessLookupError if it ended meanwhile, OSError if it is not ours to write to,
    ValueError for a dose that it cannot have.
    """
    pages = own_memory(pid) if pages is None else pages
    bits = draw_bits(seed, dose, len(pages) * _PAGE)
    places = [pages[number // 8 // _PAGE] + number // 8 % _PAGE for number in bits]
    held = 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        for number, place in zip(bits, places, strict=True):
            before = os.pread(memory, 1, place)
            if not before:  # its memory is gone
                raise ProcessLookupError(errno.ESRCH, f"it ended after {held} of {dose} flips")
            changed = bytes([before[0] ^ 1 << (number & 7)])
            os.pwrite(memory, changed, place)
            held += os.pread(memory, 1, place) == changed
    finally:
        os.close(memory)
    return Flipped(held, dose, tuple(places[:4]))
