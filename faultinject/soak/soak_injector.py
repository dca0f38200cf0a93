"""Inject one fault into a running node, and prove that it was applied.

The node's supervisor injects lies, hangs and flipped bits (``faultinject.faults.node_injector``).
Kills and freezes go to processes directly, by the acts of ``faultinject.faults``, because the
supervisor may be the target or be busy with the guest.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploy.host.identity import ProcessIdentity, identify
from deploy.machine.qemu import find_qemu
from deploy.node.records import Layout
from faultinject.faults import processes
from faultinject.faults.site import NotApplied
from faultinject.soak.load import Window
from faultinject.soak.plan import BY_SUPERVISOR, PlannedInjection, SoakFaultKind
from faultinject.soak.record import InjectedFault
from faultinject.soak.view import NoAnswer, NodeView, SupervisorRefused, View

__all__ = ["NOT_EXCHANGED", "InjectionProof", "OpenFault", "SoakInjector", "guest_pid"]

POLL = 0.005
"""Seconds between two polls for a process that another process starts."""
TARGET_PATIENCE = 10.0
"""Seconds for a part that was hit before to have a process again, which can be hit."""
INJECT_TIMEOUT = 30.0
"""Seconds for the supervisor to inject a fault."""
EXCHANGE_TIMEOUT = 150.0
"""Seconds for a rejuvenation: a clone takes one, a boot on a busy host a minute."""
NOT_EXCHANGED = "not rejuvenated"
"""How the result of a rejuvenation that failed begins."""


class InjectionProof(msgspec.Struct, frozen=True, kw_only=True):
    """The proof that a fault was applied at ``at`` (monotonic seconds), and its process, if any."""

    at: float
    proof: str
    process: ProcessIdentity | None = None
    exchange: asyncio.Task[str] | None = None  # a rejuvenation under way; its result as text

    def over(self, kind: SoakFaultKind, target: str, view: View) -> bool:
        """Return whether the process that was hit is replaced, or runs again."""
        if self.exchange is not None:
            return self.exchange.done()
        if self.process is None:
            return True  # injected by the supervisor: the view shows it for as long as it acts
        if kind is SoakFaultKind.GUEST_FREEZE:
            return not _stopped(self.process)
        pids = {"voter": view.voter, "supervisor": view.supervisor}
        now = pids[target] if target in pids else view.guests[target].pid
        return now is not None and now != self.process.pid


@dataclass
class OpenFault:
    """A fault that was applied, until the node has recovered from it."""

    planned: PlannedInjection
    applied: InjectionProof
    overlapped: bool
    seen: str
    window: Window
    recovered_after: float | None = None

    @property
    def killed(self) -> int | None:
        """The guest process that it killed, if it killed one."""
        kills = self.planned.kind is SoakFaultKind.GUEST_KILL
        return self.applied.process.pid if kills and self.applied.process else None

    @property
    def proof(self) -> str:
        """The proof that it was applied; of a rejuvenation, how it ended."""
        exchange = self.applied.exchange
        return exchange.result() if exchange is not None and exchange.done() else self.applied.proof

    def over(self, view: View) -> bool:
        """Return whether the process that was hit is replaced, or runs again."""
        return self.applied.over(self.planned.kind, self.planned.target, view)

    def record(self, began: float) -> InjectedFault:
        """Return its record, with times since ``began`` (monotonic seconds)."""
        planned, recovered = self.planned, self.recovered_after
        return InjectedFault(
            number=planned.number,
            kind=planned.kind,
            target=planned.target,
            seconds=planned.seconds,
            trigger=str(planned.trigger),
            at=round(self.applied.at - began, 3),
            proof=self.proof,
            overlapped=self.overlapped,
            seen=self.seen,
            longest_pause=round(self.window.longest, 4),
            rate=round(self.window.rate, 1),
            recovered_after=None if recovered is None else round(recovered, 3),
        )


class SoakInjector:
    """The injector of one node."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    async def inject(self, planned: PlannedInjection) -> InjectionProof:
        """Apply a fault.  Raises NotApplied."""
        kind, target = planned.kind, planned.target
        if kind in BY_SUPERVISOR:
            return await self._ask_supervisor(planned)
        if kind is SoakFaultKind.REJUVENATE:
            at = time.monotonic()
            exchange = asyncio.create_task(self._rejuvenate(target), name=f"rejuvenate {target}")
            return InjectionProof(at=at, proof="requested", exchange=exchange)
        process = await self._process(target)
        act = processes.hang if kind is SoakFaultKind.GUEST_FREEZE else processes.kill
        at = time.monotonic()
        try:
            applied = await act(process.pid, target)
        except OSError as error:
            raise NotApplied(f"process {process.pid} of {target}: {error}") from error
        return InjectionProof(at=at, proof=applied.proof, process=process)

    async def _ask_supervisor(self, planned: PlannedInjection) -> InjectionProof:
        body = {"kind": str(planned.kind), "guest": planned.target, "seconds": planned.seconds}
        at = time.monotonic()
        try:
            answer = await self._node.supervisor("POST", "/inject", body, INJECT_TIMEOUT)
        except (NoAnswer, SupervisorRefused) as error:
            raise NotApplied(f"{planned.kind} of {planned.target}: {error}") from error
        return InjectionProof(at=at, proof=str(answer["proof"]))

    async def _rejuvenate(self, guest: str) -> str:
        """Have a guest replaced; return how that ended."""
        body = {"guest": guest, "by": None, "share": None}
        try:
            done = await self._node.supervisor("POST", "/rejuvenate", body, EXCHANGE_TIMEOUT)
        except (NoAnswer, SupervisorRefused) as error:
            return f"{NOT_EXCHANGED}: {error}"
        return f"{done['slot']} has taken the place of {guest} after {done['seconds']:.2f} s"

    async def _process(self, target: str) -> ProcessIdentity:
        """Return the process of a target as soon as there is one.  Raises NotApplied."""
        deadline = time.monotonic() + TARGET_PATIENCE
        while True:
            pid = await self._pid(target)
            process = identify(pid) if pid is not None else None
            if process is not None:
                return process
            if time.monotonic() > deadline:
                raise NotApplied(f"{target} has no process for {TARGET_PATIENCE:g} s")
            await asyncio.sleep(POLL)

    async def _pid(self, target: str) -> int | None:
        layout = self._node.layout
        if target in ("voter", "supervisor"):
            known = layout.read_running().processes.get(target)
            return known.pid if known is not None and known.alive else None
        return await asyncio.to_thread(guest_pid, layout, target)


def guest_pid(layout: Layout, guest: str) -> int | None:
    """Return the pid of a guest's QEMU; None if it has none."""
    uuid = layout.read_node().uuids[int(guest.removeprefix("g"))]
    return find_qemu(uuid, disk=layout.disk(guest))


def _stopped(process: ProcessIdentity) -> bool:
    """Return whether a process is stopped by a signal now."""
    if not process.alive:
        return False
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
