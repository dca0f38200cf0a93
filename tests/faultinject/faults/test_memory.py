"""Faults of a guest's memory: copies of a canary, and regions that the guest's kernel reports."""

from __future__ import annotations

import ctypes
import secrets
from pathlib import Path

import pytest

from deploy.machine.qemu import ram_file
from deploy.node.interfaces import GuestPort
from faultinject.faults.bit_flips import flip_file
from faultinject.faults.memory import REGIONS, flip_copies, flip_region, read_spans
from faultinject.faults.site import NotApplied
from tests.deploy.open_guest import OpenGuest
from tests.faultinject.faults.test_inside import AnsweringShell
from tests.kvm.guest_steps import CodeFlip, flip_code_of

IOMEM = """\
00000000-00000fff : Reserved
00001000-07fdffff : System RAM
  01000000-010007ff : Kernel code
  01200000-012000ff : Kernel rodata
  01400000-0140007f : Kernel data
  01600000-016001ff : Kernel bss
"""
HIDDEN = "00000000-00000000 : Kernel code\n"


def as_object(value: bytes) -> bytes:
    """Return its layout in CPython: references, type, size, hash, the bytes, a zero."""
    return bytes(16) + len(value).to_bytes(8, "little") + bytes(8) + value + bytes(1)


def test_bytes_object_has_the_assumed_layout() -> None:
    value = secrets.token_bytes(32)
    head = ctypes.string_at(id(value), 32 + len(value) + 1)
    assert head[16:24] + head[32:] == as_object(value)[16:24] + as_object(value)[32:]


def test_no_copy_is_flipped_when_all_are_in_buffers(scratch: Path) -> None:
    value = secrets.token_bytes(32)
    ram = scratch / "ram"
    before = bytes(64) + b"content-length: 32\r\n\r\n" + value + bytes(64)
    ram.write_bytes(before)
    with pytest.raises(LookupError, match="1 copies are in buffers"):
        flip_copies(ram, value)
    assert ram.read_bytes() == before


def test_every_copy_is_flipped_and_nothing_else(scratch: Path) -> None:
    value = secrets.token_bytes(32)
    before = bytes(4096) + value + bytes(9999) + value + value + b"tail" + as_object(value)
    ram = scratch / "ram"
    ram.write_bytes(before)
    offsets = flip_copies(ram, value)
    after = ram.read_bytes()
    second = 4096 + 32 + 9999
    assert offsets == [4096, second, second + 32, second + 68 + 32]
    assert [at for at in range(len(before)) if before[at] != after[at]] == offsets
    assert all(after[at] == before[at] ^ 1 for at in offsets)


def test_spans_are_read_from_iomem() -> None:
    assert read_spans(IOMEM, REGIONS["flip-kernel-code"]) == [(0x1000000, 0x1000800)]
    assert read_spans(IOMEM, REGIONS["flip-kernel-data"])[2] == (0x1600000, 0x1600200)
    for text in ("", HIDDEN):
        with pytest.raises(ValueError, match="does not show the address of Kernel code"):
            read_spans(text, REGIONS["flip-kernel-code"])


def test_flips_are_uniform_over_their_spans(scratch: Path) -> None:
    ram = scratch / "ram"
    ram.write_bytes(bytes(8192))
    flip_file(ram, 7, 200, [(100, 200), (5000, 5300)])
    touched = [at for at, byte in enumerate(ram.read_bytes()) if byte]
    assert all(100 <= at < 200 or 5000 <= at < 5300 for at in touched)
    assert 2 < sum(at >= 5000 for at in touched) / sum(at < 200 for at in touched) < 5
    with pytest.raises(ValueError, match="are not in it"):
        flip_file(ram, 7, 1, [(8000, 9000)])


class Ram:
    """A machine that has only this memory."""

    name = "g1"

    def __init__(self, path: Path) -> None:
        self._path = path

    def ram_file(self) -> Path:
        return self._path


def machine(path: Path) -> GuestPort:
    return Ram(path)  # type: ignore[return-value]


async def test_flip_region_is_not_applied_when_its_address_is_unknown(scratch: Path) -> None:
    ram = scratch / "ram"
    ram.write_bytes(bytes(4096))
    for shell in (
        AnsweringShell("", 1),
        AnsweringShell(HIDDEN),
        AnsweringShell(IOMEM),
    ):
        # The last one is beyond the memory.
        with pytest.raises(NotApplied, match="g1"):
            await flip_region("flip-kernel-code", machine(ram), shell, 1, 1)
    assert not any(ram.read_bytes())


# -- in a real guest -----------------------------------------------------------------------------

in_shared_loop = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.vm
@in_shared_loop
@pytest.mark.parametrize("kind", REGIONS)
async def test_flip_region_flips_the_real_kernels_memory(opened: OpenGuest, kind: str) -> None:
    await opened.clean()
    pid = await opened.pid()
    assert pid is not None
    ram = ram_file(pid, size=128 << 20)
    _, iomem = await opened.shell.run("cat /proc/iomem", timeout=60)
    banner = read_spans(iomem, ("Kernel rodata",))[0]
    before = ram.read_bytes()
    assert b"Linux version 6." in before[slice(*banner)], (
        "a physical address is an offset in the file"
    )
    active = await flip_region(kind, machine(ram), opened.shell, 3, 4)
    assert "4 of 4 flipped bits read back" in active.proof
    first = int(active.proof.split("(at ")[1].split(",")[0], 16)
    assert any(low <= first < high for low, high in read_spans(iomem, REGIONS[kind]))


@pytest.mark.vm
@in_shared_loop
async def test_flip_in_code_that_is_already_translated_has_no_effect(opened: OpenGuest) -> None:
    """This limits results under TCG; under KVM the flip acts (`./run test --kvm`)."""
    await opened.clean()
    assert await flip_code_of(opened) == CodeFlip(before=99, after=99, restored=99)
