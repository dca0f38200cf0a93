"""Makes the faults of a plan happen, each in its time.

Faults of replicas wait for each other, and until the last one's replica votes again, unless the
plan says that two may be faulty at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

import msgspec

from faultinject.simulation.plan import REPLICA_FAULTS, SimFault
from guests.protocol.wire import Decoder, FrameKind, encode
from voter.core import events as ev
from voter.core.replica import State

if TYPE_CHECKING:
    from faultinject.simulation.world import World

__all__ = ["SimFaultInjector"]

BACK = 8.0
"""Seconds that the next fault of a replica waits for the last one's to vote again."""
FURTHEST = 1700.0
"""Seconds that the wall clock is off at most: a jump over the hour after which an unused session is
forgotten would make the voter forget those of clients that are about to try again."""
MET = 0.05
"""... if it begins in the moment that it is made for."""
PATIENCE, POLL = 0.15, 0.001
"""Seconds that a fault waits for its moment, and between two looks."""
LEAST = {"corrupt-snapshot": 0.3}
"""Seconds that a fault of a kind lasts at least, to meet what it is made for."""
VALUE_FAULTS = frozenset({"corrupt-reply", "stale-reply", "corrupt-state"})
"""Faults after which a replica gives wrong replies that look right.  One replica at a time, in any
plan: two that give the same wrong reply (two stale ones, or two states in which a counter is no
number) outvote the third, and no vote of 2 of 3 can tell."""
LIES = frozenset({"garbage", "corrupt-reply", "stale-reply", "wrong-seq", "drop-reply"})


class SimFaultInjector:
    """Injects the faults of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._one = asyncio.Lock()
        self._healing: list[Callable[[], None]] = []

    async def run(self, faults: Sequence[SimFault]) -> None:
        """Let each fault happen."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._inject(fault))

    def heal(self) -> None:
        """End all faults that are still there."""
        healing, self._healing = self._healing, []
        for heal in healing:
            heal()
        self._world.disk.failing = 0

    async def _inject(self, fault: SimFault) -> None:
        await asyncio.sleep(fault.at - self._world.loop.time())
        if fault.kind not in REPLICA_FAULTS:
            await self._until_moment(fault)
            self._show(fault, "begins")
            await self._hold(fault, self._begin(fault))
        elif self._world.plan.two:
            fault = await self._until_moment(fault)
            if fault.kind not in VALUE_FAULTS or await self._until_others_are_right(fault.target):
                await self._break(fault)
        else:
            async with self._one:
                await self._until_all_vote()
                await self._break(await self._until_moment(fault))
                await self._until_all_vote()

    async def _until_moment(self, fault: SimFault) -> SimFault:
        """Wait until the node is in the fault's situation, if it has one, or for PATIENCE seconds.

        Return the fault, aimed at the replica that the situation is about.
        """
        loop, until = self._world.loop, self._world.loop.time() + PATIENCE
        while fault.moment and loop.time() < until:
            moments = self._world.moments
            if fault.moment in moments:
                target = moments[fault.moment]
                return fault if target is None else msgspec.structs.replace(fault, target=target)
            await asyncio.sleep(POLL)
        return fault

    async def _until_all_vote(self) -> None:
        until = self._world.loop.time() + BACK
        while not self._world.all_vote and self._world.loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _until_others_are_right(self, index: int) -> bool:
        """Wait until no other replica lies or holds a wrong state; False: that takes too long."""
        loop, until = self._world.loop, self._world.loop.time() + BACK
        while any(not g.honest for g in self._world.guests if g.index != index):
            if loop.time() > until:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _break(self, fault: SimFault) -> None:
        self._world.held.add(fault.target)
        self._show(fault, "begins")
        try:
            await self._hold(fault, self._begin_replica(fault))
        finally:
            self._world.held.discard(fault.target)

    async def _hold(self, fault: SimFault, heal: Callable[[], None] | None) -> None:
        if heal is None:
            return
        self._healing.append(heal)
        least = LEAST.get(fault.kind, 0.0)
        await asyncio.sleep(max(fault.seconds, MET if fault.moment and least else least))
        if heal in self._healing:
            self._healing.remove(heal)
            self._show(fault, "ends")
            heal()

    def _show(self, fault: SimFault, what: str) -> None:
        timeline = self._world.timeline
        if timeline is not None:
            timeline.fault(fault, what)

    # ------------------------------------------------------------ of replicas

    def _begin_replica(self, fault: SimFault) -> Callable[[], None] | None:
        """Begin a fault of a replica; return what ends it."""
        world, index = self._world, fault.target
        guest = world.guests[index]
        random = Random(f"{world.plan.seed} fault {fault.index}")
        kind = fault.kind

        def put_back() -> None:
            world.reboot(index)

        if kind == "kill-service":
            guest.kill_service(fault.seconds)
        elif kind == "reboot":
            guest.power_off()
            return put_back
        elif kind == "hang":
            guest.hang(True)
            boots = guest.boots

            def thaw() -> None:
                if fault.amount % 2 == 0 and guest.boots == boots:
                    guest.hang(False)

            return thaw
        elif kind == "slow-link":
            guest.stall(0.01 * fault.amount)
            return lambda: guest.stall(0.0)
        elif kind == "cut-link":
            if guest.transport is not None:
                guest.transport.break_off(ConnectionResetError(104, "Connection reset by peer"))
        elif kind in LIES:
            guest.lie(kind)
            return put_back
        elif kind in CHANGES:
            guest.honest = False
            guest.change(CHANGES[kind](random))
            return put_back
        elif kind == "corrupt-state":
            if guest.corrupt_state():
                return put_back
        elif kind == "expel":
            runner = world.runner
            if runner is not None and world.state(index) is not State.EXPELLED:
                world.tell(runner.receive, ev.Expel(index, "by the operator"))
                return put_back
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
            offset = world.wall_offset + fault.amount * (fault.target - 1) * 10.0
            world.wall_offset = max(-FURTHEST, min(FURTHEST, offset))
        elif kind == "disk-full":
            disk.full = True
            return lambda: setattr(disk, "full", False)
        elif kind == "disk-slow":
            disk.slow = 0.002 * fault.amount
            return lambda: setattr(disk, "slow", 0.0)
        elif kind == "sync-fails":
            disk.failing = 1  # until there is one, or the end
        elif kind == "bit-rot":
            world.rot(Random(f"{world.plan.seed} fault {fault.index}"))
        elif kind == "cut-client":
            world.cut_client(fault.amount)
        elif voter is None or not voter.alive:
            return None
        elif kind == "kill-voter":
            voter.fuse = fault.amount
        elif kind == "kill-voter-in-call":
            voter.call_fuse = fault.amount
        elif kind == "stop-voter":
            voter.stop()
            return lambda: world.loop.go_on(voter)
        else:
            raise ValueError(f"no fault {kind!r}")
        return None


def _duplicate(random: Random) -> Callable[[bytes], bytes]:
    """Some pieces come twice."""
    return lambda data: data * 2 if random.random() < 0.3 else data


def _flip(random: Random) -> Callable[[bytes], bytes]:
    """In some pieces a bit is changed."""

    def flip(data: bytes) -> bytes:
        if random.random() < 0.7:
            return data
        at = random.randrange(len(data))
        return b"%b%c%b" % (data[:at], data[at] ^ 1 << random.randrange(8), data[at + 1 :])

    return flip


def _corrupt_snapshot(random: Random) -> Callable[[bytes], bytes]:
    """Each piece of a state that is asked for has another last byte (of a value, so that it still
    can be restored), and the right checksum.
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
"""Faults that are something done to what a guest sends."""
