"""The supervisor: brings a node up, keeps it running, takes it down.

There is one process for each node.  It starts the guests and the voter, repairs guests that leave
the vote, and answers on its control socket.  It serves no requests: if it is killed, guests and
voter continue without it, and the next supervisor adopts what it can prove to be the node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from deploy.errors import DeployError, UnknownGuest, first_error
from deploy.host.child import Child
from deploy.host.files import LogFile, read_tail, write_json, write_whole
from deploy.host.identity import identify
from deploy.node.configuration import voter_config
from deploy.node.interfaces import FaultFactory, FaultPort, GuestPort, NodePort
from deploy.node.processes import find_processes
from deploy.node.records import (
    FaultRecord,
    Layout,
    NodeRecord,
    RunningRecord,
    Settings,
)
from deploy.supervisor.active_faults import ActiveFaults, FaultRefused
from deploy.supervisor.managed_voter import ManagedVoter
from deploy.supervisor.membership import Membership
from deploy.supervisor.node_status import NodeStatus
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.patching import NodeImage, make_patcher
from deploy.supervisor.rejuvenation import Method, Rejuvenation
from deploy.supervisor.repairer import Repairer
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl
from deploy.supervisor.voter_process import VoterProcessManager
from deploy.watchdog.client import WatchdogClient
from voter.core import Policy

__all__ = ["NodeFactory", "Supervisor"]

NodeFactory = Callable[[Layout, NodeRecord], NodePort]
READY_DEADLINE = 60.0
"""Seconds from the guests being ready to all of them voting, or as many as a booting guest may make
no progress, if that is more.  After that a new node is taken down
again; in a node that was taken over, repair continues."""
PROXY_GRACE = 2.0
"""Seconds for a former supervisor's proxy to end after SIGTERM."""
FILES_INTERVAL = 2.0
"""Seconds between checks of the disk's room, of the logs' sizes, of what is not yet recorded."""
CONSOLE_LINES = 500
"""Lines of each guest's console that are kept after the node's end."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """Runs one node.  ``serve`` runs it; the other methods serve the control socket.

    ``report`` receives the steps of the start: {"step": text}, finally {"ready": status}.
    ``watchdog`` is the connection to the watchdog, if there is one.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        make_node: NodeFactory,
        make_faults: FaultFactory | None = None,
        report: Callable[[dict[str, Any]], None],
        watchdog: WatchdogClient | None = None,
    ) -> None:
        self._watchdog = watchdog if watchdog is not None else WatchdogClient()
        self.layout = layout
        self.record = layout.read_node()
        self.settings: Settings = self.record.settings
        self.policy = Policy.parse(self.settings.vote)
        self._ready_limit = max(READY_DEADLINE, self.settings.boot_deadline)
        self.phase = "starting"  # starting, up, stopping
        self._report = report
        self._node = make_node(layout, self.record)
        self.guests: Mapping[str, GuestPort] = self._node.guests
        self.history = EventHistory()
        if ended := self._watchdog.ended:
            self.history.add("supervisor restarted", times=self._watchdog.restarts, ended=ended)
        self.storage = Storage(layout, self.history, repair_room=2 * self.settings.memory_mib << 20)
        self._recorded = True
        self._control = VoterControl(layout.voter_control)
        self.faults: FaultPort | None = None
        if make_faults is not None and self.settings.allow_faults:
            self.faults = make_faults(self)
        self._records = ActiveFaults(
            self.faults, layout.faults_hint, heal=self.heal, changed=self.changed
        )
        self._observer = NodeObserver(
            self.guests, self._control, voter_pid=lambda: self._voter.pid, history=self.history
        )
        self._voter: VoterProcessManager | ManagedVoter
        if self.record.managed:
            self._voter = ManagedVoter(layout, self._control, self._observer)
        else:
            self._voter = VoterProcessManager(
                layout,
                watchdog=self._watchdog,
                history=self.history,
                storage=self.storage,
                changed=self.changed,
            )
        self.membership = Membership(
            layout,
            self._node,
            self._control,
            self._observer,
            voters=self.policy.of,
            slowness=self.settings.slowness,
            storage=self.storage,
            history=self.history,
        )
        self._repairer = Repairer(
            self.guests,
            self._control,
            self._observer,
            need=self.policy.need,
            auto=self.settings.repair == "auto",
            slowness=self.settings.slowness,
            replace_voter=self._voter.replace,
            has_fault=lambda guest: guest in self._records.active,
            is_voter=lambda guest: self.membership.role(guest) == "voter",
            hypervisor_problem=lambda: self._node.problem,
            storage=self.storage,
            history=self.history,
        )
        self.rejuvenation = Rejuvenation(
            self.settings,
            self.membership,
            repairer=self._repairer,
            faults=self._records,
            observer=self._observer,
            storage=self.storage,
            hypervisor_problem=lambda: self._node.problem,
            history=self.history,
        )
        image = NodeImage(layout, self.record)
        self.patcher = make_patcher(
            layout, image, self._node, self.membership, self._observer, self._control,
            self._repairer, self._records, self.storage, self.history,
        )  # fmt: skip
        self._status = NodeStatus(
            layout,
            image,
            self._node,
            observer=self._observer,
            voter=self._voter,
            repairer=self._repairer,
            faults=self._records,
            membership=self.membership,
            rejuvenation=self.rejuvenation,
            patcher=self.patcher,
            storage=self.storage,
            watchdog=self._watchdog,
        )
        self._addresses: dict[str, str] = {}
        self.dashboard: str | None = None  # its address
        self.took_over = False
        """Whether a part of the node already ran, or was to be restarted."""
        self._before = RunningRecord()
        """The former supervisor's record, until this one has taken everything over."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._me = identify(os.getpid())

    # ---- running

    async def serve(self) -> None:
        """Bring the node up, keep it until ``stop``, take it down.

        Raises DeployError if it does not come up; everything is then down again.  If the supervisor
        itself fails later, or while it takes over, guests and voter continue to run, for the next
        supervisor to adopt.
        """
        self._watchdog.watch(self.changed)
        try:
            await self._run()
        except BaseExceptionGroup as errors:
            ours, others = errors.split(DeployError)
            if ours is None or others is not None:
                raise  # a defect of the supervisor itself: its traceback goes into the log
            raise self._failed(first_error(ours)) from None
        except DeployError as error:
            raise self._failed(error) from error.__cause__
        finally:
            requested = self._stop.is_set()
            down = requested or (self.phase == "starting" and not self.took_over)
            self.phase = "stopping"
            self.membership.close()
            if requested:
                self._watchdog.down()
            self._records.stop()
            if down:
                await self._take_down()
            else:
                await self._release()

    def _failed(self, error: DeployError) -> DeployError:
        """Record an error; return it."""
        self.history.add("node failed", phase=self.phase, error=str(error))
        return error

    def stop(self) -> None:
        """Take the node down."""
        self._stop.set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            await self._interruptible(self._bring_up(group))
            if not self._stop.is_set():
                self.phase = "up"
                self._watchdog.up()
                self._begin(group, "repair", self._repairer.run())
                self._begin(group, "membership", self.membership.run())
                self._begin(group, "rejuvenation", self.rejuvenation.run())
                self.patcher.begin(taken_over=self.took_over)
                self._begin(group, "patches", self.patcher.run())
                if self.faults is not None:
                    self._begin(group, "faults", self.faults.keep())
                await self._interruptible(self._report_ready())
                await self._stop.wait()
            self.membership.close()
            for task in self._tasks:
                task.cancel()

    def _begin(self, group: asyncio.TaskGroup, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(group.create_task(work, name=name))

    async def _interruptible(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but cancel it at ``stop``."""
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
        """Start or adopt voter and guests.

        If a part of the node already runs, clients are being served: the voter comes first, and
        repair restores the guests that do not run.
        """
        before = self._before = self.layout.read_running()
        found = dict(find_processes(self.layout))
        processes = before.processes | found  # a record may be older, after a full disk
        voter = processes.get("voter")
        adopted = voter is not None and self._voter.adopt(voter)
        running = found.keys() - {"supervisor", "watchdog", "standby"}
        self.took_over = adopted or bool(self._watchdog.ended or running)
        self._addresses = {
            name: address
            for name, address in (("http", before.http), ("native", before.native))
            if address is not None and self.took_over
        }
        if adopted:
            self._step(f"adopted the voter (process {self._voter.pid})")
            self._watch_voter(group)
        else:
            self._bind()
            if self.took_over:
                self._start_voter(group)
        self._node.subscribe(lambda _: self._observer.wake())
        await self._node.up(self._step, take_over=self.took_over, empty=self.membership.retired)
        if self.faults is not None:
            await self.faults.start(processes)
            await self._records.resume(before.faults)
        self._before = RunningRecord()
        if not self.took_over:
            self._start_voter(group)
            await self._wait_ready()
        self.changed()

    def _start_voter(self, group: asyncio.TaskGroup) -> None:
        if not self.record.managed:  # else `prepare` has written it
            links = {name: self._link(name) for name in self.guests}
            text = voter_config(self.layout, self.settings, self.record.uuids[0], links)
            write_whole(self.layout.voter_config, text.encode())
        self._voter.start()
        self._watch_voter(group)

    def _watch_voter(self, group: asyncio.TaskGroup) -> None:
        self._begin(group, "voter", self._voter.keep(self._bind))
        self._begin(group, "voter events", self._observer.follow())
        self._begin(group, "files", self._keep_files())

    async def _keep_files(self) -> None:
        """Check the disk, trim the logs, and record what could not be recorded before."""
        logs = [LogFile(path) for path in self.layout.logs.values()]
        while True:
            before = self.storage.problem
            self.storage.check()
            for log in logs:
                self.storage.write(log.path.name, log.trim)
            if not self._recorded or bool(before) != bool(self.storage.problem):
                self.changed()
            await asyncio.sleep(FILES_INTERVAL)  # no event reports that there is room

    def _link(self, name: str) -> str:
        if self.faults is not None:
            return self.faults.link(name)
        return f"unix:{self.guests[name].link_socket}"

    def _bind(self) -> None:
        wanted = self._addresses.get("http", self.settings.http)
        native = self._addresses.get("native", self.settings.native)
        self._addresses = self._voter.bind(wanted, native)
        self.changed()

    async def _wait_ready(self) -> None:
        """Wait until all guests vote.  Raises DeployError with the voter's message if it fails."""
        self._step("waiting until all guests vote")
        waiting = asyncio.create_task(self._wait_voting())
        failed = asyncio.create_task(self._voter.failed.wait())
        need = Policy.parse(self.settings.vote).need
        mismatched = asyncio.create_task(self._observer.wait_mismatched(need))
        tasks = (waiting, failed, mismatched)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise self._voter.error()
            if waiting.done() and waiting.result():
                return
            if mismatched.done():
                seen = "".join(f"\n  {n}: {why}" for n, why in self._observer.mismatched.items())
                text = f"the service differs from the one that wrote the journal{seen}"
                remedy = f"run the former service again, or {self.layout.empty_hint}"
                raise DeployError(text, remedy=remedy, error_code="TV0710")
        finally:
            for task in tasks:
                task.cancel()
        missing = [
            name for name in self._without_fault() if self._observer.replica_state(name) != "active"
        ]
        replicas = self._observer.replicas
        lines = [f"  {n}: {replicas.get(n, {}).get('reason', 'unknown')}" for n in missing]
        lines += [f"  voter: {line}" for line in read_tail(self.layout.voter_log, 5)]
        raise DeployError(
            f"{', '.join(missing)} did not vote within {self._ready_limit:g} s "
            f"{self._voter.problem}\n" + "\n".join(lines),
            remedy=f"see the logs in {self.layout.directory}",
            error_code="TV0717",
        )

    async def _wait_voting(self) -> bool:
        """Wait until the guests are in the slots that vote, and vote; return False if they do not.

        Raises DeployError if one of them cannot be started.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._ready_limit):
                await self.membership.settle()
        return await self._observer.wait_active(self._without_fault, self._ready_limit)

    async def _report_ready(self) -> None:
        """Report the node's status; after a take-over, give repair time first."""
        if self.took_over and not await self._observer.wait_active(
            self._without_fault, self._ready_limit
        ):
            self._step("not all guests vote: see `trivisor status`")
        self._report({"ready": await self.status()})

    def _keep_last_run(self) -> None:
        """Write events and consoles for `trivisor logs` after the end."""
        consoles = {name: guest.tail(CONSOLE_LINES) for name, guest in self.guests.items()}
        last = {"time": time.time(), "events": self.history.after(0), "consoles": consoles}
        path = self.layout.last_run
        self.storage.write(path.name, lambda: write_json(path, last, mode=0o600))

    async def _take_down(self) -> None:
        _log.info("taking the node down")
        self._keep_last_run()
        try:
            await self._voter.end()
            await self._control.close()
            if self.faults is not None:
                await self.faults.end()
            former = self._before.processes.get("proxy")  # of a take-over that was interrupted
            proxy = Child.adopt(former) if former is not None else None
            if proxy is not None:
                await proxy.end(PROXY_GRACE)
        finally:
            try:
                await self._node.down()
            finally:  # leave no stale socket or record even if libvirt could not be opened
                layout = self.layout
                for path in (*self._voter.files, layout.running):
                    self.storage.write(path.name, lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]
        _log.info("the node is down")

    async def _release(self) -> None:
        _log.error("the supervisor ends", error_code="TV0733")
        await self._control.close()
        self._voter.release()
        if self.faults is not None:
            await self.faults.release()
        await self._node.release()

    def _step(self, step: str) -> None:
        _log.info("start", step=step)
        self._report({"step": step})

    def _without_fault(self) -> list[str]:
        return [name for name in self.membership.voting_slots if name not in self._records.active]

    def changed(self) -> None:
        """Record the node's processes and active faults in running.json, now or when it can."""
        processes = {
            name: identity for name, identity in self._before.processes.items() if name == "proxy"
        }
        voter = self._voter.identity
        if self._me is not None:
            processes["supervisor"] = self._me
        if self._watchdog.process is not None:
            processes["watchdog"] = self._watchdog.process
        if voter is not None:
            processes["voter"] = voter
        if self.faults is not None:
            processes.update(self.faults.processes)
        record = RunningRecord(
            processes=processes,
            http=self._addresses.get("http"),
            native=self._addresses.get("native"),
            dashboard=self.dashboard,
            faults={**self._before.faults, **self._records.active},
        )
        self._recorded = self.storage.write("running.json", lambda: self.layout.write(record))
        self._observer.wake()

    # ---- requests of the control socket

    def find(self, guest: str) -> GuestPort:
        """Return the guest of this name.  Raises DeployError with the existing names."""
        used = self.membership.used
        if guest not in used:
            raise UnknownGuest(f"this node has no guest {guest!r}: it has {', '.join(used)}")
        return self.guests[guest]

    async def inject(self, kind: str, guest: str, seconds: float | None) -> FaultRecord:
        """Inject a fault, for ``seconds`` or until healed.  Raises FaultRefused, DeployError."""
        self.find(guest)
        if self.phase != "up":
            raise FaultRefused(f"the node is {self.phase}", error_code="TV0504")
        async with self._repairer.exclusive(guest):
            record = await self._records.inject(kind, guest, seconds)
        self.history.add("fault injected", guest, kind=kind, seconds=seconds, proof=record.proof)
        return record

    async def heal(self, guest: str) -> dict[str, Any]:
        """End the guest's fault, restore it if necessary, return once it votes.

        Raises DeployError, also if it must be restored and no majority votes without it.
        """
        self.find(guest)
        began = time.monotonic()
        fault = self._records.active.get(guest)
        await self._repairer.heal(
            guest,
            undo=lambda: self._records.undo(guest),
            must=self._records.needs_restore(guest),
        )
        kind = fault.kind if fault is not None else None
        seconds = round(time.monotonic() - began, 3)
        self.history.add("healed", guest, kind=kind, seconds=seconds)
        return {"guest": guest, "fault": kind, "seconds": seconds}

    async def rejuvenate(
        self, guest: str, *, by: Method | None = None, share: int | None = None
    ) -> dict[str, Any]:
        """Replace a guest by a fresh one, or raise DeployError: the old guest stays then."""
        self.find(guest)
        if self.phase != "up":
            raise DeployError(f"the node is {self.phase}", error_code="TV0746")
        return await self.rejuvenation.rejuvenate(guest, by=by, share=share)

    async def status(self) -> dict[str, Any]:
        """Return the node's status as plain data."""
        return await self._status.collect(
            phase=self.phase, addresses=self._addresses, dashboard=self.dashboard
        )
