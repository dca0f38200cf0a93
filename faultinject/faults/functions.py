"""Faults of the paper's f in a guest, and of F on the host, where a planted one stands in for it.

The planted function (``faultinject.services.frail``) has a switch in a page of its memory.  It is
found and thrown from outside, in the guest's RAM or in the process's, and read back: no request, no
shell, nothing that the voter or another guest would see.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import DeployError
from faultinject.faults.site import Applied, FaultTarget, FunctionSite, NotApplied, Site
from faultinject.faults.voters import hang_process, kill_process
from faultinject.services import frail

__all__ = ["break_function", "break_moved", "pages_of_process", "pages_of_ram"]

_CHUNK = 4 << 20
_WHAT = {
    "crash": frail.CRASHES, "hang": frail.HANGS, "admit": frail.ADMITS, "refuse": frail.REFUSES,
}  # fmt: skip
_WORDS = {
    frail.CRASHES: "ends its process", frail.HANGS: "never answers",
    frail.ADMITS: "says yes to everything", frail.REFUSES: "says no to everything",
}  # fmt: skip


async def break_function(kind: str, machine: FaultTarget) -> Applied:
    """Throw the switch of the planted f in a guest, by the last word of ``kind``."""
    mode = _WHAT[kind.rpartition("-")[2]]
    try:
        ram = machine.ram_file()
        switch = await asyncio.to_thread(_throw, ram, mode, None)
    except OSError as error:
        raise NotApplied(f"{machine.name}'s memory: {error}") from error
    if switch is None:
        raise NotApplied(f"no planted function in {machine.name}'s memory")

    def met() -> bool | None:
        try:
            return _read(machine.ram_file(), switch + frail.MET) == 1
        except (OSError, DeployError):  # its QEMU has ended since
            return None

    return Applied(f"f in {machine.name}, at {switch:#x} of its RAM: {_WORDS[mode]}", used=met)


async def break_moved(kind: str, site: Site) -> Applied:
    """Kill or stop F on the host, or throw the switch of the planted one."""
    pid = site.function_pid() if isinstance(site, FunctionSite) else None
    if pid is None:
        raise NotApplied("there is no F on the host to hit")
    what = kind.rpartition("-")[2]
    if what == "kill":
        return await kill_process(pid, "F")
    if what == "hang":
        return await hang_process(pid, "F")
    mode, memory = _WHAT[what], Path(f"/proc/{pid}/mem")
    try:
        switch = await asyncio.to_thread(_throw, memory, mode, pid)
    except OSError as error:
        raise NotApplied(f"F's memory: {error}") from error
    if switch is None:
        raise NotApplied(f"process {pid} of F holds no planted function")

    def met() -> bool | None:
        try:
            return _read(memory, switch + frail.MET) == 1
        except OSError:
            return None

    return Applied(f"F, process {pid}, at {switch:#x}: {_WORDS[mode]}", used=met)


def _throw(memory: Path, mode: int, pid: int | None) -> int | None:
    """Write ``mode`` into the one switch there is, and read it back; None if there is none.

    Raises OSError, NotApplied.
    """
    pages = pages_of_ram(memory) if pid is None else pages_of_process(memory, pid)
    found = list(pages)
    if not found:
        return None
    if len(found) > 1:
        raise NotApplied(f"{len(found)} planted functions: which of them is f cannot be told")
    descriptor = os.open(memory, os.O_RDWR)
    try:
        place = found[0] + frail.MODE
        os.pwrite(descriptor, bytes([mode, 0]), place)
        # The mark beside it is the function's own: it may be there already.
        if os.pread(descriptor, 1, place) != bytes([mode]):
            raise NotApplied("the planted function's switch does not hold")
    finally:
        os.close(descriptor)
    return found[0]


def _read(memory: Path, place: int) -> int:
    """Return a byte.  Raises OSError, also if the process is gone."""
    descriptor = os.open(memory, os.O_RDONLY)
    try:
        data = os.pread(descriptor, 1, place)
        if not data:
            raise ProcessLookupError(errno.ESRCH, "its memory is gone")
        return data[0]
    finally:
        os.close(descriptor)


def _is_switch(page: bytes) -> bool:
    tail = page[frail.TAIL_AT : frail.TAIL_AT + len(frail.TAIL)]
    return page.startswith(frail.HEAD) and tail == frail.TAIL


def pages_of_ram(ram: Path) -> Iterator[int]:
    """Yield where switches lie in a guest's memory.  Raises OSError.

    Read, not mapped: mapping it would give the guest pages that it never asked for.
    """
    descriptor = os.open(ram, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:  # nothing but holes from here on
                return
            at -= at % frail.SIZE
            chunk = os.pread(descriptor, _CHUNK, at)
            place = chunk.find(frail.HEAD)
            while place >= 0:
                page = chunk[place : place + frail.SIZE]
                if place % frail.SIZE == 0 and _is_switch(page):
                    yield at + place
                place = chunk.find(frail.HEAD, place + 1)
            at += max(len(chunk), 1)
    finally:
        os.close(descriptor)


def pages_of_process(memory: Path, pid: int) -> Iterator[int]:
    """Yield where switches lie in a process's memory.  Raises OSError."""
    descriptor = os.open(memory, os.O_RDONLY)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, last = (int(word, 16) for word in span.split("-"))
            if rights != "rw-s":
                continue
            for place in range(first, last, frail.SIZE):
                if _is_switch(os.pread(descriptor, frail.SIZE, place)):
                    yield place
    finally:
        os.close(descriptor)
