"""Flipping a bit of each copy of a value in a file that stands for a guest's RAM."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.canary import Canary, flip_copies


def test_every_copy_is_flipped_read_back_and_nothing_else_is_touched(scratch: Path) -> None:
    value = Canary.fresh().value
    before = bytes(4096) + value + bytes(9999) + value + value + b"tail"
    ram = scratch / "ram"
    ram.write_bytes(before)
    flips = flip_copies(ram, value, byte=3, bit=5)
    after = ram.read_bytes()
    assert [flip.offset for flip in flips] == [4096 + 3, 4096 + 32 + 9999 + 3, 4096 + 64 + 9999 + 3]
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
