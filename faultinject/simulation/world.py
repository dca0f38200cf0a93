"""The simulated world: a node with its clients on one simulated machine, and its supervisor's acts.

A ``World`` holds the state of one run: loop, disk, guests, the voter's process and the observer of
promises.  Its methods are what can happen to that state: the voter starts or dies, a guest is
replaced, power is lost.  It decides nothing.  ``faults`` chooses when to break something,
``checks`` judges the state at the end, ``run`` wires all of them together.

The voter's process runs ``voter.daemon.serve``, which makes its runner itself.  ``SimRunner``
takes the place of that class for the time of a run, so that the world learns of each new runner.
"""

from __future__ import annotations

import asyncio
import errno
import os
import traceback
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import msgspec

from faultinject.simulation.clients import NATIVE, OperationOutcome
from faultinject.simulation.disk import SimDisk, SimFiles
from faultinject.simulation.guest import SimGuest
from faultinject.simulation.keyed import HTTP
from faultinject.simulation.loop import Process, Stuck, current_process
from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.plan import REPLICAS, SimFault, SimPlan
from faultinject.simulation.promises import PromiseObserver
from faultinject.simulation.role_operator import RoleOperator
from faultinject.simulation.streams import Conditions, Transport
from voter import daemon
from voter.address import Address
from voter.config import Config, JournalConfig, ReplicaConfig, Timing
from voter.core import Limits
from voter.core.events import Effect, Event
from voter.core.replica import Role, State
from voter.core.resume import Past
from voter.errors import JournalError
from voter.journal import Journal
from voter.runner import Clock, Runner

__all__ = ["RESERVE", "RunWatcher", "SimRunner", "World"]

EPOCH_NS = 1_700_000_000_000_000_000
"""Wall-clock time at the start, in nanoseconds since 1970."""
FAILED, FULL = os.strerror(errno.EIO), os.strerror(errno.ENOSPC)
"""Errors of the simulated disk.  A voter may end because of the first, and once for each time the
disk becomes full: writes that are under way may not fit into what was set aside."""
CLOCK_CHANGE = 300_000.0
"""Most seconds by which the wall clock differs at a restart of the voter: 83 hours.  Unused
sessions are kept for an hour, and Idempotency-Keys for a day."""
RESERVE = 6000
"""Bytes at the end of each segment that are used only while the disk is full."""
PENDING = RESERVE // 512
"""Most requests that are under way in plans with a full disk.  The ratio is that of the product
(``voter.journal.journal.RESERVE`` and ``Limits.pending``): the reserve must hold their results."""
MOST_STARTS = 300
"""Starts of the voter after which a run is stuck."""


class RunWatcher(Protocol):
    """An observer of one run that changes nothing: a timeline, or a recorder of hashes."""

    def attach(self, world: World) -> None:
        """Watch a world that was just made and has not run yet."""

    def watch_runner(self, runner: Runner) -> None:
        """Watch the runner of a voter that starts."""

    def fault(self, fault: SimFault, what: str) -> None:
        """Record that a fault ``begins`` or ``ends``."""

    def finish(self) -> None:
        """Record the state at the end of the run."""


class SimRunner(Runner):
    """The voter's runner.  It registers with the world, which observes its engine's effects."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        process, world = current_process(), World.current
        if process is not None:
            world.runners[process] = self
        world.observer.voter_started()
        receive = self.engine.receive

        def watched(event: Event) -> list[Effect]:
            effects = receive(event)
            world.observer.decided(effects)
            world.operator.check(self.engine.members)
            return effects

        self.engine.receive = watched  # type: ignore[method-assign]
        self._watch_trials(world)
        if world.watcher is not None:
            world.watcher.watch_runner(self)

    def begin(self, journal: Journal, past: Past, service: tuple[str, int] | None) -> None:
        """Continue from the journal, and report the roles that it holds."""
        super().begin(journal, past, service)
        members = self.engine.members
        World.current.observer.roles_resumed(members.roles_version, members.roles)
        World.current.operator.restarted(members)

    def _watch_trials(self, world: World) -> None:
        """Tell the world which replicas are lost while a read is tried on them alone."""
        suspects, members = self.engine.suspects, self.engine.members
        begin_trial, end_trial = suspects.begin_trial, suspects.end_trial
        epoch = 0

        def begin(request: bytes) -> int:
            nonlocal epoch
            index = begin_trial(request)
            epoch = members[index].epoch
            return index

        def end(*, answered: bool, killed: bool) -> bool:
            read = suspects.tried
            void = end_trial(answered=answered, killed=killed)
            if read is not None and killed:
                world.lost_in_trial(read, suspects.replica, epoch, void=void)
            return void

        vars(suspects).update(begin_trial=begin, end_trial=end)


class World:
    """The state of one run, and the acts that change it."""

    current: World
    """The world of the run in progress.  A process makes one run at a time."""

    def __init__(self, plan: SimPlan, watcher: RunWatcher | None = None) -> None:
        self.plan = plan
        self.watcher = watcher
        self.loop = NetworkLoop(plan.seed)
        self.disk = SimDisk(self.loop, self.loop.random("disk"), plan.block)
        self.observer = PromiseObserver(self.loop, self.disk, plan.durability, 2)
        self.wall_offset = 0.0
        self.runners: dict[Process, Runner] = {}
        self.voter: Process | None = None
        self.processes: list[Process] = []
        self.voter_starts = 0
        self._ends_for_room = 0  # ends of the voter because the disk is full
        self.refusal = ""
        """The error with which the voter refused its journal; empty if it never did."""
        self.disk_damaged = False
        """Whether a bit of the disk was changed.  The voter may then refuse to start."""
        self._damaged_at_start = -1  # value of voter_starts when a bit was changed last
        self.under_fault: set[int] = set()
        """Replicas that an injected fault acts on.  The supervisor leaves them alone."""
        self.outcomes: dict[int, OperationOutcome] = {}
        self._hit: dict[int, tuple[int, int]] = {}  # by replica: the link that a fault hit last
        self._trials: dict[bytes, bool] = {}  # did a fault hit the replica of a read's first trial?
        self.ready_at = float("inf")
        """Time at which two replicas were first seen to vote."""
        self._random = self.loop.random("world")
        self._clock_random = self.loop.random("wall clock")
        self._socks = [("native-unix", self.loop.listen(NATIVE)), ("http", self.loop.listen(HTTP))]
        self.loop.listeners[HTTP].conditions.traced = False  # replies carry the date
        self.loop.listeners[HTTP].on_accept = lambda transport, _: self._served.append(transport)
        self.loop.listeners[NATIVE].on_accept = self._accepted
        self._served: list[Transport] = []
        self.guests = [
            SimGuest(
                self.loop, i, Conditions(plan.delay / 10, plan.delay, plan.split), self.observer
            )
            for i in range(REPLICAS + plan.spares)
        ]
        self.in_use = set(range(REPLICAS))
        """Guests that are to run: those of a free slot are off."""
        self.operator = RoleOperator(self, {r.name: r.role for r in _configure(plan).replica})
        self._config = _configure(plan)
        if watcher is not None:
            watcher.attach(self)

    # --------------------------------------------------------------- voter

    @property
    def runner(self) -> Runner | None:
        """The runner of the living voter, if there is one."""
        if self.voter is None or not self.voter.alive:
            return None
        return self.runners.get(self.voter)

    def make_process(self, name: str) -> Process:
        """Make a process that ends with the run."""
        process = Process(name)
        self.processes.append(process)
        return process

    @property
    def active(self) -> tuple[int, ...]:
        """The replicas that the voter counts."""
        runner = self.runner
        return runner.engine.members.active if runner is not None else ()

    def start_voter(self) -> None:
        """Start the voter if it is not running.  Raises Stuck after MOST_STARTS."""
        if self.voter is not None and self.voter.alive:
            return
        self.voter_starts += 1
        if self.voter_starts > MOST_STARTS:
            raise Stuck(f"the voter was started {MOST_STARTS} times: {self.refusal or 'it dies'}")
        if self.voter_starts > 1 and self._clock_random.random() < 0.5:
            self.wall_offset += self._clock_random.uniform(-CLOCK_CHANGE, CLOCK_CHANGE)
        process = self.voter = self.make_process(f"voter {self.voter_starts}")
        process.handlers.append(self._voter_died)
        self.loop.spawn(process, self._serve(process))

    def _voter_died(self) -> None:
        pause = 0.005 + self._random.random() * 0.05
        self.loop.call_later(pause, self.start_voter, context=self.loop.outside)

    async def _serve(self, process: Process) -> None:
        """Run the voter in its process."""
        random = self.loop.random("voter", self.voter_starts)
        outside = daemon.Outside(
            Clock(self.loop.time, self._wall_ns),
            self._connect,
            lambda: random.getrandbits(64),
            SimFiles(self.disk, process) if self.plan.durability != "none" else None,
        )
        try:
            await daemon.serve(self._config, self._socks, asyncio.Event(), outside)  # type: ignore[arg-type]
        except JournalError as error:
            self.refusal = str(error)
            self._ends_for_room += FULL in self.refusal
            filled = sum(fault.kind == "disk-full" for fault in self.plan.faults)
            explained = self.disk_damaged or FAILED in self.refusal
            if not explained and (FULL not in self.refusal or self._ends_for_room > filled):
                text = f"the voter ended, and no fault explains it: {self.refusal}"
                self.observer.breach("Liveness", text)
        except Exception as error:  # noqa: BLE001 - reported as a problem of the run
            text = "".join(traceback.format_exception(error))
            self.loop.problems.append(f"{process.name} ended: {text}")
        self.loop.call_soon(process.kill, context=self.loop.outside)

    def _wall_ns(self) -> int:
        return EPOCH_NS + int((self.loop.time() + self.wall_offset) * 1e9)

    async def _connect(
        self, address: Address, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.BaseTransport:
        process = current_process()
        if process is None:
            raise RuntimeError("only a process can connect")
        return await self.guests[int(address.path)].connect(process, factory)

    def _accepted(self, transport: Transport, process: Process) -> None:
        self._served.append(transport)
        self.observer.accepted(transport, process)

    def fault_hits(self, index: int) -> None:
        """Record that an injected fault acts on a replica, which may be lost for that reason."""
        runner = self.runner
        if runner is not None:
            self._hit[index] = self.voter_starts, runner.engine.members[index].epoch

    def lost_in_trial(self, read: bytes, index: int, epoch: int, *, void: bool) -> None:
        """Record that a replica was lost while a read was tried on it alone.

        If injected faults explain both losses, the read is void without its fault: the observer
        learns that this is no breach.
        """
        explained = (
            self._hit.get(index) == (self.voter_starts, epoch)
            or index in self.under_fault
            or not self.guests[index].honest
        )
        if not void:
            self._trials[read] = explained
        elif self._trials.pop(read, False) and explained:
            self.observer.unlucky_reads[read] = self.loop.time()

    def cut_client(self, number: int) -> None:
        """Reset one client's connection, chosen by ``number``."""
        self._served = [t for t in self._served if not t.is_closing()]
        if self._served:
            reset = ConnectionResetError(104, "Connection reset by peer")
            self._served[number % len(self._served)].break_off(reset)

    def call_in_voter(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call a method of the voter in its own process."""
        if self.voter is not None:
            self.loop.call_soon(call, *arguments, context=self.voter.context)

    # ---------------------------------------------------------- supervisor

    def state(self, index: int) -> State:
        """Return a replica's state according to the voter."""
        runner = self.runner
        return runner.engine.members[index].state if runner is not None else State.ABSENT

    @property
    def all_vote(self) -> bool:
        """Whether all replicas vote, by the guests' own state and not only by the voter's."""
        runner = self.runner
        return runner is not None and all(
            guest.connected and replica.state is State.ACTIVE and replica.epoch == guest.epoch
            for guest, replica in zip(self.guests, runner.engine.members, strict=True)
            if replica.role is Role.VOTER
        )

    @property
    def situations(self) -> dict[str, int | None]:
        """The current situations (``plan.SITUATIONS``), each with its replica, if any."""
        runner = self.runner
        if runner is None:
            return {}
        engine, found = runner.engine, dict[str, int | None]()
        for replica in engine.members:
            if replica.state is State.RESTORING:
                found["restoring"] = replica.index
            elif replica.state is State.LEARNER:
                found["learning"] = replica.index
            elif replica.state in (State.STANDBY, State.OBSERVER):
                found["standing by"] = replica.index
        if self.operator.changing:
            found["changing roles"] = None
        marker = engine.checkpoints.marker
        if marker is not None and marker.keeper is not None:
            found["fetching"] = marker.keeper
        if engine.gate.replies:
            found["awaiting-sync"] = None
        if self.voter_starts > 1 and len(engine.members.active) < REPLICAS:
            found["restarted"] = None
        return found

    def reboot(self, index: int) -> None:
        """Replace a guest by a fresh one and admit it, as the supervisor does."""
        if index not in self.in_use:
            return
        guest = self.guests[index]
        guest.power_off()
        pause = 0.01 + self._random.random() * 0.05

        def boot() -> None:
            if not guest.up and index in self.in_use:
                guest.boot()
            runner = self.runner
            if runner is not None:
                self.call_in_voter(runner.readmit, index)

        self.loop.call_later(pause, boot, context=self.loop.outside)

    def power_on(self, index: int) -> None:
        """Start a fresh guest in a free slot."""
        self.in_use.add(index)
        if not self.guests[index].up:
            self.guests[index].boot()

    def retire(self, index: int) -> None:
        """End the guest of a slot that is free now, if it runs."""
        self.in_use.discard(index)
        if self.guests[index].up:
            self.guests[index].power_off()

    def role(self, index: int) -> Role:
        """Return a replica's role according to the voter; retired if there is no voter."""
        runner = self.runner
        return runner.engine.members[index].role if runner is not None else Role.RETIRED

    def damage_disk(self, random: Random) -> None:
        """Kill the voter and change one bit of the journal before its next start.

        At most one bit between two starts: the journal does not promise to survive damage to both
        copies of a frame that no later frame proves (``voter.journal``).
        """
        if self.voter is not None:
            self.voter.kill()
        if self._damaged_at_start != self.voter_starts and self.disk.change_bit(random):
            self.disk_damaged = True
            self._damaged_at_start = self.voter_starts

    def lose_power(self) -> None:
        """Kill voter and guests at once.  The disk loses what was not synced."""
        if self.voter is not None:
            self.voter.kill()
        for guest in self.guests:
            guest.power_off()
            self.reboot(guest.index)
        self.disk.lose_power()
        self.observer.power_lost()

    @property
    def refuses_to_start(self) -> bool:
        """Whether the voter refuses to start because its journal is damaged."""
        return self.disk_damaged and bool(self.refusal)

    @property
    def at_rest(self) -> bool:
        """Whether every replica has applied every write."""
        main, guests = self.observer.applied_order, self.guests
        if self.refuses_to_start:
            return False
        used = [guests[index] for index in self.in_use]
        return bool(main) and all(g.service and g.service.tip == main[-1].history for g in used)

    def end(self) -> None:
        """End all processes and tasks of the run."""
        for process in self.processes:
            process.kill()
        self.loop.dispose()


def _configure(plan: SimPlan) -> Config:
    filled = any(fault.kind == "disk-full" for fault in plan.faults)
    limits = Limits(
        pending=PENDING if filled else 4096,
        hang=0.6,
        ping=0.2,
        marker_every=plan.marker_every,
        checkpoint_bytes=plan.checkpoint_bytes,
        log_bytes=plan.log_bytes,
        session_window=16,
        scrub=plan.scrub,
        clock_step=0.3,
    )
    journal = None
    if plan.durability != "none":
        journal = JournalConfig(directory="journal", history=plan.history)
        # Smaller than the configuration allows, so that a run uses many segments.
        msgspec.structs.force_setattr(journal, "segment", plan.segment + RESERVE)
    return Config(
        replica=[
            ReplicaConfig(
                name=f"g{i}", link=f"unix:{i}", role="voter" if i < REPLICAS else "retired"
            )
            for i in range(REPLICAS + plan.spares)
        ],
        limits=limits,
        timing=Timing(request=5.0),
        journal=journal,
        durability=plan.durability,  # type: ignore[arg-type]
        follow="on" if plan.follow else "off",
    )
