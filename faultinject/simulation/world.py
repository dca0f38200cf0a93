"""One run: a node with its clients in a simulated world, and the plan's faults made to happen."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import traceback
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import msgspec

from faultinject.simulation import checks
from faultinject.simulation.clients import NATIVE, OperationOutcome, run_client
from faultinject.simulation.disk import SimDisk, SimFiles
from faultinject.simulation.faults import SimFaultInjector
from faultinject.simulation.guest import SimGuest
from faultinject.simulation.keyed import HTTP
from faultinject.simulation.loop import Process, Stuck, current_process
from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.plan import REPLICAS, Operation, SimPlan
from faultinject.simulation.promises import Breach, PromiseObserver
from faultinject.simulation.streams import Conditions, Transport
from faultinject.simulation.timeline import Timeline
from voter import daemon
from voter.address import Address
from voter.config import Config, JournalConfig, ReplicaConfig, Timing
from voter.core import Limits
from voter.core.events import Effect, Event
from voter.core.replica import State
from voter.errors import JournalError
from voter.interfaces import Clock
from voter.runner import Runner

__all__ = ["RunResult", "World", "run"]

EPOCH_NS = 1_700_000_000_000_000_000
"""The wall clock at the start."""
LIMIT = 300.0
"""Simulated seconds that a run may take at most."""
HEALING = 20.0
"""Simulated seconds after the last fault within which three replicas must vote."""
DISK_ERRORS = (os.strerror(errno.EIO), os.strerror(errno.ENOSPC))
"""What the simulated disk says when it fails; a voter may end for it."""
MOST_STARTS = 300
"""Starts of the voter after which a run is given up."""
RESTING = 2.0
"""Simulated seconds within which replicas and journal come to rest once nothing is asked."""
LOOK = 0.05
"""Seconds between two looks of the supervisor."""
GIVE_UP = 1.5
"""Seconds after which the supervisor puts a guest that does not vote back."""


class RunResult(NamedTuple):
    """What came of a run.  ``trace``: hash of all that happened; ``seconds`` are simulated."""

    plan: SimPlan
    breaches: list[Breach]
    problems: list[str]
    trace: str
    steps: int
    seconds: float
    answered: int
    restarts: int


class _Runner(Runner):
    """The runner; the world is told of it, as it is made by the voter itself."""

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
            return effects

        self.engine.receive = watched  # type: ignore[method-assign]
        if world.timeline is not None:
            world.timeline.watch_runner(self)


class _NoCollector:
    """In place of ``gc`` for the voter: the garbage collector is not of its process here, and takes
    longer than the rest of a run.
    """

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class World:
    """Everything of one run, and what the supervisor does for its node."""

    current: World

    def __init__(self, plan: SimPlan, timeline: Timeline | None = None) -> None:
        self.plan = plan
        self.timeline = timeline
        self.loop = NetworkLoop(plan.seed)
        self.disk = SimDisk(self.loop, self.loop.random("disk"), plan.block)
        self.observer = PromiseObserver(self.loop, self.disk, plan.durability, 2)
        self.wall_offset = 0.0
        self.runners: dict[Process, Runner] = {}
        self.voter: Process | None = None
        self.processes: list[Process] = []
        self.restarts = 0
        self.refusal = ""
        """Why the voter cannot start (its journal), if it said so."""
        self.rotten = False
        """Whether the disk has changed a bit: then the voter may refuse to start."""
        self._rotten_since = -1  # starts of the voter when it did so last
        self.held: set[int] = set()
        """Replicas that an injected fault holds."""
        self.outcomes: dict[int, OperationOutcome] = {}
        self.ready = float("inf")
        """When two replicas voted for the first time, roughly."""
        self._random = self.loop.random("world")
        self._socks = {"native-unix": self.loop.listen(NATIVE), "http": self.loop.listen(HTTP)}
        self.loop.listeners[HTTP].conditions.traced = False  # there are dates in it
        self.loop.listeners[HTTP].on_accept = lambda transport, _: self._served.append(transport)
        self.loop.listeners[NATIVE].on_accept = self._accepted
        self._served: list[Transport] = []
        self.guests = [
            SimGuest(
                self.loop, i, Conditions(plan.delay / 10, plan.delay, plan.split), self.observer
            )
            for i in range(REPLICAS)
        ]
        self._config = _configure(plan)
        self._missing: dict[int, float] = {}
        if timeline is not None:
            timeline.attach(self)

    # --------------------------------------------------------------- voter

    @property
    def runner(self) -> Runner | None:
        """The runner of the voter that lives, if there is one."""
        if self.voter is None or not self.voter.alive:
            return None
        return self.runners.get(self.voter)

    def _process(self, name: str) -> Process:
        process = Process(name)
        self.processes.append(process)
        return process

    def _active(self) -> tuple[int, ...]:
        runner = self.runner
        return runner.engine.members.active if runner is not None else ()

    def start_voter(self) -> None:
        """Start the voter, unless it lives."""
        if self.voter is not None and self.voter.alive:
            return
        self.restarts += 1
        if self.restarts > MOST_STARTS:
            raise Stuck(f"the voter was started {MOST_STARTS} times: {self.refusal or 'it dies'}")
        process = self.voter = self._process(f"voter {self.restarts}")
        process.handlers.append(self._voter_died)
        self.loop.spawn(process, self._serve(process))

    def _voter_died(self) -> None:
        pause = 0.005 + self._random.random() * 0.05
        self.loop.call_later(pause, self.start_voter, context=self.loop.outside)

    async def _serve(self, process: Process) -> None:
        """The voter's process."""
        random = self.loop.random("voter", self.restarts)
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
            if not self.rotten and not any(words in self.refusal for words in DISK_ERRORS):
                text = f"the voter ended, and no fault explains it: {self.refusal}"
                self.observer.breach("Liveness", text)
        except Exception as error:  # noqa: BLE001 - a fault of the voter: noted, and it ends
            words = "".join(traceback.format_exception(error))
            self.loop.problems.append(f"{process.name} ended: {words}")
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

    def cut_client(self, number: int) -> None:
        """Break a client's connection."""
        self._served = [t for t in self._served if not t.is_closing()]
        if self._served:
            reset = ConnectionResetError(104, "Connection reset by peer")
            self._served[number % len(self._served)].break_off(reset)

    def tell(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call something of the voter, as it would."""
        if self.voter is not None:
            self.loop.call_soon(call, *arguments, context=self.voter.context)

    # ---------------------------------------------------------- supervisor

    def state(self, index: int) -> State:
        """Where a replica stands, as the voter says."""
        runner = self.runner
        return runner.engine.members[index].state if runner is not None else State.ABSENT

    @property
    def all_vote(self) -> bool:
        """Whether all replicas vote, in truth and not only as the voter believes."""
        runner = self.runner
        return runner is not None and all(
            guest.connected and replica.state is State.ACTIVE and replica.epoch == guest.epoch
            for guest, replica in zip(self.guests, runner.engine.members, strict=True)
        )

    @property
    def moments(self) -> dict[str, int | None]:
        """The situations that the node is in (``plan.MOMENTS``), and the replica each is about."""
        runner = self.runner
        if runner is None:
            return {}
        engine, found = runner.engine, dict[str, int | None]()
        for replica in engine.members:
            if replica.state is State.RESTORING:
                found["restoring"] = replica.index
            elif replica.state is State.LEARNER:
                found["learning"] = replica.index
        marker = engine.checkpoints.marker
        if marker is not None and marker.keeper is not None:
            found["fetching"] = marker.keeper
        if engine.gate.replies:
            found["held"] = None
        if self.restarts > 1 and len(engine.members.active) < REPLICAS:
            found["restarted"] = None
        return found

    async def _supervise(self) -> None:
        """Put back what does not vote and is not held by a fault."""
        while True:
            await asyncio.sleep(LOOK)
            now, runner = self.loop.time(), self.runner
            if self.ready > now and len(self._active()) > 1:
                self.ready = now
            for index in range(REPLICAS):
                state = self.state(index)
                if runner is None or state is State.ACTIVE or index in self.held:
                    self._missing.pop(index, None)
                    continue
                since = self._missing.setdefault(index, now)
                if state is State.EXPELLED or now - since > GIVE_UP:
                    self._missing[index] = now
                    self.reboot(index)

    def reboot(self, index: int) -> None:
        """Replace a guest by a fresh one, and vouch for it."""
        guest = self.guests[index]
        guest.power_off()
        pause = 0.01 + self._random.random() * 0.05

        def boot() -> None:
            if not guest.up:
                guest.boot()
            runner = self.runner
            if runner is not None:
                self.tell(runner.admit, index)

        self.loop.call_later(pause, boot, context=self.loop.outside)

    def rot(self, random: Random) -> None:
        """One bit of the journal is another one when the voter starts again, right now.

        Only one before it has started: damage to both copies of a frame that nothing proves is not
        covered (``voter.journal``).
        """
        if self.voter is not None:
            self.voter.kill()
        if self._rotten_since != self.restarts and self.disk.rot(random):
            self.rotten = True
            self._rotten_since = self.restarts

    def lose_power(self) -> None:
        """Voter and guests die at once; what was not synced is lost."""
        if self.voter is not None:
            self.voter.kill()
        for guest in self.guests:
            guest.power_off()
            self.reboot(guest.index)
        self.disk.lose_power()
        self.observer.power_lost()

    # ----------------------------------------------------------------- run

    async def main(self) -> None:
        """Run the plan; at the end heal everything and look whether it works."""
        for guest in self.guests:
            guest.boot()
        self.start_voter()
        supervisor = self.loop.create_task(self._supervise())
        injector = SimFaultInjector(self)
        faults = self.loop.create_task(injector.run(self.plan.faults))
        clients = self.loop.create_task(self._run_clients(self.plan.operations, self.plan.plain))
        refused = self.loop.create_task(self._until(lambda: self.refused, LIMIT))
        await asyncio.wait([clients, refused], return_when=asyncio.FIRST_COMPLETED)
        faults.cancel()
        await asyncio.wait([faults])
        injector.heal()
        if not self.refused:
            clients.result()
            await self._settle()
        supervisor.cancel()
        checks.check(self)

    @property
    def refused(self) -> bool:
        """Whether the voter refuses to start, because of a journal that has rotted."""
        return self.rotten and bool(self.refusal)

    async def _run_clients(
        self, operations: tuple[Operation, ...], plain: tuple[int, ...] = ()
    ) -> None:
        tasks = []
        for client in sorted({o.client for o in operations}):
            mine = [o for o in operations if o.client == client]
            process = self._process(f"client {client}")
            script = run_client(
                mine,
                self.outcomes,
                self.loop.time,
                retry=client not in plain,
                keyed=client in self.plan.keyed,
            )
            tasks.append(self.loop.spawn(process, script))
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                task.result()

    async def _settle(self) -> None:
        """All faults are over: three replicas must vote again, and everything be readable."""
        if not await self._until(lambda: self.all_vote or self.refused, HEALING):
            states = [str(self.state(i)) for i in range(REPLICAS)]
            said = f": {self.refusal}" if self.refusal else ""
            self.observer.breach(
                "Liveness", f"{HEALING:g} s after the last fault the replicas are {states}{said}"
            )
            return
        if self.refused:
            return
        last = 1 + max((o.index for o in self.plan.operations), default=0)
        keys = sorted({o.key for o in self.plan.operations})
        final = [
            Operation(index=last + at, client=1000, kind=kind, key=key, pause=0.0)
            for at, (kind, key) in enumerate([*(("get", key) for key in keys), ("put", "last")])
        ]
        await self._run_clients(tuple(final))
        for operation in final:
            if self.outcomes[operation.index].answer is None:
                failure = self.outcomes[operation.index].failure
                self.observer.breach("Liveness", f"at the end a request fails: {failure}")
        await self._until(lambda: self.quiet, RESTING)
        # The journal removes one segment after the other, each removal synced.
        await self._until(lambda: not checks.excess(self), RESTING)

    def end(self) -> None:
        """The run is over."""
        for process in self.processes:
            process.kill()
        self.loop.bury()

    @property
    def quiet(self) -> bool:
        """Whether all replicas hold all writes."""
        main, guests = self.observer.main, self.guests
        if self.refused:
            return False
        return bool(main) and all(g.service and g.service.tip == main[-1].history for g in guests)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        until = self.loop.time() + seconds
        while not condition():
            if self.loop.time() > until:
                return False
            await asyncio.sleep(LOOK / 5)
        return True


def _configure(plan: SimPlan) -> Config:
    limits = Limits(
        hang=0.6,
        ping=0.2,
        marker_every=plan.marker_every,
        checkpoint_bytes=plan.checkpoint_bytes,
        log_bytes=plan.log_bytes,
        session_window=16,
        scrub=plan.scrub,
    )
    journal = None
    if plan.durability != "none":
        journal = JournalConfig(directory="journal")
        # Smaller than the configuration lets it be, so that a run uses many.
        msgspec.structs.force_setattr(journal, "segment", plan.segment)
    return Config(
        replica=[ReplicaConfig(name=f"g{i}", link=f"unix:{i}") for i in range(REPLICAS)],
        limits=limits,
        timing=Timing(request=5.0),
        journal=journal,
        durability=plan.durability,  # type: ignore[arg-type]
    )


def run(plan: SimPlan, timeline: Timeline | None = None) -> RunResult:
    """Make one run; ``timeline``, if given, collects what happens in it."""
    vars(daemon).update(Runner=_Runner, gc=_NoCollector())
    collecting = gc.isenabled()
    gc.disable()  # what dead processes left must not be closed by it in the middle of a run
    world = World.current = World(plan, timeline)
    loop = world.loop
    asyncio.set_event_loop(None)
    try:
        loop.call_at(LIMIT, _overdue, context=loop.outside)
        loop.run_until_complete(world.main())
    except Stuck as error:
        world.observer.breach("Liveness", str(error))
    finally:
        if timeline is not None:
            timeline.finish()
        world.end()
        if collecting:
            gc.enable()
    answered = sum(o.answer is not None for o in world.outcomes.values())
    return RunResult(
        plan,
        world.observer.breaches,
        loop.problems,
        loop.trace.hexdigest(),
        loop.steps,
        loop.time(),
        answered,
        world.restarts,
    )


def _overdue() -> None:
    raise Stuck(f"no end after {LIMIT:g} s")
