"""Faults of a process on the host, the voter's or F's: killed, stopped, bits of memory flipped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from deploy.host.identity import ProcessIdentity, identify
from faultinject.faults.bit_flips import flip_process, require_read_back
from faultinject.faults.site import ActiveFault, NotApplied

__all__ = ["flip_voter", "hang", "kill"]

_DEADLINE = 5.0
"""Seconds within which a signal must take effect."""
_POLL = 0.001


async def kill(pid: int | None, whose: str) -> ActiveFault:
    """Kill a process; its parent reaps it."""
    process = _identify(pid, whose)
    descriptor = os.pidfd_open(process.pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(_DEADLINE):
                await ended.wait()
        except TimeoutError as error:
            raise NotApplied(f"process {process.pid} of {whose} still runs") from error
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
    return ActiveFault(f"process {process.pid} has ended", activated=True)


async def hang(pid: int | None, whose: str) -> ActiveFault:
    """Stop a process until undone."""
    process = _identify(pid, whose)
    os.kill(process.pid, signal.SIGSTOP)
    until = time.monotonic() + _DEADLINE
    while (state := _state(process.pid)) != "T":
        if time.monotonic() > until or not process.alive:
            raise NotApplied(f"process {process.pid} of {whose} is in state {state!r}, not stopped")
        await asyncio.sleep(_POLL)  # each thread stops on its own; no event reports it

    async def undo() -> None:
        if process.alive:
            os.kill(process.pid, signal.SIGCONT)

    return ActiveFault(f"process {process.pid} is stopped", activated=True, undo=undo)


async def flip_voter(pid: int | None, seed: int, dose: int) -> ActiveFault:
    """Flip ``dose`` bits of the voter's own memory, uniformly over its present pages."""
    process = _identify(pid, "the voter")
    try:
        flips = await asyncio.to_thread(flip_process, process.pid, seed, dose)
    except ProcessLookupError as error:  # the first flips ended it
        return ActiveFault(f"memory of process {process.pid}: {error.strerror}", activated=True)
    except ValueError as error:
        raise NotApplied(f"the voter's memory: {error}") from error
    require_read_back(flips)
    return ActiveFault(f"memory of process {process.pid}: {flips}")


def _identify(pid: int | None, whose: str) -> ProcessIdentity:
    process = None if pid is None else identify(pid)
    if process is None:
        raise NotApplied(
            f"there is no {whose.removeprefix('the ')} to inject into", error_code="TV0507"
        )
    return process


def _state(pid: int) -> str:
    """Return the state of a process as a letter (proc(5)), or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
