"""Bits are drawn uniformly from the seed, flipped in files and processes, and read back."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.faults.bit_flips import draw_bits, flip_file, flip_process, own_memory


@given(st.integers(0, 2**64 - 1), st.integers(1, 4096), st.data())
def test_bits_are_distinct_in_range_and_a_function_of_the_seed(
    seed: int, size: int, data: st.DataObject
) -> None:
    dose = data.draw(st.integers(1, min(size * 8, 500)))
    bits = draw_bits(seed, dose, size)
    assert len(set(bits)) == dose
    assert all(0 <= number < size * 8 for number in bits)
    assert draw_bits(seed, dose, size) == bits


@pytest.mark.parametrize("dose", [0, -1, 9])
def test_invalid_dose_is_an_error(dose: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 flips of 1 bytes"):
        draw_bits(1, dose, 1)


def test_bits_are_uniform() -> None:
    """Each of 16 parts gets 5,000 of 80,000 draws, within five standard deviations."""
    size = 1 << 20
    parts = Counter(
        number * 16 // (size * 8) for seed in range(80) for number in draw_bits(seed, 1000, size)
    )
    assert len(parts) == 16
    assert all(abs(count - 5000) < 5 * 69 for count in parts.values())


def test_the_dose_is_flipped_in_a_file_and_reverted_by_the_same_flips(scratch: Path) -> None:
    ram = scratch / "ram"
    before = os.urandom(1 << 16)
    ram.write_bytes(before)
    flipped = flip_file(ram, 7, 100)
    assert (flipped.read_back, flipped.dose) == (100, 100)
    after = ram.read_bytes()
    assert sum((a ^ b).bit_count() for a, b in zip(before, after, strict=True)) == 100
    assert all(before[place] != after[place] for place in flipped.places)
    assert "100 of 100 flipped bits read back (at 0x" in str(flipped)
    flip_file(ram, 7, 100)
    assert ram.read_bytes() == before


@pytest.mark.parametrize("dose", [1, 50])
def test_bits_of_a_running_process_are_flipped_and_read_back(
    process: subprocess.Popen[bytes], dose: int
) -> None:
    pages = own_memory(process.pid)
    assert len(pages) > 100
    assert len(set(pages)) == len(pages)
    flipped = flip_process(process.pid, 3, dose, pages)
    assert flipped.read_back == dose
    assert all(place - place % 4096 in pages for place in flipped.places)
