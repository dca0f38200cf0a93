"""The supervisor: brings a node up, keeps it as asked, takes it down.

One process for each node.  It starts guests (``deploy.machine.node``) and voter, repairs what
falls out
of the vote, and answers on its control socket.  It serves no requests: killed with SIGKILL,
guests and voter go on without it, and the next one adopts what it can prove to be the node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.host.identity import identify
from deploy.host.logfile import LogFile, read_tail, watch_logs
from deploy.node.durability import PROMISES
from deploy.node.history import EventHistory
from deploy.node.interfaces import FaultFactory, FaultPort, GuestPort, NodePort
from deploy.node.orphans import find_orphans
from deploy.node.records import FaultRecord, Layout, NodeRecord, RunningRecord, Settings
from deploy.node.voter_config import voter_config
from deploy.supervisor.fault_records import FaultRecords, FaultRefused
from deploy.supervisor.repairer import Repairer
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable
from deploy.supervisor.voter_process import VoterProcessManager
from deploy.watchdog.client import WatchdogClient
from deploy.watchdog.watchdog import LIMIT, WINDOW
from voter.core import Policy

__all__ = ["NodeFactory", "Supervisor"]

NodeFactory = Callable[[Layout, NodeRecord], NodePort]
READY_DEADLINE = 60.0
"""Seconds from the guests being up to all of them voting; a new node that does not come so far is
taken down again, one that was taken over is left to repair."""
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
        nursery: WatchdogClient | None = None,
    ) -> None:
        """``report`` is told how the start goes on: {"step": words}, at last {"ready": status}.

        ``nursery`` is the way to our nanny, if there is one.
        """
        self._nursery = nursery if nursery is not None else WatchdogClient()
        self.layout = layout
        self.record = layout.read_node()
        self.settings: Settings = self.record.settings
        self.policy = Policy.parse(self.settings.vote)
        self.phase = "starting"  # starting, up, stopping
        self._report = report
        self._node = make_node(layout, self.record)
        self.guests: Mapping[str, GuestPort] = self._node.guests
        self.history = EventHistory()
        if self._nursery.ended:
            self.history.add(
                "supervisor started again",
                times=self._nursery.restarts,
                ended=self._nursery.ended,
            )
        self._control = VoterControl(layout.voter_control)
        self._voter = VoterProcessManager(
            layout, nursery=self._nursery, history=self.history, changed=self.changed
        )
        self._faults: FaultPort | None = None
        if make_faults is not None and self.settings.allow_faults:
            self._faults = make_faults(self)
        self._book = FaultRecords(self._faults, heal=self.heal, changed=self.changed)
        self._repairer = Repairer(
            self.guests,
            self._control,
            need=self.policy.need,
            auto=self.settings.repair == "auto",
            voter_pid=lambda: self._voter.describe()["pid"],
            replace_voter=self._voter.replace,
            held=self._book.held,
            history=self.history,
        )
        self._addresses: dict[str, str] = {}
        self.took_over = False
        """Whether something of the node ran already, or was meant to."""
        self._before = RunningRecord()
        """What a former supervisor wrote down and this one has not taken over yet."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._began = time.time()

    # ------------------------------------------------------------- running

    async def serve(self) -> None:
        """Bring the node up, keep it until ``stop``, take it down.

        Raises DeployError if it does not come up; then everything is down again.  If the
        supervisor itself fails later, or on its way to take over what runs, guests and voter are
        left running, for the next one to adopt.
        """
        self._nursery.watch(self.changed)
        try:
            await self._run()
        except BaseExceptionGroup as errors:
            ours, others = errors.split(DeployError)
            if ours is None or others is not None:
                raise  # a fault of the supervisor itself: the traceback goes into its log
            raise _first(ours) from None
        finally:
            asked = self._stop.is_set()
            down = asked or (self.phase == "starting" and not self.took_over)
            self.phase = "stopping"
            if asked:
                self._nursery.down()
            self._book.stop()
            if down:
                await self._take_down()
            else:
                await self._let_go()

    def stop(self) -> None:
        """Take the node down."""
        self._stop.set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            await self._interruptible(self._bring_up(group))
            if not self._stop.is_set():
                self.phase = "up"
                self._nursery.up()
                self._begin(group, "repair", self._repairer.run())
                if self._faults is not None:
                    self._begin(group, "faults", self._faults.keep())
                await self._interruptible(self._tell_ready())
                await self._stop.wait()
            for task in self._tasks:
                task.cancel()

    def _begin(self, group: asyncio.TaskGroup, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(group.create_task(work, name=name))

    async def _interruptible(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but no longer than until ``stop``."""
        task = asyncio.create_task(work, name="bring up")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if not task.cancelled():
            task.result()

    async def _bring_up(self, group: asyncio.TaskGroup) -> None:
        """Have voter and guests run.

        Where anything of the node runs already, or is meant to, clients are being served: the
        voter comes first, and guests that do not run are left to repair.
        """
        before = self._before = self.layout.read_running()
        voter = before.processes.get("voter")
        adopted = voter is not None and self._voter.adopt(voter)
        self.took_over = adopted or bool(self._nursery.ended or find_orphans(self.layout))
        self._addresses = {
            name: address
            for name, address in (("http", before.http), ("native", before.native))
            if address is not None and self.took_over
        }
        if adopted:
            self._say(f"the voter (process {voter.pid if voter else 0}) goes on")
            self._watch_voter(group)
        else:
            self._bind()
            if self.took_over:
                self._start_voter(group)
        self._node.listen(lambda _: self._repairer.wake())
        await self._node.up(self._say, take_over=self.took_over)
        if self._faults is not None:
            await self._faults.start(before.processes)
            await self._book.resume(before.faults)
        self._before = RunningRecord()
        if not self.took_over:
            self._start_voter(group)
            await self._wait_ready()
        self.changed()

    def _start_voter(self, group: asyncio.TaskGroup) -> None:
        links = {name: self._link(name) for name in self.guests}
        text = voter_config(self.layout, self.settings, self.record.uuids[0], links)
        self.layout.voter_config.write_text(text)
        self._voter.start()
        self._watch_voter(group)

    def _watch_voter(self, group: asyncio.TaskGroup) -> None:
        layout = self.layout
        logs = (layout.voter_log, layout.supervisor_log, layout.proxy_log)
        self._begin(group, "voter", self._voter.keep(self._bind))
        self._begin(group, "voter events", self._repairer.follow())
        self._begin(group, "logs", watch_logs([LogFile(path) for path in logs]))

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
        """Wait until all vote.  Raises DeployError with the voter's words if it does not start."""
        self._say("waiting for the vote")
        free = [name for name in self.guests if not self._book.held(name)]
        waiting = asyncio.create_task(self._repairer.wait_active(free, READY_DEADLINE))
        failed = asyncio.create_task(self._voter.failed.wait())
        try:
            await asyncio.wait([waiting, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise DeployError(self._voter.problem, remedy=f"see {self.layout.voter_log}")
            if waiting.result():
                return
        finally:
            waiting.cancel()
            failed.cancel()
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

    async def _tell_ready(self) -> None:
        """Tell whoever started us how the node stands; what was taken over has time to be well."""
        if self.took_over:
            free = [name for name in self.guests if not self._book.held(name)]
            if not await self._repairer.wait_active(free, READY_DEADLINE):
                self._say("not all guests vote: see `trivisor status`")
        self._report({"ready": await self.status()})

    async def _take_down(self) -> None:
        _log.info("taking the node down")
        try:
            await self._control.close()
            await self._voter.end()
            if self._faults is not None:
                await self._faults.end()
        finally:
            try:
                await self._node.down()
            finally:  # also where libvirt could not be opened: no stale socket, no stale record
                for path in (self.layout.native_socket, self.layout.voter_control):
                    path.unlink(missing_ok=True)
                self.layout.write(RunningRecord())
        _log.info("the node is down")

    async def _let_go(self) -> None:
        _log.error("the supervisor ends; guests and voter go on without it")
        await self._control.close()
        self._voter.let_go()
        if self._faults is not None:
            await self._faults.let_go()
        await self._node.let_go()

    def _say(self, step: str) -> None:
        _log.info("start", step=step)
        self._report({"step": step})

    def changed(self) -> None:
        """Write down which processes belong to the node, and which faults hold."""
        processes = {
            name: identity for name, identity in self._before.processes.items() if name == "proxy"
        }
        me, voter = identify(os.getpid()), self._voter.identity
        if me is not None:
            processes["supervisor"] = me
        if self._nursery.nanny is not None:
            processes["nanny"] = self._nursery.nanny
        if voter is not None:
            processes["voter"] = voter
        if self._faults is not None:
            processes.update(self._faults.processes)
        self.layout.write(
            RunningRecord(
                processes=processes,
                http=self._addresses.get("http"),
                native=self._addresses.get("native"),
                faults={**self._before.faults, **self._book.holds},
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
        with contextlib.suppress(VoterUnreachable):
            await self._repairer.look()
        said = self._repairer.voter_status
        now = time.monotonic()
        nanny = self._nursery.nanny
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
            "supervisor": {
                "pid": os.getpid(),
                "since": self._began,
                "nanny": nanny.pid if nanny is not None else None,
                "restarts": self._nursery.restarts,
                "limit": LIMIT,
                "window": WINDOW,
                "ended": self._nursery.ended or None,
            },
            "durability": {
                "kind": self.settings.durability,
                "promise": PROMISES[self.settings.durability],
                "journal": said.get("journal") if said is not None else None,
            },
            "voter": {
                **self._voter.describe(),
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


def _first(group: BaseExceptionGroup[DeployError]) -> DeployError:
    """Return one error of tasks that failed together: one is what a user can act on."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
