"""Injects the faults of a plan into a world, each at its time.

A fault begins at its planned time or, if the plan names a situation, when the node is in that
situation.  It lasts for its planned seconds, and is then ended.

Faults of replicas exclude each other unless the plan allows two faulty replicas: the next one
waits until the replica of the last one votes again.  Value faults exclude each other in any plan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from faultinject.simulation.clients import run_client
from faultinject.simulation.plan import EXCHANGES, REPLICA_FAULTS, Operation, SimFault
from faultinject.simulation.world import World
from guests.protocol.wire import Decoder, FrameKind, encode
from voter.core import events as ev
from voter.core.replica import State

__all__ = ["SimFaultInjector"]

RECOVERY = 8.0
"""Seconds that a replica fault waits at most for the last one's replica to vote again."""
CLOCK_UNIT = 1000.0
"""Seconds by which a fault sets the wall clock, for each unit of its amount: up to 83 hours."""
SITUATION_PATIENCE, MOMENT_POLL = 0.15, 0.001
"""Seconds that a fault waits for its situation, and seconds between two polls."""
LEAST = {"corrupt-snapshot": 0.3}
"""Least seconds that a fault of a kind lasts, so that it acts on what it is made for."""
LEAST_AT_MOMENT = 0.05
"""The same for a fault of these kinds that begins at its situation."""
VALUE_FAULTS = frozenset({"corrupt-reply", "stale-reply", "corrupt-state"})
"""Faults after which a replica gives wrong replies that are well-formed.  Only one replica at a
time has one, in any plan.  Two replicas that are wrong in the same way (two stale replies, or two
states in which a counter is no number) outvote the third, and a 2-of-3 vote cannot detect that."""
FIRST_READ = 1_000_000
"""Index of the first read that the injector makes."""
LIES = frozenset({"garbage", "corrupt-reply", "stale-reply", "wrong-seq", "drop-reply"})


class SimFaultInjector:
    """The injector of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._one = asyncio.Lock()
        self._endings: list[Callable[[], None]] = []

    async def run(self, faults: Sequence[SimFault]) -> None:
        """Inject all faults; return when the last one has ended."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._inject(fault))

    def end_all(self) -> None:
        """End all faults that still act."""
        endings, self._endings = self._endings, []
        for end in endings:
            end()
        self._world.disk.failing = 0

    async def _inject(self, fault: SimFault) -> None:
        await asyncio.sleep(fault.at - self._world.loop.time())
        if fault.kind in EXCHANGES:
            self._record(fault, "begins")
            await self._world.operator.exchange(fault)
            self._record(fault, "ends")
        elif fault.kind not in REPLICA_FAULTS:
            await self._until_situation(fault)
            self._record(fault, "begins")
            await self._sustain(fault, self._begin(fault))
        elif self._world.plan.two_faulty:
            fault = await self._until_situation(fault)
            if fault.kind not in VALUE_FAULTS or await self._until_others_are_right(fault.target):
                await self._inject_replica_fault(fault)
        else:
            async with self._one:
                await self._until_all_vote()
                await self._inject_replica_fault(await self._until_situation(fault))
                await self._until_all_vote()

    async def _until_situation(self, fault: SimFault) -> SimFault:
        """Wait for the fault's situation, if it names one; at most SITUATION_PATIENCE.

        Return the fault, with the replica that the situation concerns as its target.
        """
        loop, until = self._world.loop, self._world.loop.time() + SITUATION_PATIENCE
        while fault.situation and loop.time() < until:
            situations = self._world.situations
            if fault.situation in situations:
                target = situations[fault.situation]
                return fault if target is None else msgspec.structs.replace(fault, target=target)
            await asyncio.sleep(MOMENT_POLL)
        return fault

    async def _until_all_vote(self) -> None:
        until = self._world.loop.time() + RECOVERY
        while not self._world.all_vote and self._world.loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _until_others_are_right(self, index: int) -> bool:
        """Wait until all other replicas are honest; return False if that takes too long."""
        loop, until = self._world.loop, self._world.loop.time() + RECOVERY
        while any(not g.honest for g in self._world.guests if g.index != index):
            if loop.time() > until:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _inject_replica_fault(self, fault: SimFault) -> None:
        self._world.under_fault.add(fault.target)
        self._world.fault_hits(fault.target)
        self._record(fault, "begins")
        try:
            await self._sustain(fault, self._begin_replica(fault))
        finally:
            self._world.under_fault.discard(fault.target)

    async def _sustain(self, fault: SimFault, end: Callable[[], None] | None) -> None:
        """Wait for as long as a fault lasts, then end it (None: it was over at once)."""
        if end is None:
            return
        self._endings.append(end)
        least = LEAST.get(fault.kind, 0.0)
        if least and fault.situation:
            least = LEAST_AT_MOMENT
        await asyncio.sleep(max(fault.seconds, least))
        if fault.kind == "disk-full":
            await self._read_on_full_disk(fault)
        if end in self._endings:
            self._endings.remove(end)
            self._record(fault, "ends")
            end()

    async def _read_on_full_disk(self, fault: SimFault) -> None:
        """Kill the voter up to three times; keep the disk full until a read is answered after each.

        ``checks`` demands that each read is answered in time, as those of the plan.
        """
        world = self._world
        for number in range(fault.amount % 4 + 1):
            if number and world.voter is not None:
                world.voter.kill()
            index = FIRST_READ + 4 * fault.index + number
            read = Operation(index=index, client=index, kind="get", key="a", pause=0.0)
            process = world.make_process(f"reader {index}")
            script = run_client([read], world.outcomes, world.loop.time, retry=True)
            try:
                await world.loop.spawn(process, script)
            except asyncio.CancelledError:  # the plan's clients have ended
                world.outcomes.pop(index, None)
                raise

    def _record(self, fault: SimFault, what: str) -> None:
        if self._world.watcher is not None:
            self._world.watcher.fault(fault, what)

    # ------------------------------------------------------------ of replicas

    def _begin_replica(self, fault: SimFault) -> Callable[[], None] | None:
        """Begin a fault of a replica; return what ends it."""
        world, index = self._world, fault.target
        guest = world.guests[index]
        random = Random(f"{world.plan.seed} fault {fault.index}")
        kind = fault.kind

        def replace() -> None:
            world.reboot(index)

        if kind == "kill-service":
            guest.kill_service(fault.seconds)
        elif kind == "reboot":
            guest.power_off()
            return replace
        elif kind == "hang":
            guest.set_hung(True)
            boots = guest.boots

            def thaw() -> None:
                if fault.amount % 2 == 0 and guest.boots == boots:
                    guest.set_hung(False)

            return thaw
        elif kind == "slow-link":
            guest.stall(0.01 * fault.amount)
            return lambda: guest.stall(0.0)
        elif kind == "cut-link":
            if guest.transport is not None:
                guest.transport.break_off(ConnectionResetError(104, "Connection reset by peer"))
        elif kind in LIES:
            guest.lie(kind)
            return replace
        elif kind in CHANGES:
            guest.honest = False
            guest.change(CHANGES[kind](random))
            return replace
        elif kind == "corrupt-state":
            if guest.corrupt_state():
                return replace
        elif kind == "expel":
            runner = world.runner
            if runner is not None and world.state(index) is not State.EXPELLED:
                world.call_in_voter(runner.receive, ev.Expel(index, "by the operator"))
                return replace
        else:
            raise ValueError(f"no fault {kind!r}")
        return None

    # --------------------------------------------------------------- of others

    def _begin(self, fault: SimFault) -> Callable[[], None] | None:
        """Begin another fault; return what ends it."""
        world, kind = self._world, fault.kind
        voter, disk = world.voter, world.disk
        if kind == "power-loss":
            world.lose_power()
        elif kind == "clock-jump":
            world.wall_offset += fault.amount * (fault.target - 1) * CLOCK_UNIT
        elif kind == "disk-full":
            disk.full = True
            return lambda: setattr(disk, "full", False)
        elif kind == "disk-slow":
            disk.slow = 0.002 * fault.amount
            return lambda: setattr(disk, "slow", 0.0)
        elif kind == "sync-fails":
            disk.failing = 1  # the next sync, if there is one before the end
        elif kind == "bit-rot":
            world.damage_disk(Random(f"{world.plan.seed} fault {fault.index}"))
        elif kind == "cut-client":
            world.cut_client(fault.amount)
        elif voter is None or not voter.alive:
            return None
        elif kind == "kill-voter":
            voter.callbacks_left = fault.amount
        elif kind == "kill-voter-in-call":
            voter.calls_left = fault.amount
        elif kind == "stop-voter":
            voter.stop()
            return lambda: world.loop.resume(voter)
        else:
            raise ValueError(f"no fault {kind!r}")
        return None


def _duplicate(random: Random) -> Callable[[bytes], bytes]:
    """Deliver some pieces twice."""
    return lambda data: data * 2 if random.random() < 0.3 else data


def _flip(random: Random) -> Callable[[bytes], bytes]:
    """Change one bit in some pieces."""

    def flip(data: bytes) -> bytes:
        if random.random() < 0.7:
            return data
        at = random.randrange(len(data))
        return b"%b%c%b" % (data[:at], data[at] ^ 1 << random.randrange(8), data[at + 1 :])

    return flip


def _corrupt_snapshot(random: Random) -> Callable[[bytes], bytes]:
    """Change the last byte of each piece of a fetched state, and give it a correct checksum.

    That byte is part of a value, so that the state can still be restored.
    """
    decoder = Decoder()

    def corrupt(data: bytes) -> bytes:
        out = []
        for kind, flags, epoch, seq, payload in decoder.feed(data):
            if kind == FrameKind.STATE and payload:
                payload = b"%b%c" % (payload[:-1], payload[-1] ^ 1 << random.randrange(3))
            out.append(encode(kind, epoch, seq, payload, flags))
        return b"".join(out)

    return corrupt


CHANGES: dict[str, Callable[[Random], Callable[[bytes], bytes]]] = {
    "duplicate": _duplicate,
    "flip": _flip,
    "corrupt-snapshot": _corrupt_snapshot,
}
"""Faults that change the bytes that a guest sends."""
