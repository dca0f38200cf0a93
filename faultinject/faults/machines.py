"""Faults of a guest's machine as a whole, of its memory and of its processor."""

from __future__ import annotations

import asyncio
import time

import structlog

from deploy.errors import DeployError
from deploy.host.identity import identify
from deploy.machine.spec import GuestState
from faultinject.faults.flips import Flipped, flip_file
from faultinject.faults.registers import StubError, flip_registers
from faultinject.faults.site import Applied, FaultTarget, NotApplied

__all__ = [
    "SLOW_RUNNING",
    "SLOW_STOPPED",
    "crash",
    "flip_ram",
    "flip_register",
    "hang",
    "keep_slow",
    "nmi",
    "require_held",
    "reset",
    "slow_down",
]

SLOW_STOPPED = 0.2
SLOW_RUNNING = 0.05
"""Seconds in which a slow guest is stopped, and runs, by turns: within the voter's patience, so
that it stays in the vote."""

_SEEN = 5.0
"""Seconds within which a guest must show that it was reset, or that an interrupt came."""
_LOOK_AGAIN = 0.005
_PAGING = 1 << 31
"""Bit of register CR0: paging is on, which Linux never ends and the firmware never begins."""
_NMI_WORDS = "NMI received"

_log = structlog.get_logger(__name__)


async def crash(machine: FaultTarget) -> Applied:
    """End its QEMU."""
    pid = machine.pid
    if pid is None:
        raise NotApplied(f"{machine.name} has no QEMU to end")
    await machine.kill()
    # Of one that a former supervisor started, a zombie may be left until init reaps it.
    if identify(pid) is not None:
        raise NotApplied(f"process {pid} of {machine.name} is still there")
    return Applied(f"process {pid} is gone", used=True)


async def hang(machine: FaultTarget) -> Applied:
    """Stop its processor for good."""
    await machine.pause()
    if machine.state is not GuestState.PAUSED:
        raise NotApplied(f"{machine.name} is {machine.state.value}, not paused")
    return Applied(f"process {machine.pid} lives, its virtual processor is stopped", used=True)


async def slow_down(machine: FaultTarget) -> Applied:
    """Stop its processor for most of each quarter of a second, until undone."""
    await machine.pause()
    stopped = machine.state is GuestState.PAUSED
    await machine.resume()
    if not stopped or machine.state is not GuestState.READY:
        raise NotApplied(f"{machine.name} could not be stopped and let go by turns")
    return keep_slow(machine)


def keep_slow(machine: FaultTarget) -> Applied:
    """Start the duty cycle of one that can be stopped; undo it, and the guest runs.

    It ends by itself if the guest does.
    """
    duty = asyncio.create_task(_duty(machine), name=f"slow {machine.name}")

    async def undo() -> None:
        duty.cancel()
        await asyncio.gather(duty, return_exceptions=True)
        if machine.state is GuestState.PAUSED:
            await machine.resume()

    share = SLOW_RUNNING / (SLOW_RUNNING + SLOW_STOPPED)
    proof = f"its virtual processor was stopped and let go; it now runs {share:.0%} of the time"
    return Applied(proof, used=True, undo=undo)


async def _duty(machine: FaultTarget) -> None:
    try:
        while True:
            await machine.pause()
            await asyncio.sleep(SLOW_STOPPED)
            await machine.resume()
            await asyncio.sleep(SLOW_RUNNING)
    except DeployError as error:
        _log.warning("a slow guest ended", guest=machine.name, error=str(error))


async def reset(machine: FaultTarget) -> Applied:
    """Press its reset button; see that it is in the firmware, or that its QEMU ended of it.

    Its processor is stopped meanwhile: on a busy host the firmware would else be left again, for a
    kernel that is just booting, before anybody looked.
    """
    pid = machine.pid
    await machine.pause()
    try:
        await machine.reset()
        return await _seen_reset(machine, pid)
    finally:
        if _lives(machine) and machine.state is GuestState.PAUSED:
            await machine.resume()


async def _seen_reset(machine: FaultTarget, pid: int | None) -> Applied:
    until, problem = time.monotonic() + _SEEN, ""
    while _lives(machine) and time.monotonic() < until:
        try:
            control = _cr0(await machine.registers())
        except DeployError as error:
            problem = f": {error}"  # of a QEMU that is just ending, perhaps: the next look tells
        else:
            if not control & _PAGING:
                return Applied(f"its processor is in the firmware (CR0 {control:#x})", used=True)
        await asyncio.sleep(_LOOK_AGAIN)  # QEMU resets in its own time and gives no event here
    if not _lives(machine):
        return Applied(f"process {pid} has ended of it", used=True)
    raise NotApplied(f"{machine.name} was not seen to be reset within {_SEEN:g} s{problem}")


def _lives(machine: FaultTarget) -> bool:
    """Whether it has a QEMU at this moment."""
    return machine.pid is not None


def _cr0(words: str) -> int:
    """Return the control register from QEMU's words.  Raises NotApplied."""
    for word in words.split():
        if word.startswith("CR0="):
            return int(word[4:], 16)
    raise NotApplied("QEMU does not tell the processor's control register")


async def nmi(machine: FaultTarget) -> Applied:
    """Send a non-maskable interrupt; see the kernel's line about it."""
    before = sum(_NMI_WORDS in line for line in machine.tail(10_000))
    await machine.nmi()
    until = time.monotonic() + _SEEN
    while time.monotonic() < until:
        lines = [line for line in machine.tail(10_000) if _NMI_WORDS in line]
        if len(lines) > before:
            return Applied(f"the guest's kernel says: {lines[-1].strip()}", used=True)
        await asyncio.sleep(_LOOK_AGAIN)  # the console comes in by itself
    raise NotApplied(f"{machine.name}'s kernel does not tell of the interrupt within {_SEEN:g} s")


async def flip_ram(machine: FaultTarget, seed: int, dose: int) -> Applied:
    """Flip bits of its memory, uniformly over all of it."""
    try:
        flipped = await asyncio.to_thread(flip_file, machine.ram_file(), seed, dose)
    except (OSError, ValueError) as error:
        raise NotApplied(f"{machine.name}'s memory: {error}") from error
    require_held(flipped)
    return Applied(f"RAM: {flipped}")


def require_held(flipped: Flipped) -> None:
    """Raise NotApplied unless nearly all flips were read back.

    A running machine may write to a byte in the microsecond between; that is no proof against it.
    """
    if flipped.held < flipped.dose - flipped.dose // 100:
        raise NotApplied(str(flipped))


async def flip_register(machine: FaultTarget, seed: int, dose: int) -> Applied:
    """Flip bits of its processor's registers."""
    try:
        async with machine.debug_stub() as stub:
            flips = await flip_registers(stub, seed, dose)
    except (StubError, ValueError) as error:
        raise NotApplied(f"{machine.name}: {error}") from error
    return Applied("; ".join(map(str, flips[:4])) + ("; ..." if dose > 4 else ""))
