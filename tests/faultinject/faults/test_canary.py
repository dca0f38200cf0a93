"""Flipping a bit of each copy of a value in a file that stands for a guest's RAM."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from faultinject.faults.canary import Canary, flip_copies


def as_object(value: bytes) -> bytes:
    """What CPython has in memory for it: references, type, size, hash, the bytes, a zero."""
    return bytes(16) + len(value).to_bytes(8, "little") + bytes(8) + value + bytes(1)


def test_an_object_in_memory_is_laid_out_so() -> None:
    value = Canary.fresh().value
    head = ctypes.string_at(id(value), 32 + len(value) + 1)
    assert head[16:24] + head[32:] == as_object(value)[16:24] + as_object(value)[32:]


def test_a_message_on_its_way_is_not_touched(scratch: Path) -> None:
    # Flipped there it were a damaged frame: the voter sends it again, and nothing is corrupt.
    value = Canary.fresh().value
    ram = scratch / "ram"
    before = bytes(64) + b"content-length: 32\r\n\r\n" + value + bytes(64)
    ram.write_bytes(before)
    with pytest.raises(LookupError, match="1 copies lie in buffers"):
        flip_copies(ram, value)
    assert ram.read_bytes() == before


def test_every_copy_is_flipped_read_back_and_nothing_else_is_touched(scratch: Path) -> None:
    value = Canary.fresh().value
    before = bytes(4096) + value + bytes(9999) + value + value + b"tail" + as_object(value)
    ram = scratch / "ram"
    ram.write_bytes(before)
    flips = flip_copies(ram, value, byte=3, bit=5)
    after = ram.read_bytes()
    second = 4096 + 32 + 9999
    assert [f.offset - 3 for f in flips] == [4096, second, second + 32, second + 68 + 32]
    assert {at for at in range(len(before)) if before[at] != after[at]} == {f.offset for f in flips}
    assert all(flip.after == flip.before ^ 1 << 5 == after[flip.offset] for flip in flips)


def test_a_value_that_is_not_there_is_an_error(scratch: Path) -> None:
    ram = scratch / "ram"
    ram.write_bytes(bytes(8192))
    with pytest.raises(LookupError, match="nowhere"):
        flip_copies(ram, Canary.fresh().value)


def test_no_two_canaries_are_alike() -> None:
    canaries = [Canary.fresh() for _ in range(100)]
    assert len({c.key for c in canaries}) == len({c.value for c in canaries}) == 100
