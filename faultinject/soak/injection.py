"""Carries out one fault, and proves that it was applied."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from deploy.host.identity import ProcessIdentity, identify
from deploy.machine.qemu import find_qemu
from faultinject.soak.plan import PlannedInjection, SoakFaultKind
from faultinject.soak.view import NoAnswer, NodeView, View, ViewRefused

__all__ = ["InjectionProof", "InjectionNotApplied", "SoakInjector"]

POLL = 0.005
"""Seconds between looks at what gives no event."""
TARGET_PATIENCE = 10.0
"""Seconds for a part that was hit before to have a process again, which can be hit."""
GONE_PATIENCE = 10.0
"""Seconds for a killed process to be gone: the kernel frees its memory, no more."""
INJECT_PATIENCE = 30.0


class InjectionNotApplied(Exception):
    """A fault could not be applied, or not be proved applied."""


class InjectionProof(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that was applied: when (steady seconds), to which process (if to one), the proof."""

    at: float
    proof: str
    process: ProcessIdentity | None = None

    def over(self, kind: SoakFaultKind, target: str, view: View) -> bool:
        """Whether nothing of it is left in what is seen: its process is replaced, or runs again."""
        if self.process is None:
            return True  # an injected one: the view says so as long as it holds
        if kind is SoakFaultKind.GUEST_FREEZE:
            return not _stopped(self.process)
        pids = {"voter": view.voter, "supervisor": view.supervisor}
        now = pids[target] if target in pids else view.guests[target].pid
        return now is not None and now != self.process.pid


class SoakInjector:
    """Breaks one node."""

    def __init__(self, node: NodeView) -> None:
        self._node = node
        self._layout = node.layout

    async def strike(self, strike: PlannedInjection) -> InjectionProof:
        """Apply a fault.  Raises NotApplied."""
        apply: dict[SoakFaultKind, Callable[[str], Awaitable[InjectionProof]]] = {
            SoakFaultKind.VOTER_KILL: self._kill,
            SoakFaultKind.SUPERVISOR_KILL: self._kill,
            SoakFaultKind.GUEST_KILL: self._kill,
            SoakFaultKind.GUEST_FREEZE: self._freeze,
        }
        if strike.kind in apply:
            return await apply[strike.kind](strike.target)
        return await self._inject(strike)

    async def _inject(self, strike: PlannedInjection) -> InjectionProof:
        body = {"kind": str(strike.kind), "guest": strike.target, "seconds": strike.seconds}
        began = time.monotonic()
        try:
            said = await self._node.supervisor("POST", "/inject", body, INJECT_PATIENCE)
        except (NoAnswer, ViewRefused) as error:
            raise InjectionNotApplied(f"{strike.kind} of {strike.target}: {error}") from error
        return InjectionProof(at=began, proof=str(said["proof"]))

    async def _kill(self, target: str) -> InjectionProof:
        process = await self._process(target)
        at = _signal(process, signal.SIGKILL)
        await self._until(lambda: not process.alive, GONE_PATIENCE, f"{process.pid} is still there")
        proof = (
            f"process {process.pid} got SIGKILL and was gone {time.monotonic() - at:.3f} s later"
        )
        return InjectionProof(at=at, proof=proof, process=process)

    async def _freeze(self, target: str) -> InjectionProof:
        process = await self._process(target)
        at = _signal(process, signal.SIGSTOP)
        await self._until(lambda: _stopped(process), 1.0, f"{process.pid} is not stopped")
        proof = f"process {process.pid} got SIGSTOP, its state is T"
        return InjectionProof(at=at, proof=proof, process=process)

    async def _process(self, target: str) -> ProcessIdentity:
        """Return the process to hit, as soon as there is one."""
        deadline = time.monotonic() + TARGET_PATIENCE
        while True:
            pid = await self._pid(target)
            process = identify(pid) if pid is not None else None
            if process is not None:
                return process
            if time.monotonic() > deadline:
                raise InjectionNotApplied(f"{target} has no process for {TARGET_PATIENCE:g} s")
            await asyncio.sleep(POLL)  # another process starts it

    async def _pid(self, target: str) -> int | None:
        if target in ("voter", "supervisor"):
            known = self._layout.read_running().processes.get(target)
            return known.pid if known is not None and known.alive else None
        record = self._layout.read_node()
        number = int(target.removeprefix("g"))
        disk = f"{self._layout.directory}/{target}.qcow2"
        return await asyncio.to_thread(find_qemu, record.uuids[number], naming=disk)

    @staticmethod
    async def _until(condition: Callable[[], bool], seconds: float, problem: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise InjectionNotApplied(f"process {problem}")
            await asyncio.sleep(POLL)  # a child of another process: nothing tells us


def _signal(process: ProcessIdentity, number: signal.Signals) -> float:
    """Send a signal to this very process; return when.  Raises NotApplied."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError as error:
        raise InjectionNotApplied(f"process {process.pid} ended by itself") from error
    try:
        if not process.alive:  # asked after the pidfd: no other process can be meant
            raise InjectionNotApplied(f"process {process.pid} ended by itself")
        at = time.monotonic()
        signal.pidfd_send_signal(pidfd, number)
        return at
    except ProcessLookupError as error:
        raise InjectionNotApplied(f"process {process.pid} ended by itself") from error
    finally:
        os.close(pidfd)


def _stopped(process: ProcessIdentity) -> bool:
    """Whether it is stopped by a signal now."""
    if not process.alive:
        return False
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
