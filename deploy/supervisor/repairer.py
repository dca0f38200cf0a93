"""Repair: restores guests that have left the vote and replaces a hung voter.

Level-triggered: each pass compares the state now with the wanted one.  Events of the voter and of
the guests only make the next pass come sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import structlog

from deploy.errors import DeployError, HypervisorLost
from deploy.machine.contention import UncontendedClock
from deploy.node.interfaces import GuestPort
from deploy.supervisor.cpu_yield import CpuYield, yield_limit
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.repair_policy import (
    LIMIT,
    RepairPolicy,
    ReplicaView,
    diagnose,
    is_flapping,
    select_repairs,
)
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl, VoterRefused, VoterUnreachable

__all__ = ["Repairer"]

PASS_INTERVAL = 0.5
"""Seconds between passes without an event: some states only need a repair once they last."""
POLL_INTERVAL = 5.0
"""Seconds between polls of the voter, in case an event was missed."""
JOIN_DEADLINE = 10.0
"""Seconds that a restored guest may be neither restoring nor learning nor voting; after that the
repair has failed.  The time in which its QEMU waits for a processor does not count, and a slow
host has more (`Settings.slowness`)."""
JOIN_LIMIT = 300.0
"""Seconds from a guest's restore to its first vote; a large state takes long."""
VOTER_TIMEOUT = 15.0
"""Seconds that a repair waits for a voter that does not answer: it may be restarting."""
SILENT_LIMIT = 3
"""Consecutive polls, POLL_INTERVAL seconds apart, that a voter which has answered before leaves
unanswered.  Then it hangs and is replaced."""

_log = structlog.get_logger(__name__)


class Repairer:
    """Decides which guests need a repair, and repairs them.

    ``has_fault`` returns whether an injected fault is active in a guest; ``is_voter`` returns
    whether its role is to vote; ``replace_voter`` ends the voter with that pid;
    ``hypervisor_problem`` returns why no guest can be restored now, or "".
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        guests: Mapping[str, GuestPort],
        voter: VoterControl,
        observer: NodeObserver,
        *,
        need: int,
        auto: bool,
        slowness: float = 1.0,
        replace_voter: Callable[[int | None], None],
        has_fault: Callable[[str], bool],
        is_voter: Callable[[str], bool] = lambda _: True,
        hypervisor_problem: Callable[[], str],
        storage: Storage,
        history: EventHistory,
    ) -> None:
        self._guests = guests
        self._voter = voter
        self._observer = observer
        self._need = need
        self._auto = auto
        self._join_deadline = JOIN_DEADLINE * slowness
        self._replace_voter = replace_voter
        self._has_fault = has_fault
        self._is_voter = is_voter
        self._hypervisor_problem = hypervisor_problem
        self._hypervisor_lost = False
        self._storage = storage
        self._history = history
        self._since: dict[str, tuple[str, str | None, float]] = {}  # states, and since when
        self._policies = {name: RepairPolicy() for name in guests}
        self._yielding = {name: CpuYield() for name in guests}
        self._locks = {name: asyncio.Lock() for name in guests}
        self._returning: set[str] = set()  # guests being restored, automatically or by `heal`
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._next_poll = 0.0
        self.last_error: dict[str, str] = {}

    # ---- passes

    async def run(self) -> None:
        """Repair what needs it, until cancelled.  Raises an unforeseen error of a repair."""
        polled = time.monotonic()
        silent = 0
        try:
            while True:
                await self._observer.sleep(PASS_INTERVAL)
                if time.monotonic() - polled >= POLL_INTERVAL:
                    silent = 0 if await self._observer.voter_answers() else silent + 1
                    polled = time.monotonic()
                    if silent >= SILENT_LIMIT:
                        silent = 0
                        self._replace_voter(self._observer.voter_seen[0])
                await self._share_processors()
                self._record_hypervisor()
                self._start_repairs(time.monotonic())
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            for guest in self._guests.values():
                await guest.yield_processor(False)  # they may continue to run without us

    async def _share_processors(self) -> None:
        """Make returning guests yield to those that vote."""
        now = time.monotonic()
        if any(yielding.on for yielding in self._yielding.values()) and now >= self._next_poll:
            self._next_poll = now + PASS_INTERVAL
            with contextlib.suppress(VoterUnreachable):
                await self._observer.poll()  # no event reports that writes are throttled
        status = self._observer.voter_status or {}
        served = len(self._observer.voting) >= self._need
        limit = yield_limit(int(status.get("checkpoint", {}).get("size", 0)))
        for name, guest in self._guests.items():
            yields = self._yielding[name].update(
                self._view(name, now),
                now,
                served=served,
                throttled=bool(status.get("throttled")),
                limit=limit,
                votes=self._is_voter(name),
            )
            await guest.yield_processor(yields)

    def _record_hypervisor(self) -> None:
        """Record that libvirt's daemon was lost or has returned."""
        problem = self._hypervisor_problem()
        if bool(problem) != self._hypervisor_lost:
            self._hypervisor_lost = bool(problem)
            self._history.add(
                "libvirt lost" if problem else "libvirt works again", reason=problem or None
            )

    def _start_repairs(self, now: float) -> None:
        for name, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[name]
                task.result()
        wanted: dict[str, float] = {}
        returning = set(self._tasks) | self._returning
        for name in self._guests:
            if not self._is_voter(name):
                continue  # the operation that started it decides
            view = self._view(name, now)
            policy = self._policies[name]
            policy.observe(view.replica == "active", now)
            if view.replica in ("restoring", "learner") and view.since < JOIN_LIMIT:
                returning.add(name)
            if name in self._tasks or self._locks[name].locked():
                continue
            if self._auto and diagnose(view) is not None:
                if policy.delay(now) <= 0:
                    wanted[name] = view.since
                elif policy.abandoned:
                    self._abandon(name, view)
        if self._storage.problem or self._hypervisor_problem():
            wanted.clear()  # a repair would fail: it starts when there is room, and libvirt
        returning -= wanted.keys()
        active = len(self._observer.voting)
        for name in select_repairs(wanted, returning, active=active, need=self._need):
            why = diagnose(self._view(name, now)) or ""
            self._tasks[name] = asyncio.create_task(self._repair(name, why), name=f"repair {name}")

    def _abandon(self, name: str, view: ReplicaView) -> None:
        """Report once that repair is abandoned, and end a guest that flaps.

        Each return of such a guest would cost the others a state transfer.
        """
        policy, why = self._policies[name], diagnose(view) or ""
        if not policy.reported:
            policy.reported = True
            self.last_error.setdefault(name, why)
            self._history.add("repair abandoned", name, why=why, repairs=policy.consecutive)
            _log.error(
                "repair abandoned",
                guest=name,
                why=why,
                repairs=policy.consecutive,
                error_code="TV0718",
            )
        spare = len(self._observer.voting - {name}) >= self._need
        if is_flapping(view) and view.vm == "ready" and spare:
            self.last_error[name] = f"{why}; it was ended"
            self._tasks[name] = asyncio.create_task(self._end(name), name=f"end {name}")

    async def _end(self, name: str) -> None:
        try:
            await self._guests[name].kill()
        except (DeployError, OSError) as error:
            _log.error(
                "cannot end a guest whose repair was abandoned",
                guest=name,
                error=str(error),
                error_code="TV0718",
            )

    def _view(self, name: str, now: float) -> ReplicaView:
        """Return what is known of a guest at ``now`` (seconds of the steady clock)."""
        vm, replica = str(self._guests[name].state), self._observer.replica_state(name)
        since = self._since.get(name)
        if since is None or since[:2] != (vm, replica):
            since = self._since[name] = (vm, replica, now)
        return ReplicaView(
            vm=vm,
            replica=replica,
            reason=str(self._observer.replicas.get(name, {}).get("reason", "")),
            since=now - since[2],
            fault=self._has_fault(name),
            flaps=self._observer.flaps[name].count(now),
            voter_age=now - self._observer.voter_seen[1],
        )

    # ---- one repair

    async def _repair(self, name: str, why: str) -> None:
        began = time.monotonic()
        policy = self._policies[name]
        policy.begin(began)
        _log.info("repair started", guest=name, why=why, consecutive=policy.consecutive)
        try:
            async with self._locks[name], self._turn(name):
                await self._bring_back(name)
        except (DeployError, OSError) as error:
            self.last_error[name] = str(error)
            if isinstance(error, HypervisorLost):  # the next repair waits for libvirt
                policy.withdraw()
            elif problem := self._storage.check(repair_failed=True):
                self.last_error[name] += f"; {problem}"
                policy.withdraw()
            facts: dict[str, Any] = {
                "error": self.last_error[name], "abandoned": policy.abandoned
            }  # fmt: skip
            self._history.add("repair failed", name, **facts)
            _log.error("repair failed", guest=name, **facts, error_code="TV0718")
        else:
            self.last_error.pop(name, None)
            facts = {"why": why, "seconds": round(time.monotonic() - began, 3)}
            self._history.add("repaired", name, **facts)
            _log.info("repaired", guest=name, **facts)
        self._observer.wake()

    async def heal(self, name: str, *, undo: Callable[[], Awaitable[object]], must: bool) -> None:
        """Call ``undo``, restore a voter if ``must`` or if it does not vote, wait for its vote.

        No automatic repair of this guest intervenes, and repairs of others end first.  Raises
        DeployError; before ``undo`` if the guest must be restored and no majority votes without it.
        """
        async with self._locks[name], self._turn(name):
            if must:
                self._require_others(name)
            await undo()
            self._policies[name].reset()
            self._observer.flaps[name].reset()
            self.last_error.pop(name, None)
            with contextlib.suppress(VoterUnreachable):
                await self._observer.poll()
            votes = self._observer.replica_state(name) == "active"
            if self._is_voter(name) and (must or not votes):
                await self._bring_back(name)

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Wait until no other guest is being brought back; then this one is.

        Without a majority, a guest that does not vote waits for none.  While the voter does not
        answer, the majority is unknown.
        """
        observer = self._observer

        def free() -> bool:
            voting = observer.voting
            known = observer.voter_status is not None
            urgent = known and name not in voting and len(voting) < self._need
            return urgent or not self._returning

        async with observer.news:
            await observer.news.wait_for(free)
            self._returning.add(name)
        try:
            yield
        finally:
            self._returning.discard(name)
            observer.wake()  # `run` then notifies those who wait for their turn

    async def _bring_back(self, name: str) -> None:
        """Restore a guest's clean snapshot and wait until it votes.  Raises DeployError.

        Expels a replica that votes first; raises if no majority votes without it.  The caller holds
        the guest's lock and its turn.
        """
        self._require_others(name)
        if self._observer.replica_state(name) not in (None, "absent", "expelled"):
            await self._retry(lambda: self._voter.expel(name, "is restored"))
            await self._retry(self._observer.poll)
        await self._guests[name].restore()
        self._observer.flaps[name].reset()
        await self._retry(lambda: self._voter.admit(name))
        await self._retry(self._observer.poll)
        await self._wait_for_vote(name)

    async def _retry(self, call: Callable[[], Awaitable[object]]) -> None:
        """Call the voter, again while it does not answer.  Raises VoterUnreachable."""
        deadline = time.monotonic() + VOTER_TIMEOUT
        while True:
            try:
                await call()
                return
            except VoterRefused:
                raise
            except VoterUnreachable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.1)  # no event reports that a voter answers again

    async def _wait_for_vote(self, name: str) -> None:
        """Wait until a restored guest votes.  Raises DeployError if it will not."""
        begun, idle, joined = time.monotonic(), 0.0, False
        clock = UncontendedClock(self._guests[name].pid or 0)
        while (state := self._observer.replica_state(name)) != "active":
            now, vm = time.monotonic(), self._guests[name].state
            here = state in ("restoring", "learner")
            idle, joined = 0.0 if here else idle + clock.step(), joined or here
            if joined and diagnose(self._view(name, now)) is not None:
                raise self._no_vote(name, "it left again")
            if state == "expelled" or vm not in ("ready", "booting", "restoring"):
                raise self._no_vote(name, f"it is {vm}, and {state}")
            if idle > self._join_deadline or now - begun > JOIN_LIMIT:
                raise self._no_vote(name, f"not within {now - begun:.0f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PASS_INTERVAL), self._observer.news:
                    await self._observer.news.wait()

    def _no_vote(self, name: str, why: str) -> DeployError:
        replica = self._observer.replicas.get(name, {})
        reason = replica.get("reason", "the voter does not answer")
        return DeployError(
            f"{name} was restored but does not vote: {why}: {reason}",
            remedy=f"`trivisor logs {name}` shows its console",
            error_code="TV0718",
        )

    def _require_others(self, name: str) -> None:
        """Raise DeployError if this guest votes and no majority votes without it."""
        voting = self._observer.voting
        if name in voting and len(voting) - 1 < self._need:
            raise DeployError(
                f"{name} is one of the last {len(voting)} guests that vote: it is not restored",
                remedy="heal the others first",
                error_code="TV0719",
            )

    # ---- for others

    def renew(self, name: str) -> None:
        """Forget the repairs of a guest: another VM runs in its slot now."""
        self._policies[name].reset()
        self._observer.flaps[name].reset()
        self.last_error.pop(name, None)
        self._since.pop(name, None)

    def exclusive(self, name: str) -> asyncio.Lock:
        """Return the lock that excludes restores of a guest and injections into it."""
        return self._locks[name]

    def describe(self, name: str, now: float) -> dict[str, Any]:
        """Return the status of a guest's repairs."""
        policy = self._policies[name]
        return {
            "count": policy.repairs,
            "consecutive": policy.consecutive,
            "limit": LIMIT,
            "flaps": self._observer.flaps[name].count(now),
            "abandoned": policy.abandoned,
            "in_progress": name in self._returning,
            "next_in": None if policy.abandoned else round(policy.delay(now), 1),
            "last_error": self.last_error.get(name),
        }
