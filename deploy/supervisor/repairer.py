"""Repair: watches guests and voter, and puts back whatever has fallen out of the vote.

Level-triggered: each look compares what is with what should be.  Events of the voter and of the
guests only make the next look come sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.node.history import EventHistory
from deploy.node.interfaces import GuestPort
from deploy.supervisor.cpu_yield import CpuYield, yield_limit
from deploy.supervisor.repair_policy import (
    LIMIT,
    RepairPolicy,
    ReplicaView,
    choose,
    diagnose,
    restless,
)
from deploy.supervisor.view import NodeObserver
from deploy.supervisor.voter_control import VoterControl, VoterRefused, VoterUnreachable

__all__ = ["JOIN_DEADLINE", "JOIN_LIMIT", "Repairer"]

LOOK_EVERY = 0.5
"""Seconds between looks when no event comes: some things are only ill once they last."""
ASK_EVERY = 5.0
"""Seconds between questions to the voter, in case its events were missed."""
JOIN_DEADLINE = 10.0
"""Seconds that a guest which was put back may be neither restoring nor learning nor voting; after
that the repair has failed."""
JOIN_LIMIT = 300.0
"""Seconds from a put back guest to its first vote at most: a large state takes its time."""
VOTER_PATIENCE = 15.0
"""Seconds that a repair waits for a voter that does not answer: it may be starting again."""
SILENT_LIMIT = 3
"""Questions in a row, ASK_EVERY seconds apart, that a voter leaves unanswered before it is
replaced: it answered once, so it hangs."""

_log = structlog.get_logger(__name__)


class Repairer(NodeObserver):
    """Knows how each guest stands, and repairs.

    ``held`` tells whether a fault holds a guest; ``replace_voter`` ends the voter of that pid.
    """

    def __init__(
        self,
        guests: Mapping[str, GuestPort],
        voter: VoterControl,
        *,
        need: int,
        auto: bool,
        voter_pid: Callable[[], int | None],
        replace_voter: Callable[[int | None], None],
        held: Callable[[str], bool],
        history: EventHistory,
    ) -> None:
        super().__init__(guests, voter, voter_pid=voter_pid, history=history)
        self._need = need
        self._auto = auto
        self._replace_voter = replace_voter
        self._held = held
        self._seen: dict[str, tuple[str, str | None, float]] = {}
        self._patience = {name: RepairPolicy() for name in guests}
        self._yielding = {name: CpuYield() for name in guests}
        self._locks = {name: asyncio.Lock() for name in guests}
        self._busy: set[str] = set()  # those being brought back, by repair or by hand
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._look_again = 0.0
        self.last_error: dict[str, str] = {}

    # ----------------------------------------------------------- repairing

    async def run(self) -> None:
        """Repair what needs it, until cancelled.

        Unforeseen errors of a repair come out of here.
        """
        asked = time.monotonic()
        silent = 0
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._wake.wait()
                self._wake.clear()
                async with self._news:  # a guest's state may have changed, or a turn come
                    self._news.notify_all()
                if time.monotonic() - asked >= ASK_EVERY:
                    silent = 0 if await self.answers() else silent + 1
                    asked = time.monotonic()
                    if silent >= SILENT_LIMIT:
                        silent = 0
                        self._replace_voter(self._voter_began[0])
                await self._share_processors()
                self._begin_repairs(time.monotonic())
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)
            for guest in self._guests.values():
                await guest.yield_processor(False)  # they may live on without us

    async def _share_processors(self) -> None:
        """Have those that come back yield to those that vote."""
        now = time.monotonic()
        if any(yielding.on for yielding in self._yielding.values()) and now >= self._look_again:
            self._look_again = now + LOOK_EVERY
            with contextlib.suppress(VoterUnreachable):
                await self.look()  # no event tells that writes are throttled
        status = self.voter_status or {}
        served, throttled = self.active >= self._need, bool(status.get("throttled"))
        limit = yield_limit(int(status.get("checkpoint", {}).get("size", 0)))
        for name, guest in self._guests.items():
            sight = self.sight(name, now)
            yields = self._yielding[name].see(
                sight, now, served=served, throttled=throttled, limit=limit
            )
            await guest.yield_processor(yields)

    def _begin_repairs(self, now: float) -> None:
        for name, task in list(self._under_way.items()):
            if task.done():
                del self._under_way[name]
                task.result()
        ill: dict[str, float] = {}
        coming = set(self._under_way) | self._busy
        for name in self._guests:
            sight = self.sight(name, now)
            patience = self._patience[name]
            patience.see(sight.replica == "active", now)
            if sight.replica in ("restoring", "learner") and sight.since < JOIN_LIMIT:
                coming.add(name)
            if name in self._under_way or self._locks[name].locked():
                continue
            if self._auto and diagnose(sight) is not None:
                if patience.wait(now) <= 0:
                    ill[name] = sight.since
                elif patience.given_up:
                    self._give_up(name, sight)
        coming -= ill.keys()
        for name in choose(ill, coming, active=self.active, need=self._need):
            why = diagnose(self.sight(name, now)) or ""
            self._under_way[name] = asyncio.create_task(
                self._repair(name, why), name=f"repair {name}"
            )

    def _give_up(self, name: str, sight: ReplicaView) -> None:
        """Say once that a guest is given up.

        One that comes and goes without end is ended: each time it came back the voter would bring
        it up from the checkpoint, at the others' cost.
        """
        patience = self._patience[name]
        if not patience.told:
            patience.told = True
            why = diagnose(sight) or ""
            self.last_error.setdefault(name, why)
            self._history.add("given up", name, why=why, repairs=patience.in_row)
            _log.error("a guest is given up", guest=name, why=why, repairs=patience.in_row)
        if restless(sight) and sight.vm == "ready" and len(self._voting - {name}) >= self._need:
            self.last_error[name] = f"{diagnose(sight)}; it was ended"
            self._under_way[name] = asyncio.create_task(self._end(name), name=f"end {name}")

    async def _end(self, name: str) -> None:
        try:
            await self._guests[name].kill()
        except DeployError as error:
            _log.error("a guest that was given up could not be ended", guest=name, error=str(error))

    def sight(self, name: str, now: float) -> ReplicaView:
        """Return what is seen of a guest at ``now`` (seconds of the steady clock)."""
        vm, replica = str(self._guests[name].state), self.replica_state(name)
        seen = self._seen.get(name)
        if seen is None or seen[:2] != (vm, replica):
            seen = self._seen[name] = (vm, replica, now)
        reason = str(self.replicas.get(name, {}).get("reason", ""))
        return ReplicaView(
            vm=vm,
            replica=replica,
            reason=reason,
            since=now - seen[2],
            fault=self._held(name),
            falls=self._falls[name].count(now),
            voter_age=now - self._voter_began[1],
        )

    async def _repair(self, name: str, why: str) -> None:
        began = time.monotonic()
        patience = self._patience[name]
        patience.begin(began)
        _log.info("repair begins", guest=name, why=why, in_row=patience.in_row)
        try:
            async with self._locks[name], self._turn(name):
                await self._bring_back(name)
        except DeployError as error:
            self.last_error[name] = str(error)
            self._history.add("repair failed", name, error=str(error), given_up=patience.given_up)
            _log.error("repair failed", guest=name, error=str(error), given_up=patience.given_up)
        else:
            self.last_error.pop(name, None)
            seconds = round(time.monotonic() - began, 3)
            self._history.add("repaired", name, why=why, seconds=seconds)
            _log.info("repaired", guest=name, why=why, seconds=seconds)
        self.wake()

    async def heal(self, name: str, *, undo: Callable[[], Awaitable[object]], must: bool) -> None:
        """Do ``undo``, put the guest back if ``must``, or if it does not vote, and see it vote.

        No repair of its own comes in between, and it waits for one of another guest to end.  Raises
        DeployError, before anything is undone if the guest must be put back and there is no
        majority without it.
        """
        async with self._locks[name], self._turn(name):
            if must:
                self._require_spare(name)
            await undo()
            self._patience[name].forgive()
            self._falls[name].forget()
            self.last_error.pop(name, None)
            with contextlib.suppress(VoterUnreachable):
                await self.look()
            if must or self.replica_state(name) != "active":
                await self._bring_back(name)

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Wait until no other guest is being brought back, and be the one that is.

        Where there is no majority, a guest that does not vote waits for nobody; while the voter
        does not answer, nobody knows.
        """

        def free() -> bool:
            known = self.voter_status is not None
            lost = known and name not in self._voting and self.active < self._need
            return lost or not self._busy

        async with self._news:
            await self._news.wait_for(free)
            self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)
            self._wake.set()  # `run` tells those who wait

    async def _bring_back(self, name: str) -> None:
        """Put a guest back to its clean snapshot and see it vote.  Raises DeployError.

        A replica that votes is taken out of the vote first; refused if that would leave no
        majority.  The guest's lock is held all the time, and it is its turn.
        """
        self._require_spare(name)
        if self.replica_state(name) not in (None, "absent", "expelled"):
            await self._patiently(lambda: self._voter.expel(name, "is put back"))
            await self._patiently(self.look)
        await self._guests[name].put_back()
        self._falls[name].forget()
        await self._patiently(lambda: self._voter.admit(name))
        await self._patiently(self.look)
        await self._see_it_vote(name)

    async def _patiently(self, call: Callable[[], Awaitable[object]]) -> None:
        """Make a call to the voter, again while it does not answer.  Raises VoterUnreachable."""
        deadline = time.monotonic() + VOTER_PATIENCE
        while True:
            try:
                await call()
                return
            except VoterRefused:
                raise
            except VoterUnreachable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.1)  # nothing tells when a voter is there again

    async def _see_it_vote(self, name: str) -> None:
        """Wait until a guest that was put back votes.  Raises DeployError once it will not."""
        begun = seen = time.monotonic()
        while (state := self.replica_state(name)) != "active":
            now, vm = time.monotonic(), self._guests[name].state
            if state in ("restoring", "learner"):
                seen = now
            if state == "expelled" or vm not in ("ready", "booting", "restoring"):
                raise self._no_vote(name, f"it is {vm}, and {state}")
            if now - seen > JOIN_DEADLINE or now - begun > JOIN_LIMIT:
                raise self._no_vote(name, f"not within {now - begun:.0f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY), self._news:
                    await self._news.wait()

    def _no_vote(self, name: str, why: str) -> DeployError:
        reason = self.replicas.get(name, {}).get("reason", "the voter does not answer")
        return DeployError(
            f"{name} was put back, but does not vote: {why}: {reason}",
            remedy=f"`trivisor logs {name}` shows what it said",
        )

    def _require_spare(self, name: str) -> None:
        """Raise DeployError if this guest votes, and without it there is no majority."""
        others = self._voting - {name}
        if name in self._voting and len(others) < self._need:
            raise DeployError(
                f"{name} is one of the last {len(others) + 1} that vote: it is not put back",
                remedy="heal the others first",
            )

    def holding(self, name: str) -> asyncio.Lock:
        """The lock under which a guest is put back, until it votes, or broken."""
        return self._locks[name]

    def describe(self, name: str, now: float) -> dict[str, Any]:
        """What status says of a guest's repairs."""
        patience = self._patience[name]
        wait = patience.wait(now)
        return {
            "count": patience.repairs,
            "in_row": patience.in_row,
            "limit": LIMIT,
            "falls": self._falls[name].count(now),
            "given_up": patience.given_up,
            "under_way": name in self._busy,
            "next_in": None if patience.given_up else round(wait, 1),
            "last_error": self.last_error.get(name),
        }
