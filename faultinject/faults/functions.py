"""Faults of the paper's f in a guest, and of F on the host, by means of a planted function.

The planted function (``faultinject.services.frail``) has a switch in a page of its memory.  The
injection finds the page from outside, in the guest's RAM or in the process's memory, sets the
switch and reads it back.  It needs no request and no shell; neither the voter nor another guest
notices.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.errors import DeployError
from deploy.node.interfaces import GuestPort
from faultinject.faults import processes
from faultinject.faults.site import ActiveFault, NotApplied, Site
from faultinject.services import frail

__all__ = ["break_guest_function", "break_host_function", "pages_of_ram"]

_CHUNK = 4 << 20
"""Bytes of a guest's RAM that are read at a time."""
_MODES = {
    "crash": frail.CRASHES, "hang": frail.HANGS, "admit": frail.ADMITS, "refuse": frail.REFUSES,
}  # fmt: skip
_EFFECTS = {
    frail.CRASHES: "ends its process", frail.HANGS: "never answers",
    frail.ADMITS: "says yes to everything", frail.REFUSES: "says no to everything",
}  # fmt: skip


async def break_guest_function(kind: str, machine: GuestPort) -> ActiveFault:
    """Set the switch of the planted f in a guest to the mode named by the last word of ``kind``."""
    return await _break(kind, f"f in {machine.name}", machine.ram_file, None)


async def break_host_function(kind: str, site: Site) -> ActiveFault:
    """Kill or stop F on the host, or set the switch of the planted one."""
    pid = site.function_pid()
    if pid is None:
        raise NotApplied("there is no F on the host", error_code="TV0507")
    if kind.endswith("-kill"):
        return await processes.kill(pid, "F")
    if kind.endswith("-hang"):
        return await processes.hang(pid, "F")
    return await _break(kind, f"F, process {pid}", lambda: Path(f"/proc/{pid}/mem"), pid)


async def _break(kind: str, name: str, memory: Callable[[], Path], pid: int | None) -> ActiveFault:
    """Set the one switch in a process's memory, or in a guest's RAM (``pid`` None)."""
    mode = _MODES[kind.rpartition("-")[2]]
    try:
        switch = await asyncio.to_thread(_set_switch, memory(), mode, pid)
    except OSError as error:
        raise NotApplied(f"memory of {name}: {error}") from error
    if switch is None:
        raise NotApplied(f"no planted function in the memory of {name}")

    def was_called() -> bool | None:
        try:
            return _read(memory(), switch + frail.CALLED) == 1
        except (OSError, DeployError):  # its QEMU, or the process, has ended
            return None

    return ActiveFault(f"{name}, at {switch:#x}: {_EFFECTS[mode]}", activated=was_called)


def _set_switch(memory: Path, mode: int, pid: int | None) -> int | None:
    """Set the switch to ``mode`` and read it back; return its address, or None if there is none.

    Raises OSError, and NotApplied if there are several.
    """
    pages = pages_of_ram(memory) if pid is None else _pages_of_process(memory, pid)
    found = list(pages)
    if not found:
        return None
    if len(found) > 1:
        raise NotApplied(f"{len(found)} planted functions: it is unknown which of them is f")
    descriptor = os.open(memory, os.O_RDWR)
    try:
        place = found[0] + frail.MODE
        os.pwrite(descriptor, bytes([mode, 0]), place)
        # The function itself sets the next byte; it may have done so already.
        if os.pread(descriptor, 1, place) != bytes([mode]):
            raise NotApplied("the planted function's switch does not keep its mode")
    finally:
        os.close(descriptor)
    return found[0]


def _read(memory: Path, place: int) -> int:
    """Return a byte.  Raises OSError, also if the process has ended."""
    descriptor = os.open(memory, os.O_RDONLY)
    try:
        data = os.pread(descriptor, 1, place)
        if not data:
            raise ProcessLookupError(errno.ESRCH, "its memory no longer exists")
        return data[0]
    finally:
        os.close(descriptor)


def _is_switch(page: bytes) -> bool:
    tail = page[frail.TAIL_AT : frail.TAIL_AT + len(frail.TAIL)]
    return page.startswith(frail.HEAD) and tail == frail.TAIL


def pages_of_ram(ram: Path) -> Iterator[int]:
    """Yield the offsets of switches in a guest's RAM.  Raises OSError.

    The file is read, not mapped: a mapping would allocate pages that the guest never used.
    """
    descriptor = os.open(ram, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:  # only a hole follows
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


def _pages_of_process(memory: Path, pid: int) -> Iterator[int]:
    """Yield the addresses of switches in a process's memory.  Raises OSError."""
    descriptor = os.open(memory, os.O_RDONLY)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, last = (int(part, 16) for part in span.split("-"))
            if rights != "rw-s":
                continue
            for place in range(first, last, frail.SIZE):
                if _is_switch(os.pread(descriptor, frail.SIZE, place)):
                    yield place
    finally:
        os.close(descriptor)
