"""Wait until a node has recovered, and keep within the limits at which it stops repairing.

A node has recovered when supervisor and voter serve, all guests vote, every injected fault is over,
and everything that clients requested before is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from faultinject.soak.load import Load
from faultinject.soak.plan import PlannedInjection, SoakFaultKind
from faultinject.soak.soak_injector import OpenFault
from faultinject.soak.view import NoAnswer, NodeView, View

__all__ = ["NotRecovered", "Recovery"]

RECOVERY_TIMEOUT = 180.0
"""Seconds for a node to recover.  More is a broken promise, and ends the run.  A guest that is hit
while it starts is booted again, which takes most of a minute on a busy host."""
POLL = 0.1
"""Seconds between two polls of the node: of several processes, some of them dead."""
SUPERVISOR_KILLS = 4
SUPERVISOR_WINDOW = 62.0
"""Most supervisors killed within this many seconds.  The watchdog stops restarting a supervisor
that ends 6 times within 60 s."""
VOTER_KILLS = 4
VOTER_STEADY = 5.5
"""Most voters killed in a row that lived for less than this many seconds.  The supervisor stops
restarting a voter after 6 lives in a row under 5 s."""
REPAIRS_IN_ROW = 3
"""Most repairs of a guest in a row.  The supervisor stops repairing it after 6."""


class NotRecovered(Exception):
    """The node did not recover in time."""


class Recovery:
    """The state of the node between two faults."""

    def __init__(self, node: NodeView, load: Load, say: Callable[[str], None]) -> None:
        """``say`` gets a message about each wait beyond the plan."""
        self.waits: list[str] = []
        """Waits beyond the plan, because of the node's limits."""
        self.last: View | None = None
        """The node when it had recovered last."""
        self._node = node
        self._load = load
        self._say = say
        self._supervisor_kills: list[float] = []
        self._voter_kills: list[float] = []

    async def complete(self, opened: Sequence[OpenFault], when: str) -> float:
        """Wait until the node has recovered; return since when.  Raises NotRecovered.

        A false reply may still be part of an undecided vote after its fault has ended.  So the wait
        also lasts until all earlier requests are answered, and a replica expelled by them votes.
        """
        deadline = time.monotonic() + RECOVERY_TIMEOUT
        since: float | None = None
        state = "no answer"
        while True:
            self._load.check()
            try:
                view = await self._node.poll()
            except NoAnswer as error:
                state, since = str(error), None
            else:
                state = str(view)
                if not (view.recovered and all(fault.over(view) for fault in opened)):
                    since = None
                elif since is None:
                    since = view.at
                elif self._load.settled(since):
                    self.last = view
                    return since
            if time.monotonic() > deadline:
                raise NotRecovered(f"not recovered within {RECOVERY_TIMEOUT:g} s {when}: {state}")
            await asyncio.sleep(POLL)

    def applied(self, fault: SoakFaultKind, at: float) -> None:
        """Record when a fault was applied."""
        if fault is SoakFaultKind.SUPERVISOR_KILL:
            self._supervisor_kills.append(at)
        elif fault is SoakFaultKind.VOTER_KILL:
            self._voter_kills.append(at)

    async def keep_limits(self, injections: Iterable[PlannedInjection]) -> None:
        """Wait if these faults would reach a limit at which the node stops repairing."""
        now = time.monotonic()
        for planned in injections:
            if planned.kind is SoakFaultKind.SUPERVISOR_KILL:
                recent = [at for at in self._supervisor_kills if now - at < SUPERVISOR_WINDOW]
                if len(recent) >= SUPERVISOR_KILLS:
                    pause = recent[-SUPERVISOR_KILLS] + SUPERVISOR_WINDOW - now
                    await self._wait(pause, f"{len(recent)} supervisors killed in a minute")
            elif planned.kind is SoakFaultKind.VOTER_KILL:
                in_row, later = 0, now
                for at in reversed(self._voter_kills):
                    if later - at > VOTER_STEADY:
                        break
                    in_row, later = in_row + 1, at
                if in_row >= VOTER_KILLS:
                    await self._wait(VOTER_STEADY, f"{in_row} voters killed in a row")
            if planned.target not in ("voter", "supervisor"):
                await self._spare(planned.target)

    async def _spare(self, guest: str) -> None:
        """Wait until a guest has voted for long enough that its repairs in a row are forgotten."""
        began = time.monotonic()
        while (
            self.last is not None
            and guest in self.last.guests
            and self.last.guests[guest].in_row >= REPAIRS_IN_ROW
        ):
            await asyncio.sleep(0.5)  # the supervisor forgets repairs after 10 s of voting
            await self.complete([], f"while {guest} is spared")
        if (took := time.monotonic() - began) > POLL:
            self.waits.append(f"{took:.1f} s: {guest} had {REPAIRS_IN_ROW} repairs in a row")

    async def _wait(self, seconds: float, why: str) -> None:
        self.waits.append(f"{seconds:.1f} s: {why}")
        self._say(f"waiting {seconds:.1f} s: {why}")
        await asyncio.sleep(seconds)
        await self.complete([], "after a wait")
