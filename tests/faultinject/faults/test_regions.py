"""Flips in a part of the guest's memory that its kernel tells the place of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.machine.qemu import ram_file
from faultinject.faults.flips import flip_file
from faultinject.faults.regions import REGIONS, flip_region, read_spans
from faultinject.faults.site import FaultTarget, NotApplied
from tests.deploy.open_guest import OpenGuest, open_guest

IOMEM = """\
00000000-00000fff : Reserved
00001000-07fdffff : System RAM
  01000000-010007ff : Kernel code
  01200000-012000ff : Kernel rodata
  01400000-0140007f : Kernel data
  01600000-016001ff : Kernel bss
"""
HIDDEN = "00000000-00000000 : Kernel code\n"


def test_the_kernels_words_are_read() -> None:
    assert read_spans(IOMEM, REGIONS["flip-kernel-code"]) == [(0x1000000, 0x1000800)]
    assert read_spans(IOMEM, REGIONS["flip-kernel-data"])[2] == (0x1600000, 0x1600200)
    for text in ("", HIDDEN):
        with pytest.raises(ValueError, match="does not tell where Kernel code is"):
            read_spans(text, REGIONS["flip-kernel-code"])


def test_flips_stay_in_their_spans_each_byte_as_likely(scratch: Path) -> None:
    ram = scratch / "ram"
    ram.write_bytes(bytes(8192))
    flip_file(ram, 7, 200, [(100, 200), (5000, 5300)])
    touched = [at for at, byte in enumerate(ram.read_bytes()) if byte]
    assert all(100 <= at < 200 or 5000 <= at < 5300 for at in touched)
    assert 2 < sum(at >= 5000 for at in touched) / sum(at < 200 for at in touched) < 5
    with pytest.raises(ValueError, match="are not in it"):
        flip_file(ram, 7, 1, [(8000, 9000)])


class Says:
    """A shell that gives one answer."""

    name = "g1"

    def __init__(self, out: str, status: int = 0) -> None:
        self.answer = (status, out)

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = 10
    ) -> tuple[int, str]:
        assert command == "cat /proc/iomem"
        return self.answer


class Ram:
    """A machine with this memory, and nothing else."""

    name = "g1"

    def __init__(self, path: Path) -> None:
        self._path = path

    def ram_file(self) -> Path:
        return self._path


def machine(path: Path) -> FaultTarget:
    return Ram(path)  # type: ignore[return-value]


async def test_where_the_place_is_not_told_nothing_is_applied(scratch: Path) -> None:
    ram = scratch / "ram"
    ram.write_bytes(bytes(4096))
    for shell in (Says("", 1), Says(HIDDEN), Says(IOMEM)):  # the last: not in so small a memory
        with pytest.raises(NotApplied, match="g1"):
            await flip_region("flip-kernel-code", machine(ram), shell, 1, 1)
    assert not any(ram.read_bytes())


# -- in a real guest -----------------------------------------------------------------------------

in_shared_loop = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def opened(shared_scratch: Path) -> AsyncIterator[OpenGuest]:
    async with open_guest(shared_scratch, shared_scratch / "capabilities", "k") as one:
        yield one


@pytest.mark.vm
@in_shared_loop
@pytest.mark.parametrize("kind", REGIONS)
async def test_the_kernels_own_memory_is_struck(opened: OpenGuest, kind: str) -> None:
    await opened.clean()
    pid = await opened.pid()
    assert pid is not None
    ram = ram_file(pid, size=128 << 20)
    _, iomem = await opened.shell.run("cat /proc/iomem", timeout=60)
    banner = read_spans(iomem, ("Kernel rodata",))[0]
    before = ram.read_bytes()
    assert b"Linux version 6." in before[slice(*banner)], "an address is a place in the file"
    applied = await flip_region(kind, machine(ram), opened.shell, 3, 4)
    assert "4 of 4 flipped bits read back" in applied.proof
    first = int(applied.proof.split("(at ")[1].split(",")[0], 16)
    assert any(low <= first < high for low, high in read_spans(iomem, REGIONS[kind]))
