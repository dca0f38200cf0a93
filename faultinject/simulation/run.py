"""Make one run of a plan: wire the world, the faults and the clients, and check the result.

``run`` is the entry point.  The course of a run:

1.  The guests boot and the voter starts.  A supervisor replaces replicas that do not vote.
2.  The clients make their operations while ``faults`` injects the plan's faults.
3.  When the last client has ended, every fault that still acts is ended.  Within ``RECOVERY``
    seconds all replicas must vote again, and new requests must be answered.
4.  ``checks`` judges what clients got, what guests hold, and what the journal keeps.

A run depends on its plan alone.  Every part draws from its own named random source, and processes
share no state that outlives a run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

import msgspec

from faultinject.simulation import checks
from faultinject.simulation.clients import run_client
from faultinject.simulation.faults import SimFaultInjector
from faultinject.simulation.loop import Stuck
from faultinject.simulation.plan import Operation, SimPlan
from faultinject.simulation.promises import Breach
from faultinject.simulation.world import RESERVE, RunWatcher, SimRunner, World
from voter import daemon
from voter.core.replica import Role, State
from voter.journal import journal

__all__ = ["RunResult", "run"]

TIME_LIMIT = 300.0
"""Simulated seconds after which a run is stuck."""
RECOVERY = 20.0
"""Simulated seconds after the last fault within which all replicas must vote."""
RESTING = 2.0
"""Simulated seconds for replicas and journal to come to rest after the last request."""
SUPERVISOR_POLL = 0.05
"""Seconds between two polls of the supervisor."""
REPAIR_AFTER = 1.5
"""Seconds without a vote after which the supervisor replaces a guest."""


class RunResult(msgspec.Struct, frozen=True):
    """The result of a run.

    ``trace``: hash of everything delivered.  ``seconds``: simulated.  ``faults``: planned kinds.
    """

    seed: int
    breaches: list[Breach]
    problems: list[str]
    trace: str
    steps: int
    seconds: float
    answered: int
    voter_starts: int
    faults: list[str]

    @property
    def failed(self) -> bool:
        """Whether a promise is broken, or an exception left the code."""
        return bool(self.breaches or self.problems)


class _NoCollector:
    """A stand-in for ``gc`` in the voter.

    The collector belongs to the whole Python process, and a collection takes longer than a run.
    """

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def run(plan: SimPlan, watcher: RunWatcher | None = None) -> RunResult:
    """Make one run.  ``watcher``, if given, observes it."""
    vars(daemon).update(Runner=SimRunner, gc=_NoCollector())
    vars(journal).update(RESERVE=RESERVE)
    logger = logging.getLogger("voter")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a full disk, for example, is planned here: no warning to print
    collecting = gc.isenabled()
    gc.disable()  # it would close the coroutines of dead processes in the middle of a run
    world = World.current = World(plan, watcher)
    loop = world.loop
    asyncio.set_event_loop(None)
    try:
        loop.call_at(TIME_LIMIT, _overdue, context=loop.outside)
        loop.run_until_complete(_main(world))
    except Stuck as error:
        world.observer.breach("Liveness", str(error))
    finally:
        if watcher is not None:
            watcher.finish()
        world.end()
        logger.setLevel(level)
        if collecting:
            gc.enable()
    answered = sum(o.answer is not None for o in world.outcomes.values())
    return RunResult(
        plan.seed,
        world.observer.breaches,
        loop.problems,
        loop.trace.hexdigest(),
        loop.steps,
        loop.time(),
        answered,
        world.voter_starts,
        [fault.kind for fault in plan.faults],
    )


def _overdue() -> None:
    raise Stuck(f"no end after {TIME_LIMIT:g} s")


async def _main(world: World) -> None:
    """Run the plan, end all faults, and check the outcome."""
    loop, plan = world.loop, world.plan
    for index in sorted(world.in_use):
        world.guests[index].boot()
    world.start_voter()
    supervisor = loop.create_task(_supervise(world))
    injector = SimFaultInjector(world)
    faults = loop.create_task(injector.run(plan.faults))
    clients = loop.create_task(_run_clients(world, plan.operations, plan.clients_without_retry))
    refused = loop.create_task(_until(world, lambda: world.refuses_to_start, TIME_LIMIT))
    await asyncio.wait([clients, refused], return_when=asyncio.FIRST_COMPLETED)
    faults.cancel()
    await asyncio.wait([faults])
    injector.end_all()
    if not world.refuses_to_start:
        clients.result()
        settling = loop.create_task(world.operator.settle())
        if await _until(world, lambda: settling.done() or world.refuses_to_start, RECOVERY):
            await _settle(world)
        else:
            world.observer.breach("Liveness", "the roles cannot be changed after the last fault")
        settling.cancel()
    supervisor.cancel()
    checks.check(world)


async def _supervise(world: World) -> None:
    """Replace each replica that does not vote, unless a fault acts on it."""
    missing: dict[int, float] = {}  # since when each replica does not vote
    while True:
        await asyncio.sleep(SUPERVISOR_POLL)
        now, runner = world.loop.time(), world.runner
        if world.ready_at > now and len(world.active) > 1:
            world.ready_at = now
        for index in range(len(world.guests)):
            state = world.state(index)
            votes = state is State.ACTIVE or world.role(index) is not Role.VOTER
            if runner is None or votes or index in world.under_fault:
                missing.pop(index, None)
                continue
            since = missing.setdefault(index, now)
            if state is State.EXPELLED or now - since > REPAIR_AFTER:
                missing[index] = now
                world.reboot(index)


async def _run_clients(
    world: World, operations: tuple[Operation, ...], plain: tuple[int, ...] = ()
) -> None:
    """Run each client in a process of its own; clients in ``plain`` never retry."""
    tasks = []
    for client in sorted({o.client for o in operations}):
        mine = [o for o in operations if o.client == client]
        process = world.make_process(f"client {client}")
        script = run_client(
            mine,
            world.outcomes,
            world.loop.time,
            retry=client not in plain,
            keyed=client in world.plan.clients_with_key,
        )
        tasks.append(world.loop.spawn(process, script))
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()


async def _settle(world: World) -> None:
    """Check that, with all faults ended, three replicas vote and every key can be read."""
    if not await _until(world, lambda: world.all_vote or world.refuses_to_start, RECOVERY):
        states = [str(world.state(guest.index)) for guest in world.guests]
        refusal = f": {world.refusal}" if world.refusal else ""
        world.observer.breach(
            "Liveness", f"{RECOVERY:g} s after the last fault the replicas are {states}{refusal}"
        )
        return
    if world.refuses_to_start:
        return
    operations = world.plan.operations
    first = 1 + max((o.index for o in operations), default=0)
    keys = sorted({o.key for o in operations})
    final = [
        Operation(index=first + at, client=1000, kind=kind, key=key, pause=0.0)
        for at, (kind, key) in enumerate([*(("get", key) for key in keys), ("put", "last")])
    ]
    await _run_clients(world, tuple(final))
    for operation in final:
        outcome = world.outcomes[operation.index]
        if outcome.answer is None:
            world.observer.breach("Liveness", f"at the end a request fails: {outcome.failure}")
    await _until(world, lambda: world.at_rest, RESTING)
    # The journal removes one segment after the other, each removal synced.
    await _until(world, lambda: not checks.excess(world), RESTING)


async def _until(world: World, condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; return False after this many simulated seconds."""
    until = world.loop.time() + seconds
    while not condition():
        if world.loop.time() > until:
            return False
        await asyncio.sleep(SUPERVISOR_POLL / 5)
    return True
