"""Observations inside one guest, over its shell: its clocks, and code whose bits were flipped."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deploy.machine.qemu import ram_file
from deploy.machine.spec import AcceleratorName
from faultinject.faults.memory import read_spans
from tests.deploy.open_guest import OpenGuest, open_guest

__all__ = ["CodeFlip", "flip_code", "flip_code_of", "read_clocks"]

MEMORY = 128 << 20
SECONDS = 600.0
"""For a command in the guest: a hang, not a slow host."""

_CALLS = 20_000
"""Calls of the system call, so that the code is translated if anything translates it."""
_SYMBOL = "__x64_sys_sched_get_priority_max"
"""A system call that returns a constant: the largest priority of SCHED_FIFO, which is 99."""
_CONSTANT = bytes([0xB8, 99, 0, 0, 0])
"""The instruction that loads this constant: mov eax, 99."""
_LONGEST = 128
"""Bytes of the function that are searched for it."""

_COUNT = (
    "python3.11 -c 'import os\nfor _ in range(%d): os.sched_get_priority_max(1)\n"
    "print(os.sched_get_priority_max(1))'"
)


class CodeFlip(NamedTuple):
    """A flip of the constant's lowest bit: what the system call returned before and afterwards."""

    before: int
    after: int
    restored: int
    """After the clean snapshot was restored."""


async def flip_code(
    scratch: Path, accel: AcceleratorName, log: Callable[[str], None]
) -> dict[str, Any]:
    """Boot a guest, and flip a bit of code that it has just executed.

    Under KVM this acts at once.  Raises AssertionError.
    """
    async with open_guest(scratch, scratch / "capabilities", "code", accel=accel) as guest:
        flip = await flip_code_of(guest)
        log(str(flip))
        assert flip == CodeFlip(before=99, after=98, restored=99), flip
        return flip._asdict()


async def flip_code_of(guest: OpenGuest) -> CodeFlip:
    """Flip a bit of a system call's code in a guest's memory, and restore the guest."""
    before = await _call(guest)
    place = await _find_constant(guest)
    pid = await guest.pid()
    assert pid is not None
    with ram_file(pid, size=MEMORY).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[place] == _CONSTANT[1]
        memory[place] ^= 1
    after = await _call(guest)
    await guest.clean()
    return CodeFlip(before, after, await _call(guest))


async def _call(guest: OpenGuest) -> int:
    return int(await _run(guest, _COUNT % _CALLS))


async def _find_constant(guest: OpenGuest) -> int:
    """Return the offset of the constant in the file that is the guest's memory."""
    pattern = rf" (_text|{_SYMBOL})$"
    found = (await _run(guest, f"grep -E '{pattern}' /proc/kallsyms")).splitlines()
    symbols = {name: int(address, 16) for address, _, name in map(str.split, found)}
    [(start, _)] = read_spans(await _run(guest, "cat /proc/iomem"), ["Kernel code"])
    offset = start + symbols[_SYMBOL] - symbols["_text"]
    pid = await guest.pid()
    assert pid is not None
    with ram_file(pid, size=MEMORY).open("rb") as file:
        file.seek(offset)
        code = file.read(_LONGEST)
    at = code.find(_CONSTANT)
    assert at >= 0, f"the system call's code is another: {code.hex()}"
    return offset + at + 1


async def read_clocks(scratch: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Boot a guest under KVM, restore it, and compare its clocks before and afterwards.

    Its time continues from the snapshot, its timers work, and its processor is the host's.
    """
    async with open_guest(scratch, scratch / "capabilities", "clock", accel="kvm") as guest:
        source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        facts: dict[str, Any] = {"clocksource": (await _run(guest, f"cat {source}")).strip()}
        flags = set((await _run(guest, "grep -m 1 ^flags /proc/cpuinfo")).split())
        facts["flags"] = sorted(flags & {"constant_tsc", "nonstop_tsc", "svm", "vmx", "hypervisor"})
        await _run(guest, "sleep 5")
        before = await _times(guest)
        await guest.clean()
        after = await _times(guest)
        slept = (await _times(guest, "sleep 1; "))["uptime"] - after["uptime"]
        log(f"before {before}, after {after}, slept {slept}")
        facts |= {"before": before, "after": after, "slept": round(slept, 2)}
        assert after["uptime"] < before["uptime"], facts
        assert slept >= 1, facts
        log_text = await _run(guest, "dmesg")
        facts["complaints"] = re.findall(r".*(?:unstable|stall|lockup).*", log_text)
        return facts


async def _times(guest: OpenGuest, before: str = "") -> dict[str, float]:
    uptime, wall = (await _run(guest, f"{before}cat /proc/uptime; date +%s")).splitlines()
    return {"uptime": float(uptime.split()[0]), "wall": float(wall)}


async def _run(guest: OpenGuest, command: str) -> str:
    status, out = await guest.shell.run(command, timeout=SECONDS)
    assert status == 0, f"{command}: status {status}: {out}"
    return out
