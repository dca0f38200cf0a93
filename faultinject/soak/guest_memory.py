"""Marked values in a guest's memory, found and changed from the host.

The guest's RAM is a shared file of its QEMU process, so neither the voter nor the guest takes part.
A service process that forks for a digest shares its pages with the child, and the first one that
writes to a page gets a new copy.  So a value is searched for right before its bit is flipped, and
again afterwards.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from faultinject.soak.round_plan import MAGIC, VALUE_SIZE

__all__ = ["Copy", "MemoryMatches", "census", "find_marked", "flip", "flipped"]

_CHUNK = 4 << 20
"""Bytes read at a time, so that other threads run between two chunks."""
_OBJECT = struct.Struct("<QQQQ")
"""The head of a CPython bytes object: reference count, type, size, hash."""
_MOST_REFERENCES = 1 << 20
"""A freed object has an address or 0 in place of its reference count."""
_KERNEL_HALF = 1 << 47


class Copy(NamedTuple):
    """One copy of a marked value in a guest's memory.

    ``live``: it is the value of a Python object in use.  Other copies are in buffers or freed.
    """

    offset: int
    value: bytes
    live: bool


class MemoryMatches(msgspec.Struct, frozen=True, kw_only=True):
    """The number of copies of marked values in a guest's memory.

    ``right``: of the round's value, in use.  ``foreign``: of corrupted values that were injected
    into another guest; one such copy means that a corrupted state was spread.  ``own``: of
    corrupted values that were injected into this guest, ``own_live`` of them in use.
    """

    right: int
    foreign: int
    own: int
    own_live: int


def find_marked(ram: Path) -> list[Copy]:
    """Return every copy of a marked value in a guest's memory.  Raises OSError."""
    found: list[Copy] = []
    fd = os.open(ram, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        for start in range(0, size, _CHUNK):
            # A value that begins in this chunk is read to its end.
            data = os.pread(fd, _CHUNK + len(MAGIC) - 1, start)
            at = data.find(MAGIC)
            while at >= 0:
                place = start + at
                value = os.pread(fd, VALUE_SIZE, place)
                before = os.pread(fd, _OBJECT.size, max(0, place - _OBJECT.size))
                if len(value) == VALUE_SIZE:
                    found.append(Copy(place, value, _is_live(before)))
                at = data.find(MAGIC, at + 1)
    finally:
        os.close(fd)
    return found


def _is_live(before: bytes) -> bool:
    if len(before) < _OBJECT.size:
        return False
    references, kind, size, _ = _OBJECT.unpack(before)
    in_use = 0 < references < _MOST_REFERENCES and 0 < kind < _KERNEL_HALF
    return bool(in_use and size == VALUE_SIZE)


def flip(ram: Path, copies: Iterable[Copy], byte: int, bit: int) -> list[Copy]:
    """Flip one bit of each copy; return the copies as they are read back.

    A copy whose bytes have changed since it was found is left alone.  Raises OSError.
    """
    done: list[Copy] = []
    with ram.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), size) as memory:
            for copy in copies:
                if memory[copy.offset : copy.offset + VALUE_SIZE] != copy.value:
                    continue
                memory[copy.offset + byte] ^= 1 << bit
                after = memory[copy.offset : copy.offset + VALUE_SIZE]
                if after == flipped(copy.value, byte, bit):
                    done.append(Copy(copy.offset, after, copy.live))
    return done


def flipped(value: bytes, byte: int, bit: int) -> bytes:
    """Return the value with one bit flipped."""
    return value[:byte] + bytes([value[byte] ^ 1 << bit]) + value[byte + 1 :]


def census(
    copies: Iterable[Copy], right: bytes, corrupted: Mapping[bytes, str], guest: str
) -> MemoryMatches:
    """Count the copies in the memory of ``guest``.

    ``corrupted`` names for each corrupted value the guest that it was injected into.
    """
    copies = list(copies)
    wrong = [copy for copy in copies if copy.value in corrupted]
    own = [copy for copy in wrong if corrupted[copy.value] == guest]
    return MemoryMatches(
        right=sum(copy.live and copy.value == right for copy in copies),
        foreign=len(wrong) - len(own),
        own=len(own),
        own_live=sum(copy.live for copy in own),
    )
