"""Corrupt state: a value of our own is found in a guest's RAM, and a bit of each copy is flipped.

The value is random, so that whatever equals it is a copy of it: the service's own, and those
still lying in buffers.  Flipping all of them reaches the one that counts, and touches nothing
that is not the canary's.  None is touched before the service's own is there: a bit flipped in a
message on its way would only make a damaged frame of it, which the guest throws away and the voter
sends again.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

__all__ = ["Canary", "Flip", "flip_copies"]

SIZE = 32
"""Bytes of a canary's value."""


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A key and its random value, written through the voter."""

    key: str
    value: bytes

    @classmethod
    def fresh(cls) -> Canary:
        """Return a new one."""
        return cls(key=f"trivisor-canary-{secrets.token_hex(4)}", value=secrets.token_bytes(SIZE))


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """A bit that was flipped: where in the RAM (bytes from its start), and the byte read back."""

    offset: int
    before: int
    after: int


def flip_copies(ram: Path, value: bytes, *, byte: int = 0, bit: int = 0) -> list[Flip]:
    """Flip one bit in each copy of ``value`` in the file ``ram``; return what was read back.

    ``byte`` is a place in the value, ``bit`` 0 to 7.  The flip is one byte's exclusive or, read
    back from the mapping: the guest reads the same pages.  Raises OSError, and LookupError if
    the service holds no copy yet; nothing is flipped then.
    """
    flips = []
    with ram.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), size) as memory:
            copies = list(_find(memory, value))
            if not any(_is_object(memory, at, len(value)) for at in copies):
                raise LookupError(
                    f"the canary's value is nowhere in {ram} ({size} bytes) as an object of its "
                    f"own; {len(copies)} copies lie in buffers"
                )
            for at in copies:
                place = at + byte
                before = memory[place]
                memory[place] = before ^ 1 << bit
                flips.append(Flip(offset=place, before=before, after=memory[place]))
    return flips


def _find(memory: mmap.mmap, value: bytes) -> Iterator[int]:
    at = memory.find(value)
    while at >= 0:
        yield at
        at = memory.find(value, at + 1)


def _is_object(memory: mmap.mmap, at: int, size: int) -> bool:
    """Whether the bytes at ``at`` are those of a CPython object: its size and its hash go before.

    The agent makes it of a request whose checksum it has verified, and the store keeps just it.
    """
    return at >= 16 and memory[at - 16 : at - 8] == size.to_bytes(8, "little")
