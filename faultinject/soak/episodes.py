"""Carries out a plan: each fault at its moment, and what clients felt until all was well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from faultinject.soak.injection import InjectionNotApplied, InjectionProof, SoakInjector
from faultinject.soak.load import Load, Window
from faultinject.soak.plan import GUESTS, Episode, Moment, PlannedInjection, SoakFaultKind
from faultinject.soak.record import InjectedFault
from faultinject.soak.view import NoAnswer, NodeView, View

__all__ = ["Conductor", "NeverWhole", "Open"]

WHOLE_PATIENCE = 180.0
"""Seconds for a node to be whole again after a fault; more is a broken promise, and the end.  A
guest that is hit while it starts is booted anew, which takes most of a minute on a busy host."""
MOMENT_PATIENCE = 30.0
"""Seconds for a repair to begin."""
POLL = 0.1
POLL_MOMENT = 0.01
"""Seconds between looks: while the node recovers, and while a moment is waited for."""
FRESH = 0.05
"""Seconds: what was seen longer before a fault is no proof of what was so when it came."""
SUPERVISOR_KILLS = 4
SUPERVISOR_WINDOW = 62.0
"""The watchdog restarts no supervisor that ends 6 times within 60 s: at most so many are killed."""
VOTER_KILLS = 4
VOTER_STEADY = 5.5
"""A voter is given up after 6 lives in a row under 5 s: after so many one is left to live."""
REPAIRS_IN_ROW = 3
"""A guest is given up after 6 repairs in a row, with longer and longer pauses: it is let be
before."""


class NeverWhole(Exception):
    """The node did not become whole again in time."""


@dataclass
class Open:
    """A fault that was applied, until it is known what came of it."""

    strike: PlannedInjection
    applied: InjectionProof
    overlapped: bool
    seen: str
    window: Window
    whole_after: float | None = None

    @property
    def killed(self) -> int | None:
        """The process that it ended, if it ended one."""
        kills = self.strike.kind is SoakFaultKind.GUEST_KILL and self.applied.process is not None
        return self.applied.process.pid if kills and self.applied.process else None


class _Sight(NamedTuple):
    """What was seen right before a fault: of a guest that was on its way back, when (in steady
    seconds, and in those since 1970).
    """

    words: str
    returning: str = ""
    at: float = 0.0
    wall: float = 0.0


class Conductor:
    """Runs the episodes of one plan."""

    def __init__(self, node: NodeView, load: Load, say: Callable[[str], None]) -> None:
        """``say`` is told what is waited for, and what could not be applied."""
        self._node = node
        self._load = load
        self._say = say
        self._striker = SoakInjector(node)
        self._began = time.monotonic()
        self._supervisor_kills: list[float] = []
        self._voter_kills: list[float] = []
        self.waits: list[str] = []
        self.failed: list[str] = []
        """Faults that could not be applied, in words."""
        self.unhealed: list[InjectedFault] = []
        self.last: View | None = None

    async def run(self, episode: Episode) -> list[InjectedFault]:
        """Carry out one episode; return its faults.

        Raises NeverWhole; where that comes after a fault, ``unhealed`` has the episode's faults.
        """
        await self.whole([], "before a fault")
        await asyncio.sleep(episode.calm)  # a part of the plan
        await self._mind_limits(episode)
        opened: list[Open] = []
        for strike in episode.strikes:
            sight = await self._moment(opened[0], strike) if opened else _Sight("")
            one = await self._strike(strike, sight)
            if one is None:
                break
            opened.append(one)
        if opened:
            try:
                took = await self.whole(opened, f"after {episode.strikes[-1].kind}")
            except NeverWhole:
                self.unhealed = [self._fault(one) for one in opened]
                raise
            opened[-1].whole_after = took - opened[-1].applied.at
            opened[-1].window.ended = took
        return [self._fault(one) for one in opened]

    def _fault(self, one: Open) -> InjectedFault:
        return InjectedFault(
            number=one.strike.number,
            kind=one.strike.kind,
            target=one.strike.target,
            seconds=one.strike.seconds,
            moment=str(one.strike.moment),
            at=round(one.applied.at - self._began, 3),
            proof=one.applied.proof,
            overlapped=one.overlapped,
            seen=one.seen,
            longest_pause=round(one.window.longest, 4),
            rate=round(one.window.rate, 1),
            whole_after=None if one.whole_after is None else round(one.whole_after, 3),
        )

    async def _strike(self, strike: PlannedInjection, sight: _Sight) -> Open | None:
        window = self._load.watch()
        if strike.kind is SoakFaultKind.CORRUPT_STATE:
            self._load.expect_canary()
        try:
            applied = await self._striker.strike(strike)
        except InjectionNotApplied as error:
            self.failed.append(f"fault {strike.number}, {strike.kind}: {error}")
            self._say(self.failed[-1])
            return None
        if strike.kind is SoakFaultKind.SUPERVISOR_KILL:
            self._supervisor_kills.append(applied.at)
        elif strike.kind is SoakFaultKind.VOTER_KILL:
            self._voter_kills.append(applied.at)
        overlapped = (
            bool(sight.returning)
            and applied.at - sight.at < FRESH
            and not await self._node.voted_again(sight.returning, sight.wall)
        )
        return Open(strike, applied, overlapped, sight.words, window)

    # --------------------------------------------------------------- waiting

    async def whole(self, opened: list[Open], when: str) -> float:
        """Wait until all is well again; return since when it is.  Raises NeverWhole.

        A lie that is over may still stand in a vote that is not decided: so it is well only once
        all that was asked before is settled too, and a replica that is convicted by it is back.
        """
        deadline = time.monotonic() + WHOLE_PATIENCE
        since: float | None = None
        words = "nobody answers"
        while True:
            self._load.check()
            try:
                view = await self._node.look()
            except NoAnswer as error:
                words, since = str(error), None
            else:
                words = str(view)
                over = all(
                    one.applied.over(one.strike.kind, one.strike.target, view) for one in opened
                )
                if not (view.whole and over):
                    since = None
                elif since is None:
                    since = view.at
                elif self._load.settled(since):
                    self.last = view
                    return since
            if time.monotonic() > deadline:
                raise NeverWhole(f"not whole within {WHOLE_PATIENCE:g} s {when}: {words}")
            await asyncio.sleep(POLL)  # several processes, some of them dead: none can tell

    async def _moment(self, first: Open, strike: PlannedInjection) -> _Sight:
        """Wait for a strike's moment; return what was seen."""
        name = first.strike.target
        if name not in GUESTS or strike.moment is Moment.HELD:
            return _Sight(f"{name}: {first.strike.kind} holds")
        deadline = time.monotonic() + MOMENT_PATIENCE
        fell = False
        while True:
            try:
                view = await self._node.look()
            except NoAnswer:
                view = None
            if view is not None:
                guest = view.guests[name]
                right = guest.joining or strike.moment is Moment.PUT_BACK
                # A guest that is to be hit a second time must have a process, and not the old one.
                there = strike.target != name or guest.pid not in (None, first.killed)
                if guest.returning and right and there:
                    return _Sight(f"{name}: {guest}", name, view.at, time.time())
                fell = fell or not guest.whole or guest.pid != self._pid_before(name)
                if fell and view.whole and first.applied.over(first.strike.kind, name, view):
                    return _Sight(f"{name}: votes again already")
            if time.monotonic() > deadline:
                return _Sight(f"{name}: no repair within {MOMENT_PATIENCE:g} s")
            await asyncio.sleep(POLL_MOMENT)  # the states pass in milliseconds

    def _pid_before(self, name: str) -> int | None:
        return self.last.guests[name].pid if self.last is not None else None

    # ---------------------------------------------------------------- limits

    async def _mind_limits(self, episode: Episode) -> None:
        """Wait where one more fault would reach a limit at which the node says that it gives up."""
        kinds = [strike.kind for strike in episode.strikes]
        now = time.monotonic()
        if SoakFaultKind.SUPERVISOR_KILL in kinds:
            recent = [at for at in self._supervisor_kills if now - at < SUPERVISOR_WINDOW]
            if len(recent) >= SUPERVISOR_KILLS:
                pause = recent[-SUPERVISOR_KILLS] + SUPERVISOR_WINDOW - now
                await self._wait(pause, f"{len(recent)} supervisors killed in a minute")
        if SoakFaultKind.VOTER_KILL in kinds:
            row = 0
            for at in reversed(self._voter_kills):
                if now - at > VOTER_STEADY:
                    break
                row, now = row + 1, at
            if row >= VOTER_KILLS:
                await self._wait(VOTER_STEADY, f"{row} voters killed in a row")
        for strike in episode.strikes:
            if strike.target in GUESTS:
                await self._let_be(strike.target)

    async def _let_be(self, name: str) -> None:
        """Wait until a guest's repairs in a row are few again."""
        began = time.monotonic()
        while self.last is not None and self.last.guests[name].in_row >= REPAIRS_IN_ROW:
            await asyncio.sleep(0.5)  # time itself is waited for: 10 s of voting
            await self.whole([], f"while {name} is let be")
        if (took := time.monotonic() - began) > POLL:
            self.waits.append(f"{took:.1f} s: {name} had {REPAIRS_IN_ROW} repairs in a row")

    async def _wait(self, seconds: float, why: str) -> None:
        self.waits.append(f"{seconds:.1f} s: {why}")
        self._say(f"waiting {seconds:.1f} s: {why}")
        await asyncio.sleep(seconds)  # time itself is waited for
        await self.whole([], "after a wait")
