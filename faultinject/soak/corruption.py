"""Corrupt the state of one guest: store a marked value through the vote, and flip one bit of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import NamedTuple

from deploy.machine.qemu import ram_file
from deploy.node.records import Layout
from faultinject.faults.site import NotApplied
from faultinject.soak.guest_memory import (
    Copy,
    MemoryMatches,
    census,
    find_marked,
    flip,
    flipped,
)
from faultinject.soak.plan import GUESTS
from faultinject.soak.round_clients import RoundClients
from faultinject.soak.round_plan import RoundPlan, marked_value
from faultinject.soak.soak_injector import InjectionProof, guest_pid

__all__ = ["GuestMemory", "StateCorruptor"]

ATTEMPTS = 5
"""Most values that are stored until one is found in the guest's memory as one piece.  The search is
by physical address, so it can miss a value that spans two pages.
"""
SEARCHES = 20
SEARCH_PAUSE = 0.1
"""Searches for a value that the guest may not have stored yet, and the seconds between two."""
FLIP_PASSES = 3
"""Most searches after the flip for copies that the guest made meanwhile."""


class GuestMemory(NamedTuple):
    """A guest's QEMU process, and the file that is its memory."""

    pid: int
    ram: Path


class StateCorruptor:
    """Corrupts values in guests of one node, and counts what is left of them."""

    def __init__(self, layout: Layout, clients: RoundClients, seed: int) -> None:
        self.search_seconds = 0.0
        """Duration of the last search of a guest's memory."""
        self._layout = layout
        self._clients = clients
        self._seed = seed
        self._corrupted: dict[bytes, str] = {}
        """Every corrupted value of all rounds, and the guest that it was injected into."""

    async def store(self, plan: RoundPlan) -> bytes:
        """Store a value that is found as one object in the guest's memory.  Raises NotApplied."""
        for attempt in range(ATTEMPTS):
            value = marked_value(self._seed, plan.number, attempt)
            if not await self._clients.store(plan.key, value):
                continue
            for _ in range(SEARCHES):
                if await self._search((await self.memory(plan.guest)).ram, value):
                    return value
                await asyncio.sleep(SEARCH_PAUSE)
        raise NotApplied(f"{plan.guest} holds none of {ATTEMPTS} values as one piece")

    async def memory(self, guest: str) -> GuestMemory:
        """Return a guest's memory.  Raises NotApplied."""
        try:
            pid = await asyncio.to_thread(guest_pid, self._layout, guest)
            if pid is None:
                raise NotApplied(f"{guest} has no QEMU process")
            size = self._layout.read_node().settings.memory_mib << 20
            return GuestMemory(pid, await asyncio.to_thread(ram_file, pid, size=size))
        except OSError as error:
            raise NotApplied(f"the memory of {guest} cannot be read: {error}") from error

    async def _search(self, ram: Path, value: bytes) -> list[Copy]:
        """Return the copies of a value that are in use.  Raises NotApplied.

        A flip in a reply on its way would only damage a frame, which its checksum shows.
        """
        began = time.monotonic()
        try:
            copies = await asyncio.to_thread(find_marked, ram)
        except OSError as error:
            raise NotApplied(f"{ram} cannot be read: {error}") from error
        self.search_seconds = time.monotonic() - began
        return [copy for copy in copies if copy.live and copy.value == value]

    async def prepare(self, plan: RoundPlan, value: bytes, memory: GuestMemory) -> list[Copy]:
        """Return the copies to flip.  Raises NotApplied."""
        copies = await self._search(memory.ram, value)
        if not copies:
            raise NotApplied(f"{plan.guest} no longer holds the value of {plan.key}")
        return copies

    def flip(
        self, plan: RoundPlan, value: bytes, memory: GuestMemory, copies: list[Copy]
    ) -> list[Copy]:
        """Flip the planned bit of these copies; return those read back."""
        self._corrupted[flipped(value, plan.byte, plan.bit)] = plan.guest
        return flip(memory.ram, copies, plan.byte, plan.bit)

    async def flip_rest(self, plan: RoundPlan, value: bytes, memory: GuestMemory) -> list[Copy]:
        """Flip copies that the guest has made meanwhile; return those.  Raises NotApplied."""
        done: list[Copy] = []
        for _ in range(FLIP_PASSES):
            left = await self._search(memory.ram, value)
            if not left:
                break
            done += flip(memory.ram, left, plan.byte, plan.bit)
        return done

    def prove(
        self, plan: RoundPlan, memory: GuestMemory, done: list[Copy], at: float
    ) -> InjectionProof:
        """Return the proof of the flips read back.  Raises NotApplied if there are none."""
        if not done:
            raise NotApplied(f"no flipped copy of {plan.key} in {plan.guest} was read back")
        places = ", ".join(f"{copy.offset:#x}" for copy in done[:4])
        more = ", ..." if len(done) > 4 else ""
        proof = (
            f"{plan.key} in {plan.guest} (QEMU {memory.pid}): bit {plan.bit} of byte {plan.byte} "
            f"of {len(done)} copies in use flipped and read back, at {places}{more}"
        )
        return InjectionProof(at=at, proof=proof)

    async def census(self, value: bytes) -> dict[str, MemoryMatches]:
        """Count the right and the corrupted values in each guest's memory.  Raises NotApplied."""
        found: dict[str, MemoryMatches] = {}
        for guest in GUESTS:
            copies = await asyncio.to_thread(find_marked, (await self.memory(guest)).ram)
            found[guest] = census(copies, value, self._corrupted, guest)
        return found
