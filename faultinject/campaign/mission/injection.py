"""What is done to a mission's node while it is under way: its hits, and (if asked for) repairs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import structlog

from deploy.errors import DeployError
from deploy.machine.guest import Guest
from faultinject.campaign.mission.voters import MissionVoter, VoterGone
from faultinject.campaign.records import HitResult, MissionPlan
from faultinject.faults import Injection
from faultinject.faults.injection import inject
from faultinject.faults.site import ActiveFault, NotApplied, Site

__all__ = ["Repairs", "FaultInjections"]

REPAIR_WAIT = 10.0
"""Seconds that a mission with repair waits for it before the next moment of hits: such faults come
further apart than a repair takes, or repair would say nothing."""
GREETING = 3.0
"""Seconds for a guest that was put back to be greeted, before it is put back once more."""
POLL = 0.02
"""Seconds between looks at the voter's status while something is out of the vote."""

_log = structlog.get_logger(__name__)


class FaultInjections:
    """Carries out a mission's hits, and tells what became of each."""

    def __init__(self, site: Site, plan: MissionPlan) -> None:
        self._site = site
        self._plan = plan
        self._done: dict[int, tuple[Injection, ActiveFault | None, str, float]] = {}
        self._at = -1
        self.repairs: Repairs | None = None

    async def strike(self, hit: Injection) -> float:
        """Carry out one hit; return the seconds taken."""
        if self.repairs is not None and self._done and hit.at != self._at:
            await self.repairs.settled(REPAIR_WAIT)
        self._at = hit.at
        began = time.perf_counter()
        applied: ActiveFault | None = None
        try:
            applied = await inject(hit, self._site)
            words = applied.proof
        except NotApplied as error:
            words = error.reason
        except (DeployError, OSError, TimeoutError) as error:
            words = f"{type(error).__name__}: {error}"
        taken = time.perf_counter() - began
        number = next(i for i, each in enumerate(self._plan.hits) if each is hit)
        self._done[number] = hit, applied, words, taken
        return taken

    async def results(self) -> tuple[HitResult, ...]:
        """Return what became of each hit, in the plan's order."""
        results = []
        for number, hit in enumerate(self._plan.hits):
            _, applied, words, taken = self._done.get(number, (hit, None, "never carried out", 0.0))
            results.append(
                HitResult(
                    target=hit.target,
                    kind=hit.kind,
                    applied=applied is not None,
                    used=None if applied is None else await applied.activated(),
                    proof=words,
                    seconds=taken,
                )
            )
        return tuple(results)

    async def undo(self) -> None:
        """End what still goes on; guests are put back by the station."""
        for _, applied, _, _ in self._done.values():
            if applied is not None:
                try:
                    await applied.undo()
                except (DeployError, OSError, TimeoutError) as error:
                    _log.warning("a fault was not undone", error=str(error))


class Repairs:
    """Puts guests back that fell out of the vote, as the supervisor does, one at a time."""

    def __init__(self, voter: MissionVoter, guests: Mapping[str, Guest]) -> None:
        self._voter = voter
        self._guests = guests
        self._task = asyncio.create_task(self._watch(), name="repairs")
        self._calm = asyncio.Event()
        self._patience: dict[str, float] = {}

    async def settled(self, deadline: float) -> None:
        """Wait until all guests vote, ``deadline`` seconds at most."""
        self._calm.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._calm.wait()

    async def _watch(self) -> None:
        while True:
            try:
                status = await self._voter.status()
                out = [each["name"] for each in status["replicas"] if each["state"] != "active"]
                if not out:
                    self._calm.set()
                waiting = [name for name in out if time.monotonic() >= self._patience.get(name, 0)]
                for name in waiting[:1]:
                    await self._repair(name, status)
            except (VoterGone, DeployError) as error:
                _log.info("repair has to wait", error=str(error))
            await asyncio.sleep(POLL)

    async def _repair(self, name: str, status: Mapping[str, object]) -> None:
        guest = self._guests[name]
        states = {each["name"]: each["state"] for each in status["replicas"]}  # type: ignore[attr-defined]
        if states[name] in ("learner", "restoring"):
            return
        await guest.put_back()
        self._patience[name] = time.monotonic() + GREETING
        await self._voter.admit(name)

    async def end(self) -> None:
        """Repair nothing any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
