"""The supervisor: brings a node up, keeps it as asked, takes it down.

One process for each node.  It starts guests (``deploy.node``) and voter, repairs what falls out
of the vote, and answers on its control socket.  It serves no requests: killed with SIGKILL,
guests and voter go on without it, and the next one adopts what it can prove to be the node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.history import History
from deploy.identity import Identity, identify
from deploy.logfile import LogFile, read_tail, watch_logs
from deploy.ports import FaultFactory, FaultPort, GuestPort, NodePort
from deploy.records import FaultRecord, Layout, NodeRecord, Running, Settings
from deploy.supervisor_faults import FaultBook, FaultRefused
from deploy.supervisor_repair import Repairer
from deploy.supervisor_voter import VoterHost, VoterSilent, voter_config
from voter.core import Policy

__all__ = ["NodeFactory", "Supervisor"]

NodeFactory = Callable[[Layout, NodeRecord], NodePort]
READY_DEADLINE = 60.0
"""Seconds from the guests being up to all of them voting."""
LOG_LINES = 500

_log = structlog.get_logger(__name__)


class Supervisor:
    """Runs one node.  ``serve`` does everything; the rest is what the control socket offers."""

    def __init__(
        self,
        layout: Layout,
        *,
        make_node: NodeFactory,
        make_faults: FaultFactory | None = None,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        """``report`` is told how the start goes on: {"step": words}, at last {"ready": status}."""
        self.layout = layout
        self.record = layout.read_node()
        self.settings: Settings = self.record.settings
        self.policy = Policy.parse(self.settings.vote)
        self.phase = "starting"  # starting, up, stopping
        self._report = report
        self._node = make_node(layout, self.record)
        self.guests: Mapping[str, GuestPort] = self._node.guests
        self.history = History()
        self._voter = VoterHost(layout, changed=self.changed)
        self._faults: FaultPort | None = None
        if make_faults is not None and self.settings.allow_faults:
            self._faults = make_faults(self)
        self._book = FaultBook(self._faults, heal=self.heal, changed=self.changed)
        self._repairer = Repairer(
            self.guests,
            self._voter,
            need=self.policy.need,
            auto=self.settings.repair == "auto",
            held=self._book.held,
            history=self.history,
        )
        self._addresses: dict[str, str] = {}
        self._stop = asyncio.Event()
        self._began = time.time()

    # ------------------------------------------------------------- running

    async def serve(self) -> None:
        """Bring the node up, keep it until ``stop``, take it down.

        Raises DeployError if it does not come up; then everything is down again.  If the
        supervisor itself fails later, guests and voter are left running, for the next one to
        adopt.
        """
        down = True
        try:
            await self._interruptible(self._bring_up())
            if not self._stop.is_set():
                self.phase = "up"
                self._report({"ready": await self.status()})
                down = False
                await self._keep()
                down = True
        finally:
            self.phase = "stopping"
            self._book.stop()
            if down:
                await self._take_down()
            else:
                await self._let_go()

    def stop(self) -> None:
        """Take the node down."""
        self._stop.set()

    async def _interruptible(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but no longer than until ``stop``."""
        task = asyncio.create_task(work, name="bring up")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            task.result()

    async def _bring_up(self) -> None:
        before = self.layout.read_running()
        voter = before.processes.get("voter")
        adopted = voter is not None and self._voter.adopt(voter)
        if adopted:
            self._addresses = {
                name: address
                for name, address in (("http", before.http), ("native", before.native))
                if address is not None
            }
            self._say(f"the voter (process {voter.pid if voter else 0}) goes on")
        else:
            self._bind()
        self._node.listen(lambda _: self._repairer.wake())
        await self._node.up(self._say)
        if self._faults is not None:
            await self._faults.start(before.processes)
            await self._book.resume(before.faults)
        if not adopted:
            links = {name: self._link(name) for name in self.guests}
            self.layout.voter_config.write_text(voter_config(self.layout, self.settings, links))
            self._voter.start()
        self.changed()
        await self._wait_ready()

    def _link(self, name: str) -> str:
        if self._faults is not None:
            return self._faults.link(name)
        return f"unix:{self.guests[name].link_socket}"

    def _bind(self) -> None:
        wanted = self._addresses.get("http", self.settings.http)
        native = self._addresses.get("native", self.settings.native)
        self._addresses = self._voter.bind(wanted, native)
        self.changed()

    async def _wait_ready(self) -> None:
        self._say("waiting for the vote")
        watching = [
            asyncio.create_task(self._repairer.follow(), name="voter events"),
            asyncio.create_task(self._voter.keep(self._bind), name="voter"),
        ]
        free = [name for name in self.guests if not self._book.held(name)]
        try:
            if await self._repairer.wait_active(free, READY_DEADLINE):
                return
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        missing = [name for name in free if self._repairer.replica_state(name) != "active"]
        said = [
            f"  {name}: {self._repairer.replicas.get(name, {}).get('reason', 'unknown')}"
            for name in missing
        ]
        lines = [f"  voter: {line}" for line in read_tail(self.layout.voter_log, 5)]
        raise DeployError(
            f"{', '.join(missing)} did not come to vote within {READY_DEADLINE:g} s "
            f"{self._voter.problem}\n" + "\n".join([*said, *lines]),
            remedy=f"see the logs in {self.layout.directory}",
        )

    async def _keep(self) -> None:
        """Keep the node as it is until ``stop``."""
        layout = self.layout
        logs = [
            LogFile(path) for path in (layout.voter_log, layout.supervisor_log, layout.proxy_log)
        ]
        work: dict[str, Awaitable[None]] = {
            "voter": self._voter.keep(self._bind),
            "voter events": self._repairer.follow(),
            "repair": self._repairer.run(),
            "logs": watch_logs(logs),
        }
        if self._faults is not None:
            work["faults"] = self._faults.keep()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(item), name=name) for name, item in work.items()]
            await self._stop.wait()
            for task in tasks:
                task.cancel()

    async def _take_down(self) -> None:
        _log.info("taking the node down")
        try:
            await self._voter.end()
            if self._faults is not None:
                await self._faults.end()
        finally:
            try:
                await self._node.down()
            finally:  # also where libvirt could not be opened: no stale socket, no stale record
                for path in (self.layout.native_socket, self.layout.voter_control):
                    path.unlink(missing_ok=True)
                self.layout.write(Running())
        _log.info("the node is down")

    async def _let_go(self) -> None:
        _log.error("the supervisor ends; guests and voter go on without it")
        await self._voter.let_go()
        if self._faults is not None:
            await self._faults.let_go()
        await self._node.let_go()

    def _say(self, step: str) -> None:
        _log.info("start", step=step)
        self._report({"step": step})

    def changed(self) -> None:
        """Write down which processes belong to the node, and which faults hold."""
        processes: dict[str, Identity] = {}
        me, voter = identify(os.getpid()), self._voter.identity
        if me is not None:
            processes["supervisor"] = me
        if voter is not None:
            processes["voter"] = voter
        if self._faults is not None:
            processes.update(self._faults.processes)
        self.layout.write(
            Running(
                processes=processes,
                http=self._addresses.get("http"),
                native=self._addresses.get("native"),
                faults=dict(self._book.holds),
            )
        )
        self._repairer.wake()

    # ------------------------------------------------- asked of the supervisor

    def find(self, guest: str) -> GuestPort:
        """Return the guest of this name.  Raises DeployError that lists the names."""
        try:
            return self.guests[guest]
        except KeyError:
            names = ", ".join(self.guests)
            raise DeployError(f"no guest {guest!r} in this node: it has {names}") from None

    async def inject(self, kind: str, guest: str, seconds: float | None) -> FaultRecord:
        """Break a guest, for ``seconds`` or until healed.  Raises FaultRefused, DeployError."""
        self.find(guest)
        if self.phase != "up":
            raise FaultRefused(f"the node is {self.phase}")
        async with self._repairer.holding(guest):
            record = await self._book.inject(kind, guest, seconds)
        self.history.add("injected", guest, kind=kind, seconds=seconds, proof=record.proof)
        return record

    async def heal(self, guest: str) -> dict[str, Any]:
        """Undo what was injected, put the guest back if it must be, return once it votes.

        Raises DeployError, also if it must be put back and there is no majority without it.
        """
        self.find(guest)
        began = time.monotonic()
        fault = self._book.holds.get(guest)
        await self._repairer.heal(
            guest,
            undo=lambda: self._book.undo(guest),
            must=self._book.must_put_back(guest),
        )
        kind = fault.kind if fault is not None else None
        seconds = round(time.monotonic() - began, 3)
        self.history.add("healed", guest, kind=kind, seconds=seconds)
        return {"guest": guest, "fault": kind, "seconds": seconds}

    async def status(self) -> dict[str, Any]:
        """Return how everything stands, as plain data."""
        with contextlib.suppress(VoterSilent):
            await self._repairer.look()
        said = self._repairer.voter_status
        voter = self._voter.identity
        now = time.monotonic()
        return {
            "dir": str(self.layout.directory),
            "uuid": self.record.uuids[0],
            "phase": self.phase,
            "standing": said["standing"] if said is not None else "unreachable",
            "vote": self.settings.vote,
            "service": self.settings.service,
            "http": self._addresses.get("http"),
            "native": self._addresses.get("native"),
            "native_unix": str(self.layout.native_socket),
            "accel": self.record.accel,
            "accel_reason": self.record.accel_reason,
            "image": self.record.image,
            "connect": self.settings.connect,
            "repair": self.settings.repair,
            "allow_faults": self.settings.allow_faults,
            "supervisor": {"pid": os.getpid(), "since": self._began},
            "voter": {
                "pid": voter.pid if voter is not None else None,
                "restarts": self._voter.restarts,
                "given_up": self._voter.given_up,
                "problem": self._voter.problem,
                "seq": said.get("seq") if said is not None else None,
                "counters": said.get("counters", {}) if said is not None else {},
            },
            "guests": [self._describe(name, now) for name in self.guests],
        }

    def _describe(self, name: str, now: float) -> dict[str, Any]:
        guest, replica = self.guests[name], self._repairer.replicas.get(name, {})
        vm, voting = str(guest.state), self._repairer.replica_state(name)
        fault = self._book.holds.get(name)
        return {
            "name": name,
            "state": vm if vm != "ready" else voting or vm,
            "pid": guest.pid,
            "vm": vm,
            "replica": {
                key: replica.get(key)
                for key in ("state", "reason", "incarnation", "lag", "dissents", "expulsions")
            },
            "fault": None if fault is None else msgspec.to_builtins(fault),
            "repairs": self._repairer.describe(name, now),
        }

    def logs(self, name: str, count: int) -> list[str]:
        """Return the last lines of a guest's console, or of voter, supervisor or proxy."""
        files = {
            "voter": self.layout.voter_log,
            "supervisor": self.layout.supervisor_log,
            "proxy": self.layout.proxy_log,
        }
        count = max(0, min(count, LOG_LINES))
        if name in files:
            return read_tail(files[name], count)
        return self.find(name).tail(count)


async def _run(item: Awaitable[None]) -> None:
    await item
