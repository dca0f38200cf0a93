"""Rejuvenation: each running guest is replaced by a fresh one before anybody knows of a fault.

A new VM starts from the clean image in the free slot.  It receives the voted checkpoint and the log
and takes the place of the old one (``membership``).  So whatever was wrong in the old VM, seen or
not, ends with it: memory that leaked, damage that no reply has shown yet, an intruder.  Damage that
has reached the voted state is not removed, because that state is what the new VM receives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

import structlog

from deploy.errors import DeployError
from deploy.host.cpu_share import FULL_SHARE
from deploy.node.records import Settings
from deploy.supervisor.active_faults import ActiveFaults
from deploy.supervisor.membership import Membership
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.repairer import Repairer
from deploy.supervisor.storage import Storage

__all__ = ["Method", "Rejuvenation"]

Method = Literal["clone", "boot", "in-place"]

POSTPONED = 5.0
"""Seconds until a rejuvenation that cannot begin now is tried again, for example because not all
guests vote."""

_log = structlog.get_logger(__name__)


class Rejuvenation:
    """Replaces guests on request and, if the settings say so, one after another for ever."""

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        *,
        repairer: Repairer,
        faults: ActiveFaults,
        observer: NodeObserver,
        storage: Storage,
        hypervisor_problem: Callable[[], str],
        history: EventHistory,
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._repairer = repairer
        self._faults = faults
        self._observer = observer
        self._storage = storage
        self._hypervisor_problem = hypervisor_problem
        self._history = history
        self._due: float | None = None  # of the next automatic one; seconds since 1970
        self._last: dict[str, Any] | None = None
        self._in_place: dict[str, float] = {}  # when a guest was restored in place
        self.done = 0
        self.failed = 0
        self.problem = ""
        """Why the last automatic rejuvenation failed, or the one that is due is postponed."""

    async def rejuvenate(
        self,
        guest: str,
        *,
        by: Method | None = None,
        share: int | None = None,
        automatic: bool = False,
    ) -> dict[str, Any]:
        """Replace a guest that votes by a fresh one; return how that went.

        ``by`` and ``share`` are those of the settings if not given.  If this fails, or the caller
        is cancelled, the old guest stays.  Raises DeployError.
        """
        method = by or self._settings.rejuvenate_by
        share = self._settings.boot_share if share is None else share
        began = time.monotonic()
        facts: dict[str, Any] = {"by": method, "automatic": automatic}
        try:
            self._require_usable()
            if method == "in-place":
                await self._restore(guest)
            else:
                facts |= await self._replace(guest, method, share)
        except (DeployError, OSError) as error:
            self.failed += 1
            self._history.add("rejuvenation failed", guest, error=str(error), **facts)
            _log.error(
                "rejuvenation failed", guest=guest, error=str(error), **facts, error_code="TV0745"
            )
            raise
        self.done += 1
        facts["seconds"] = round(time.monotonic() - began, 3)
        self._last = {"guest": guest, "time": time.time()} | facts
        self._history.add("rejuvenated", guest, **facts)
        _log.info("rejuvenated", guest=guest, **facts)
        return {"guest": guest} | facts

    async def _replace(
        self, guest: str, by: Literal["clone", "boot"], share: int
    ) -> dict[str, Any]:
        """Start another VM and give it the guest's place; return what is known of it."""
        async with self._membership.operation("rejuvenation", guest) as operation:
            slot = operation.slot
            self._history.add("rejuvenation started", guest, slot=slot, by=by, share=share)
            arrival = await operation.start(by=by, share=share)
            self._repairer.renew(slot)
            begun = time.monotonic()
            await operation.join()
            joined = time.monotonic()
            async with self._repairer.exclusive(guest):  # no repair of it is under way
                await operation.replace(lambda: self._faults.undo(guest))
        return {
            "slot": slot,
            "how": arrival.how,
            "bounded": arrival.bounded,
            "share": share if arrival.how == "booted" else FULL_SHARE,
            "ready_seconds": round(arrival.seconds, 3),
            "join_seconds": round(joined - begun, 3),
        }

    async def _restore(self, guest: str) -> None:
        """Restore the guest's clean snapshot in its own VM; return once it votes again."""
        if self._membership.role(guest) != "voter":
            raise DeployError(f"{guest} does not vote", error_code="TV0743")
        self._history.add("rejuvenation started", guest, slot=guest, by="in-place", share=None)
        await self._repairer.heal(guest, undo=lambda: self._faults.undo(guest), must=True)
        self._in_place[guest] = time.time()

    def _require_usable(self) -> None:
        """Raise DeployError if the disk or libvirt cannot be used."""
        for problem in (self._storage.problem, self._hypervisor_problem()):
            if problem:
                raise DeployError(
                    f"no guest can be started now: {problem}",
                    remedy="repeat this when `trivisor status` shows no problem",
                    error_code="TV0746",
                )

    # ---- automatic

    async def run(self) -> None:
        """Replace the guest that has run longest, again and again, until cancelled.

        Each guest is replaced once in ``rejuvenate_every`` seconds, on average.
        """
        every = self._settings.rejuvenate_every
        if every is None:
            return
        pause = every / len(self._membership.voting_slots)
        self._due = time.time() + pause
        while True:
            await asyncio.sleep(max(0.0, min(self._due - time.time(), pause)))  # it is a period
            if time.time() < self._due and self._due - time.time() <= pause:
                continue
            obstacle = self.problem = self._find_obstacle()
            if not obstacle:
                try:
                    await self.rejuvenate(self.next_guest(), automatic=True)
                except (DeployError, OSError) as error:
                    self.problem = str(error)
            # A host that was suspended, or a clock that was set, causes no series of replacements.
            ahead = POSTPONED if obstacle else max(0.0, self._due + pause - time.time())
            self._due = time.time() + min(ahead, pause)

    def next_guest(self) -> str:
        """Return the voter whose VM has run longest."""
        lives = self._membership.lives
        names = self._membership.voting_slots
        return min(names, key=lambda name: max(lives.get(name, 0.0), self._in_place.get(name, 0.0)))

    def _find_obstacle(self) -> str:
        """Return why no guest should be replaced now; empty if one can be."""
        missing = set(self._membership.voting_slots) - self._observer.voting
        if missing:
            return f"{', '.join(sorted(missing))} does not vote: repair comes first"
        if (pending := self._membership.pending) is not None:
            return f"a {pending.kind} is under way"
        return ""

    def describe(self) -> dict[str, Any]:
        """Return what the status shows."""
        due = self._due
        settings = self._settings
        return {
            "every": settings.rejuvenate_every,
            "by": settings.rejuvenate_by,
            "boot_share": settings.boot_share,
            "done": self.done,
            "failed": self.failed,
            "last": self._last,
            "next": None if due is None else {"guest": self.next_guest(), "time": due},
            "problem": self.problem or None,
        }
