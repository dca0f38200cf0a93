"""Run the episodes of a plan: inject each fault at its trigger, and wait for recovery."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from faultinject.faults.site import NotApplied
from faultinject.soak.load import Load
from faultinject.soak.plan import GUESTS, Episode, PlannedInjection, SoakFaultKind, Trigger
from faultinject.soak.record import InjectedFault
from faultinject.soak.recovery import NotRecovered, Recovery
from faultinject.soak.soak_injector import NOT_EXCHANGED, OpenFault, SoakInjector
from faultinject.soak.view import NoAnswer, NodeView

__all__ = ["EpisodeRunner"]

MOMENT_TIMEOUT = 30.0
"""Seconds for a repair to begin; then the second fault is injected without it."""
POLL = 0.01
"""Seconds between two polls while waiting for a moment: its states last for milliseconds."""
FRESH = 0.05
"""Seconds after which an observation no longer proves the situation at the injection."""


class _Sight(NamedTuple):
    """An observation right before a fault.

    ``returning``: the guest that was returning to the vote, if one was, observed ``at``
    (monotonic seconds) and ``wall`` (seconds since 1970).
    """

    text: str
    returning: str = ""
    at: float = 0.0
    wall: float = 0.0


class EpisodeRunner:
    """Runs the episodes of one plan."""

    def __init__(
        self, node: NodeView, load: Load, recovery: Recovery, say: Callable[[str], None]
    ) -> None:
        """``say`` gets a message about each fault that could not be applied."""
        self.failed: list[str] = []
        """Faults that could not be applied, with the reasons."""
        self.unhealed: list[InjectedFault] = []
        """Faults of the episode from which the node did not recover."""
        self._node = node
        self._load = load
        self._recovery = recovery
        self._say = say
        self._injector = SoakInjector(node)
        self._began = time.monotonic()

    async def run(self, episode: Episode) -> list[InjectedFault]:
        """Run one episode; return its faults.  Raises NotRecovered."""
        await self._recovery.complete([], "before a fault")
        await asyncio.sleep(episode.calm)
        injections = self._aim(episode)
        await self._recovery.keep_limits(injections)
        opened: list[OpenFault] = []
        for planned in injections:
            sight = await self._wait_for_trigger(opened[0], planned) if opened else _Sight("")
            fault = await self._inject(planned, sight)
            if fault is None:
                break
            opened.append(fault)
        if opened:
            last = opened[-1]
            try:
                since = await self._recovery.complete(opened, f"after {last.planned.kind}")
            except NotRecovered:
                self.unhealed = [fault.record(self._began) for fault in opened]
                raise
            last.recovered_after = since - last.applied.at
            last.window.ended = since
            if len(opened) == 1 and opened[0].proof.startswith(NOT_EXCHANGED):
                self.failed.append(f"fault {last.planned.number}: {opened[0].proof}")
                self._say(self.failed[-1])
        return [fault.record(self._began) for fault in opened]

    def _aim(self, episode: Episode) -> list[PlannedInjection]:
        """Return the injections with the names of the guests that vote now."""
        last = self._recovery.last
        voting = sorted(last.guests) if last is not None else GUESTS
        names = dict(zip(GUESTS, voting, strict=False))
        return [
            msgspec.structs.replace(each, target=names.get(each.target, each.target))
            for each in episode.injections
        ]

    async def _inject(self, planned: PlannedInjection, sight: _Sight) -> OpenFault | None:
        """Inject a fault; return None if it could not be applied."""
        window = self._load.watch()
        if planned.kind is SoakFaultKind.CORRUPT_STATE:
            self._load.expect_canary()
        try:
            applied = await self._injector.inject(planned)
        except NotApplied as error:
            self.failed.append(f"fault {planned.number}, {planned.kind}: {error}")
            self._say(self.failed[-1])
            return None
        self._recovery.applied(planned.kind, applied.at)
        overlapped = (
            bool(sight.returning)
            and applied.at - sight.at < FRESH
            and not await self._node.voted_again(sight.returning, sight.wall)
        )
        return OpenFault(planned, applied, overlapped, sight.text, window)

    async def _wait_for_trigger(self, first: OpenFault, planned: PlannedInjection) -> _Sight:
        """Wait for a fault's trigger; return the observation of it."""
        name = first.planned.target
        if first.applied.exchange is not None:
            return await self._wait_for_newcomer(first, planned)
        if name in ("voter", "supervisor") or planned.trigger is Trigger.HELD:
            return _Sight(f"{name}: {first.planned.kind} acts")
        last = self._recovery.last
        pid_before = last.guests[name].pid if last is not None else None
        deadline = time.monotonic() + MOMENT_TIMEOUT
        failed = False
        while True:
            try:
                view = await self._node.poll()
            except NoAnswer:
                view = None
            if view is not None:
                guest = view.guests[name]
                right = guest.joining or planned.trigger is Trigger.REPLACED
                # A guest that is hit a second time must have a process, and not the old one.
                there = planned.target != name or guest.pid not in (None, first.killed)
                if guest.returning and right and there:
                    return _Sight(f"{name}: {guest}", name, view.at, time.time())
                failed = failed or not guest.recovered or guest.pid != pid_before
                if failed and view.recovered and first.over(view):
                    return _Sight(f"{name}: votes again already")
            if time.monotonic() > deadline:
                return _Sight(f"{name}: no repair within {MOMENT_TIMEOUT:g} s")
            await asyncio.sleep(POLL)

    async def _wait_for_newcomer(self, first: OpenFault, planned: PlannedInjection) -> _Sight:
        """Wait for the moment of a rejuvenation; return the observation of it."""
        before = set(self._recovery.last.guests) if self._recovery.last is not None else set()
        deadline = time.monotonic() + MOMENT_TIMEOUT
        exchange = first.applied.exchange
        while exchange is not None and not exchange.done() and time.monotonic() < deadline:
            with contextlib.suppress(NoAnswer):
                view = await self._node.poll()
                for name in sorted(view.guests.keys() - before):
                    if view.guests[name].joining or planned.trigger is Trigger.STARTED:
                        text = f"{name}: {view.guests[name]}"
                        return _Sight(text, name, view.at, time.time())
            await asyncio.sleep(POLL)
        return _Sight(f"{first.planned.target}: {first.proof}")
