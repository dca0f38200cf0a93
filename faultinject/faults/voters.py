"""Faults of the voter's process, or F's: killed, stopped, bits of its memory flipped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from deploy.host.identity import ProcessIdentity, identify
from faultinject.faults.flips import flip_process
from faultinject.faults.machines import require_held
from faultinject.faults.site import Applied, NotApplied

__all__ = ["flip_voter", "hang_process", "hang_voter", "kill_process", "kill_voter"]

_SEEN = 5.0
"""Seconds within which a signal must show."""
_LOOK_AGAIN = 0.001


async def kill_voter(pid: int | None) -> Applied:
    """Kill it; its parent reaps it."""
    return await kill_process(pid, "the voter")


async def hang_voter(pid: int | None) -> Applied:
    """Stop it, until undone."""
    return await hang_process(pid, "the voter")


async def kill_process(pid: int | None, whose: str) -> Applied:
    """Kill a process of the host's layer; its parent reaps it."""
    voter = _identity(pid, whose)
    descriptor = os.pidfd_open(voter.pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(_SEEN):
                await ended.wait()
        except TimeoutError as error:
            raise NotApplied(f"process {voter.pid} of {whose} is still there") from error
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
    return Applied(f"process {voter.pid} has ended", used=True)


async def hang_process(pid: int | None, whose: str) -> Applied:
    """Stop a process of the host's layer, until undone."""
    voter = _identity(pid, whose)
    os.kill(voter.pid, signal.SIGSTOP)
    until = time.monotonic() + _SEEN
    while (state := _state(voter.pid)) != "T":
        if time.monotonic() > until or not voter.alive:
            raise NotApplied(f"process {voter.pid} of {whose} is in state {state!r}, not stopped")
        await asyncio.sleep(_LOOK_AGAIN)  # each thread stops in its own time; no event tells

    async def undo() -> None:
        if voter.alive:
            os.kill(voter.pid, signal.SIGCONT)

    return Applied(f"process {voter.pid} is stopped", used=True, undo=undo)


async def flip_voter(pid: int | None, seed: int, dose: int) -> Applied:
    """Flip bits of its own memory, uniformly over the pages that are in memory."""
    voter = _identity(pid, "the voter")
    try:
        flipped = await asyncio.to_thread(flip_process, voter.pid, seed, dose)
    except ProcessLookupError as error:  # the first flips were enough
        return Applied(f"memory of process {voter.pid}: {error.strerror}", used=True)
    except ValueError as error:
        raise NotApplied(f"the voter's memory: {error}") from error
    require_held(flipped)
    return Applied(f"memory of process {voter.pid}: {flipped}")


def _identity(pid: int | None, whose: str) -> ProcessIdentity:
    voter = None if pid is None else identify(pid)
    if voter is None:
        raise NotApplied(f"there is no {whose.removeprefix('the ')} to hit")
    return voter


def _state(pid: int) -> str:
    """Return the state of a process as a letter (proc(5)), empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
