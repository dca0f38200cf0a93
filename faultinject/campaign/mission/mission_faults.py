"""Faults and repairs on a mission's node while the mission runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import structlog

from deploy.errors import DeployError
from deploy.machine.guest import Guest
from faultinject.campaign.mission.voters import MissionVoter, VoterGone
from faultinject.campaign.records import InjectionResult, MissionPlan
from faultinject.faults import Injection
from faultinject.faults.injection import inject
from faultinject.faults.site import ActiveFault, NotApplied, Site

__all__ = ["Repairs", "FaultInjections"]

REPAIR_WAIT = 10.0
"""Seconds that a mission with repair waits for the repair before the next moment of faults.  Such
faults come further apart than a repair takes; else repair would have no effect."""
GREETING = 3.0
"""Seconds for a reverted guest to be greeted before it is reverted again."""
POLL = 0.02
"""Seconds between polls of the voter's status."""

_log = structlog.get_logger(__name__)


class FaultInjections:
    """Applies a mission's faults, and keeps the result of each."""

    def __init__(self, site: Site, plan: MissionPlan) -> None:
        self._site = site
        self._plan = plan
        self._done: dict[int, tuple[ActiveFault | None, str, float]] = {}
        self._at = -1
        self.repairs: Repairs | None = None

    async def inject(self, hit: Injection) -> float:
        """Apply one fault; return the seconds taken."""
        if self.repairs is not None and self._done and hit.at != self._at:
            await self.repairs.wait_all_vote(REPAIR_WAIT)
        self._at = hit.at
        began = time.perf_counter()
        applied: ActiveFault | None = None
        try:
            applied = await inject(hit, self._site)
            proof = applied.proof
        except NotApplied as error:
            proof = error.reason
        except (DeployError, OSError, TimeoutError) as error:
            proof = f"{type(error).__name__}: {error}"
        taken = time.perf_counter() - began
        number = next(i for i, each in enumerate(self._plan.injections) if each is hit)
        self._done[number] = applied, proof, taken
        return taken

    async def results(self) -> tuple[InjectionResult, ...]:
        """Return the result of each hit, in the plan's order."""
        results = []
        for number, hit in enumerate(self._plan.injections):
            applied, proof, taken = self._done.get(number, (None, "never carried out", 0.0))
            results.append(
                InjectionResult(
                    target=hit.target,
                    kind=hit.kind,
                    applied=applied is not None,
                    used=None if applied is None else await applied.activated(),
                    proof=proof,
                    seconds=taken,
                )
            )
        return tuple(results)

    async def undo(self) -> None:
        """Undo the faults that still act; the node fixture reverts the guests."""
        for applied, _, _ in self._done.values():
            if applied is not None:
                try:
                    await applied.undo()
                except (DeployError, OSError, TimeoutError) as error:
                    _log.warning("a fault was not undone", error=str(error), error_code="TV0510")


class Repairs:
    """Reverts guests that left the vote, one at a time, as the supervisor does."""

    def __init__(self, voter: MissionVoter, machine: Callable[[str], Guest]) -> None:
        self._voter = voter
        self._machine = machine
        self._task = asyncio.create_task(self._watch(), name="repairs")
        self._all_vote = asyncio.Event()
        self._retry_at: dict[str, float] = {}

    async def wait_all_vote(self, deadline: float) -> None:
        """Wait until all guests vote, at most ``deadline`` seconds."""
        self._all_vote.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._all_vote.wait()

    async def _watch(self) -> None:
        while True:
            try:
                status = await self._voter.status()
                out = [each["name"] for each in status["replicas"] if each["state"] != "active"]
                if not out:
                    self._all_vote.set()
                waiting = [name for name in out if time.monotonic() >= self._retry_at.get(name, 0)]
                for name in waiting[:1]:
                    await self._repair(name, status)
            except (VoterGone, DeployError) as error:
                _log.info("repair is delayed", error=str(error))
            await asyncio.sleep(POLL)

    async def _repair(self, name: str, status: Mapping[str, object]) -> None:
        states = {each["name"]: each["state"] for each in status["replicas"]}  # type: ignore[attr-defined]
        if states[name] in ("learner", "restoring"):
            return
        await self._machine(name).restore()
        self._retry_at[name] = time.monotonic() + GREETING
        await self._voter.admit(name)

    async def end(self) -> None:
        """Stop repairing."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
