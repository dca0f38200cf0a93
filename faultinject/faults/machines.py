"""Faults of a guest's virtual machine as a whole, and of its processor."""

from __future__ import annotations

import asyncio
import time

import structlog

from deploy.errors import DeployError
from deploy.host.identity import identify
from deploy.machine.spec import GuestState
from deploy.node.interfaces import GuestPort
from faultinject.faults.registers import StubError, flip_registers
from faultinject.faults.site import ActiveFault, NotApplied

__all__ = [
    "SLOW_RUNNING",
    "SLOW_STOPPED",
    "crash",
    "flip_register",
    "hang",
    "keep_slow",
    "nmi",
    "reset",
    "slow_down",
]

SLOW_STOPPED = 0.2
SLOW_RUNNING = 0.05
"""Seconds for which a slow guest is stopped and runs, alternately.  Both are far below the voter's
``limits.hang``, so that the guest stays in the vote."""

_DEADLINE = 5.0
"""Seconds within which a reset or an interrupt must be observed; otherwise it counts as failed."""
_POLL = 0.005
_PAGING = 1 << 31
"""Bit of register CR0: paging is on.  Linux never clears it, the firmware never sets it."""
_NMI_LINE = "NMI received"

_log = structlog.get_logger(__name__)


async def crash(machine: GuestPort) -> ActiveFault:
    """Kill its QEMU."""
    pid = machine.pid
    if pid is None:
        raise NotApplied(f"{machine.name} has no QEMU to kill")
    await machine.kill()
    # A QEMU that a former supervisor started may stay a zombie until init reaps it.
    if identify(pid) is not None:
        raise NotApplied(f"process {pid} of {machine.name} is still there")
    return ActiveFault(f"process {pid} has ended", activated=True)


async def hang(machine: GuestPort) -> ActiveFault:
    """Stop its processor."""
    await machine.pause()
    if machine.state is not GuestState.PAUSED:
        raise NotApplied(f"{machine.name} is {machine.state.value}, not paused")
    return ActiveFault(
        f"process {machine.pid} lives, its virtual processor is stopped", activated=True
    )


async def slow_down(machine: GuestPort) -> ActiveFault:
    """Stop its processor for most of each quarter of a second, until undone."""
    await machine.pause()
    stopped = machine.state is GuestState.PAUSED
    await machine.resume()
    if not stopped or machine.state is not GuestState.READY:
        raise NotApplied(f"{machine.name} could not be paused and resumed")
    return keep_slow(machine)


def keep_slow(machine: GuestPort) -> ActiveFault:
    """Start the duty cycle; undoing it leaves the guest running.

    The cycle ends if the guest ends.
    """
    duty = asyncio.create_task(_duty(machine), name=f"slow {machine.name}")

    async def undo() -> None:
        duty.cancel()
        await asyncio.gather(duty, return_exceptions=True)
        if machine.state is GuestState.PAUSED:
            await machine.resume()

    share = SLOW_RUNNING / (SLOW_RUNNING + SLOW_STOPPED)
    proof = f"its virtual processor was paused and resumed; it now runs {share:.0%} of the time"
    return ActiveFault(proof, activated=True, undo=undo)


async def _duty(machine: GuestPort) -> None:
    try:
        while True:
            await machine.pause()
            await asyncio.sleep(SLOW_STOPPED)
            await machine.resume()
            await asyncio.sleep(SLOW_RUNNING)
    except DeployError as error:
        _log.warning(
            "a slow guest ended", guest=machine.name, error=str(error), error_code="TV0511"
        )


async def reset(machine: GuestPort) -> ActiveFault:
    """Press its reset button; prove that it is in the firmware, or that its QEMU has ended.

    Its processor is stopped meanwhile.  On a busy host it might otherwise have left the firmware
    for the booting kernel before the first poll.
    """
    pid = machine.pid
    await machine.pause()
    try:
        await machine.reset()
        return await _await_reset(machine, pid)
    finally:
        if _lives(machine) and machine.state is GuestState.PAUSED:
            await machine.resume()


async def _await_reset(machine: GuestPort, pid: int | None) -> ActiveFault:
    until, problem = time.monotonic() + _DEADLINE, ""
    while _lives(machine) and time.monotonic() < until:
        try:
            control = _cr0(await machine.registers())
        except DeployError as error:
            problem = f": {error}"  # perhaps from a QEMU that is just ending: the next poll decides
        else:
            if not control & _PAGING:
                return ActiveFault(
                    f"its processor is in the firmware (CR0 {control:#x})", activated=True
                )
        await asyncio.sleep(_POLL)  # QEMU resets asynchronously and gives no event
    if not _lives(machine):
        return ActiveFault(f"process {pid} has ended", activated=True)
    raise NotApplied(f"{machine.name} was not observed to reset within {_DEADLINE:g} s{problem}")


def _lives(machine: GuestPort) -> bool:
    """Return whether it has a QEMU at this moment."""
    return machine.pid is not None


def _cr0(text: str) -> int:
    """Return the control register from QEMU's text.  Raises NotApplied."""
    for part in text.split():
        if part.startswith("CR0="):
            return int(part[4:], 16)
    raise NotApplied("QEMU does not report the register CR0")


async def nmi(machine: GuestPort) -> ActiveFault:
    """Send a non-maskable interrupt; wait for the kernel's line about it."""
    before = sum(_NMI_LINE in line for line in machine.tail(10_000))
    await machine.nmi()
    until = time.monotonic() + _DEADLINE
    while time.monotonic() < until:
        lines = [line for line in machine.tail(10_000) if _NMI_LINE in line]
        if len(lines) > before:
            return ActiveFault(f"the guest's kernel printed: {lines[-1].strip()}", activated=True)
        await asyncio.sleep(_POLL)  # the console is read by another task
    raise NotApplied(
        f"{machine.name}'s kernel does not report the interrupt within {_DEADLINE:g} s"
    )


async def flip_register(machine: GuestPort, seed: int, dose: int) -> ActiveFault:
    """Flip ``dose`` bits of its processor's registers."""
    try:
        async with machine.debug_stub() as stub:
            flips = await flip_registers(stub, seed, dose)
    except (StubError, ValueError) as error:
        raise NotApplied(f"{machine.name}: {error}") from error
    return ActiveFault("; ".join(map(str, flips[:4])) + ("; ..." if dose > 4 else ""))
