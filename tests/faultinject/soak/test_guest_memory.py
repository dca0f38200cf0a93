"""Marked values are found, flipped and counted in a file that represents a guest's memory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from faultinject.soak import guest_memory
from faultinject.soak.guest_memory import Copy, MemoryMatches, census, find_marked, flip, flipped
from faultinject.soak.round_plan import VALUE_SIZE, marked_value

VALUE = marked_value(1, 1, 0)
OTHER = marked_value(1, 2, 0)


def as_object(value: bytes, references: int = 1) -> bytes:
    """Lay a value out as a CPython bytes object."""
    return struct.pack("<QQQQ", references, 0x7F0000001000, len(value), 99) + value + b"\0"


def memory(scratch: Path, *parts: tuple[int, bytes], size: int = 1 << 16) -> Path:
    """Make a file of zeros with these parts at their offsets."""
    path = scratch / "ram"
    data = bytearray(size)
    for offset, part in parts:
        data[offset : offset + len(part)] = part
    path.write_bytes(data)
    return path


def test_object_in_use_is_told_from_freed_object_and_from_buffer(scratch: Path) -> None:
    ram = memory(
        scratch,
        (256, as_object(VALUE)),
        (1024, as_object(VALUE, references=0x7F0012345678)),  # freed: the next free block
        (2048, as_object(VALUE, references=0)),  # freed: the last block of its list
        (4096, b"PUT /kv/held-1 HTTP/1.1\r\n\r\n" + VALUE),
    )
    found = find_marked(ram)
    assert [copy.offset for copy in found] == [288, 1056, 2080, 4123]
    assert [copy.live for copy in found] == [True, False, False, False]


def test_value_across_two_chunks_is_found_once(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_memory, "_CHUNK", 4096)
    ram = memory(
        scratch, (4096 - 33, as_object(VALUE)), (8192 - 36, as_object(OTHER)), (12288, VALUE)
    )
    assert [copy.value for copy in find_marked(ram)] == [VALUE, OTHER, VALUE]


def test_value_at_the_end_of_memory_is_left_out_if_it_is_cut(scratch: Path) -> None:
    ram = memory(scratch, ((1 << 16) - VALUE_SIZE + 1, VALUE[:-1]))
    assert find_marked(ram) == []


def test_flip_changes_one_bit_of_each_copy_and_reads_it_back(scratch: Path) -> None:
    ram = memory(scratch, (256, as_object(VALUE)), (2048, as_object(VALUE)))
    before = ram.read_bytes()
    done = flip(ram, find_marked(ram), 20, 3)
    after = ram.read_bytes()
    assert [copy.value for copy in done] == [flipped(VALUE, 20, 3)] * 2
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    assert changed == [288 + 20, 2080 + 20]
    assert all(before[at] ^ after[at] == 1 << 3 for at in changed)


def test_flip_leaves_a_copy_alone_that_has_changed_since(scratch: Path) -> None:
    ram = memory(scratch, (256, as_object(OTHER)))
    assert flip(ram, [Copy(288, VALUE, True)], 20, 3) == []
    assert find_marked(ram)[0].value == OTHER


def test_census_tells_foreign_corruption_from_the_guests_own() -> None:
    bad, other_bad = flipped(VALUE, 20, 3), flipped(OTHER, 9, 0)
    copies = [
        Copy(0, VALUE, True),
        Copy(1, VALUE, False),
        Copy(2, bad, True),
        Copy(3, bad, False),
        Copy(4, other_bad, False),
        Copy(5, OTHER, True),
    ]
    corrupted = {bad: "g1", other_bad: "g2"}
    assert census(copies, VALUE, corrupted, "g1") == MemoryMatches(
        right=1, foreign=1, own=2, own_live=1
    )
    assert census(copies, VALUE, corrupted, "g3") == MemoryMatches(
        right=1, foreign=3, own=0, own_live=0
    )
