"""Carries out the rounds: a corrupted state and a killed voter at almost the same time.

A round stores a value, waits for its moment, flips one bit of the value in one guest's memory and
kills the voter.  It then waits until the corruption is noticed and all guests vote again.  At its
end two markers must pass with all guests voting.  The voter orders the second one only when every
guest has given its digest at the first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from faultinject.soak.checkpoints import CheckpointAudit
from faultinject.soak.detection import Detector, VoterEvent, VoterLog, classify
from faultinject.soak.episodes import Conductor, NeverWhole, Open
from faultinject.soak.guest_memory import (
    Copy,
    MemoryMatches,
    census,
    find_held,
    flip,
    flipped,
    memory_of,
)
from faultinject.soak.held import HeldValues
from faultinject.soak.injection import InjectionNotApplied, InjectionProof
from faultinject.soak.load import Load
from faultinject.soak.places import SequenceGaps
from faultinject.soak.plan import GUESTS, Episode, PlannedInjection, SoakFaultKind
from faultinject.soak.record import InjectedFault, RoundRecord
from faultinject.soak.together import MARKERS, Aim, RoundPlan, held_value
from faultinject.soak.view import NodeView
from voter.core.limits import Limits

__all__ = ["RoundConductor"]

MARKER_EVERY = Limits().marker_every
ATTEMPTS = 5
"""Values that are stored at most until one is found in the guest's memory as one piece.  Guest
memory is searched by physical address, so a value that spans two pages can escape the search.
"""
SEARCHES = 20
SEARCH_PAUSE = 0.1
"""Seconds between two searches for a value that the guest may not have stored yet."""
FLIP_PASSES = 3
"""Searches after the flip for copies that the guest made meanwhile."""
POLL = 0.002
"""Seconds between looks at the places of released replies."""
POLL_LOG = 0.05
"""Seconds between looks at the voter's log."""
LOG_STEP = 0.002
"""Seconds: the log states milliseconds, rounded down."""
AIM_PATIENCE = 60.0
"""Seconds to reach the aimed moment; the round then goes on without it."""
READ_ANYWAY = 45.0
"""Seconds after which a corruption that nothing has noticed is read by a client."""
NOTICE_PATIENCE = 120.0
"""Seconds for a corruption to be noticed; more is a broken promise."""
MARKER_PATIENCE = 120.0
"""Seconds for the markers at the end of a round."""
CHECKPOINT_PATIENCE = 10.0
"""Seconds after a marker for its checkpoint to be fetched."""
AUDIT_PERIOD = 0.5
"""Seconds between looks at the journal."""
FETCHES = 3
"""Fetches whose median duration is the unit of a lead."""
TIMELINE = 30
"""Events of the voter's log that a round's record keeps."""


class _Blow(NamedTuple):
    """The corruption and the kill as they were applied."""

    corruption: InjectionProof
    kill: InjectionProof
    flipped_at: float  # seconds since 1970
    interrupted: bool


class RoundConductor(Conductor):
    """Runs the rounds of one plan."""

    def __init__(
        self,
        node: NodeView,
        load: Load,
        say: Callable[[str], None],
        *,
        places: SequenceGaps,
        audit: CheckpointAudit,
        seed: int,
        state: int,
    ) -> None:
        super().__init__(node, load, say)
        self.held = HeldValues(load, state)
        self.audit = audit
        self.rounds: list[RoundRecord] = []
        self.corrupted: dict[bytes, str] = {}
        """Every corrupted value of all rounds, and the guest that it was injected into."""
        self._places = places
        self._seed = seed
        self._log = VoterLog(node.layout.voter_log)
        self._events: list[VoterEvent] = []
        self._anchor = 0
        """Place of the last marker of this voter; 0: not known."""
        self._checkpoints = 0
        """Checkpoints that this voter has fetched; the keepers take turns."""
        self._fetches: deque[float] = deque(maxlen=FETCHES)
        """Seconds from a marker to the end of its fetch, the last few times."""
        self._search_took = 0.0
        """Seconds that the last search of a guest's memory took."""
        self._admissions: set[int] = set()
        """Places that went to the admission of a guest."""
        self._numbers = 0

    async def run_round(self, plan: RoundPlan) -> list[InjectedFault]:
        """Carry out one round; append its record to ``rounds`` and return its two faults.

        A round that could not be applied is in ``failed``, and returns no faults.
        Raises NeverWhole; ``unhealed`` then has the faults of the round that was under way.
        """
        self._numbers += 2
        numbers = self._numbers - 1, self._numbers
        corrupt = PlannedInjection(
            number=numbers[0], kind=SoakFaultKind.CORRUPT_STATE, target=plan.guest
        )
        kill = PlannedInjection(number=numbers[1], kind=SoakFaultKind.VOTER_KILL, target="voter")
        await self.whole([], "before a round")
        await asyncio.sleep(plan.calm)  # a part of the plan
        await self._mind_limits(Episode(calm=plan.calm, strikes=(corrupt, kill)))
        self._admissions.clear()
        self._places.forget(min(self._anchor or self._places.newest, self._places.newest))
        wrong_before = self._load.oracle.wrong
        audited = self.audit.compared
        try:
            value = await self._store(plan)
            memory = await self._memory(plan.guest)  # a look at all processes: not at the moment
            await self._aim(plan)
            window = self._load.watch()
            self._read_log()
            self._events.clear()
            blow = await self._strike_both(plan, value, kill, memory)
        except InjectionNotApplied as error:
            await self.held.stop()
            self.failed.append(f"round {plan.number}: {error}")
            self._say(self.failed[-1])
            return []
        opened = [
            Open(corrupt, blow.corruption, False, str(plan.aim), window),
            Open(kill, blow.kill, False, "", window),
        ]
        try:
            noticed, event = await self._notice(plan, blow)
            await self.held.stop()
            since = await self.whole(opened, "after a round")
            window.ended = since
            opened[-1].whole_after = since - blow.kill.at
            right = await self.held.read_back()
            markers = await self._pass_markers()
            await self.whole([], "after the markers of a round")
        except NeverWhole:
            self.unhealed = [self._fault(one) for one in opened]
            raise
        found = await self._census(plan, value)
        self._read_log()
        self.rounds.append(
            RoundRecord(
                number=plan.number,
                guest=plan.guest,
                key=plan.key,
                aim=str(plan.aim),
                lead=plan.lead,
                planned_offset=plan.offset,
                offset=round(blow.kill.at - blow.corruption.at, 4),
                corruption=blow.corruption.proof,
                kill=blow.kill.proof,
                interrupted=blow.interrupted,
                noticed_by=str(noticed),
                noticed_after=None if event is None else round(event.at - blow.flipped_at, 3),
                noticed_as="" if event is None else str(event),
                timeline=[
                    f"{one.at - blow.flipped_at:+.3f} s {one}" for one in self._events[:TIMELINE]
                ],
                wrong=self._load.oracle.wrong - wrong_before,
                read_back=right,
                markers=markers,
                checkpoints=self.audit.compared - audited,
                memory=found,
                whole_after=round(opened[-1].whole_after, 3),
                longest_pause=round(window.longest, 4),
            )
        )
        return [self._fault(one) for one in opened]

    # ------------------------------------------------------------ the value

    async def _store(self, plan: RoundPlan) -> bytes:
        """Store a value that is found as one object in the guest's memory.  Raises NotApplied."""
        for attempt in range(ATTEMPTS):
            value = held_value(self._seed, plan.number, attempt)
            if not await self.held.store(plan.key, value):
                continue
            for _ in range(SEARCHES):
                if await self._find(plan.guest, value):
                    return value
                await asyncio.sleep(SEARCH_PAUSE)  # memory gives no event for being written to
        raise InjectionNotApplied(f"{plan.guest} holds none of {ATTEMPTS} values as one piece")

    async def _find(self, guest: str, value: bytes) -> list[Copy]:
        """Return a guest's copies of a value that are in use.  Raises NotApplied.

        A flip in a reply on its way would only damage a frame, which its checksum shows.
        """
        return await self._search((await self._memory(guest))[1], value)

    async def _memory(self, guest: str) -> tuple[int, Path]:
        """Return the pid of a guest's QEMU, and its memory.  Raises NotApplied."""
        try:
            return await asyncio.to_thread(memory_of, self._node.layout, guest)
        except (LookupError, OSError) as error:
            raise InjectionNotApplied(f"the memory of {guest} cannot be read: {error}") from error

    async def _search(self, ram: Path, value: bytes) -> list[Copy]:
        """Return the copies of a value in a guest's memory that are in use.  Raises NotApplied."""
        began = time.monotonic()
        try:
            copies = await asyncio.to_thread(find_held, ram)
        except OSError as error:
            raise InjectionNotApplied(f"{ram} cannot be read: {error}") from error
        self._search_took = time.monotonic() - began
        return [copy for copy in copies if copy.live and copy.value == value]

    # ----------------------------------------------------------- the moment

    async def _aim(self, plan: RoundPlan) -> None:
        """Wait for the moment that a round is aimed at."""
        if plan.aim is Aim.READ:
            self.held.read_on(plan.key)
            return
        self.held.push()
        deadline = time.monotonic() + AIM_PATIENCE
        if not self._anchor:
            self._anchor = await self._next_marker(self._places.newest, deadline)
        if plan.aim is Aim.FETCH:
            # The voter asks the guests in turn to keep a state, from the first one on.
            wanted = GUESTS.index(plan.guest)
            while time.monotonic() < deadline and (
                not self._fetches or self._checkpoints % len(GUESTS) != wanted
            ):
                self._anchor = await self._next_marker(self._anchor, deadline)
                await self._next_checkpoint()
        if not self._anchor:
            return  # no marker came in time
        began, first = time.monotonic(), self._places.newest
        expected = self._anchor + MARKER_EVERY + 1
        unit = median(self._fetches) if plan.aim is Aim.FETCH and self._fetches else 1.0
        wait = plan.lead * unit - self._search_took  # the search comes before the flip
        while time.monotonic() < deadline and not self._markers(self._anchor):
            took = time.monotonic() - began
            rate = (self._places.newest - first) / took if took > 0.2 else 0.0
            if self._places.newest >= expected - max(0.0, -wait) * rate:
                break
            await asyncio.sleep(POLL)  # no event is worth one for each reply
        await asyncio.sleep(max(0.0, wait))  # a part of the plan

    def _markers(self, since: int) -> list[int]:
        """Return the places of markers after ``since``; no session was opened since then."""
        holes = self._places.holes(since, self._load.oracle.known)
        return [place for place in holes if place not in self._admissions]

    async def _next_marker(self, since: int, deadline: float) -> int:
        """Return the place of the first marker after ``since``, or 0 at the deadline."""
        while not (found := self._markers(since)):
            if time.monotonic() > deadline:
                return 0
            await asyncio.sleep(POLL_LOG)  # seconds away
        return found[0]

    async def _next_checkpoint(self) -> None:
        """Wait until the voter has fetched one more checkpoint, or for CHECKPOINT_PATIENCE."""
        before = self._checkpoints
        deadline = time.monotonic() + CHECKPOINT_PATIENCE
        while self._checkpoints == before and time.monotonic() < deadline:
            self._read_log()
            await asyncio.sleep(POLL_LOG)  # a file gives no event for having grown

    # ------------------------------------------------------------- the blow

    async def _strike_both(
        self, plan: RoundPlan, value: bytes, kill: PlannedInjection, memory: tuple[int, Path]
    ) -> _Blow:
        """Flip the bit and kill the voter, so far apart as the plan says.  Raises NotApplied."""
        pid, ram = memory
        copies = await self._search(ram, value)
        if not copies:
            raise InjectionNotApplied(f"{plan.guest} no longer holds the value of {plan.key}")
        killing: asyncio.Task[InjectionProof] | None = None
        if plan.offset < 0:
            killing = asyncio.create_task(self._striker.strike(kill))
            await asyncio.sleep(-plan.offset)  # a part of the plan
        at, wall = time.monotonic(), time.time()
        done = flip(ram, copies, plan.byte, plan.bit)
        self.corrupted[flipped(value, plan.byte, plan.bit)] = plan.guest
        if killing is None:
            killing = asyncio.create_task(self._kill_after(plan.offset, kill))
        left = 0
        try:
            for _ in range(FLIP_PASSES):
                done += flip(ram, await self._search(ram, value), plan.byte, plan.bit)
                left = len(await self._search(ram, value))
                if not left:
                    break
        finally:
            killed = await killing
        self._voter_kills.append(killed.at)
        self._read_log()
        ended = {event.fields["seq"] for event in self._events if event.event == "checkpoint"}
        markers = self._markers(self._anchor) if self._anchor else []
        interrupted = any(place not in ended for place in markers)
        self._anchor = self._checkpoints = 0
        if not done:
            raise InjectionNotApplied(
                f"no flipped copy of {plan.key} in {plan.guest} was read back"
            )
        places = ", ".join(f"{copy.offset:#x}" for copy in done[:4])
        more_places = ", ..." if len(done) > 4 else ""
        proof = (
            f"{plan.key} in {plan.guest} (QEMU {pid}): bit {plan.bit} of byte {plan.byte} of "
            f"{len(done)} copies in use flipped and read back, at {places}{more_places}; {left} "
            "right copies in use were left"
        )
        return _Blow(InjectionProof(at=at, proof=proof), killed, wall, interrupted)

    async def _kill_after(self, seconds: float, kill: PlannedInjection) -> InjectionProof:
        await asyncio.sleep(seconds)  # a part of the plan
        return await self._striker.strike(kill)

    # ------------------------------------------------------------ the result

    async def _notice(self, plan: RoundPlan, blow: _Blow) -> tuple[Detector, VoterEvent | None]:
        """Wait until something notices the corruption; return what, and the voter's event."""
        began = time.monotonic()
        seen = 0
        read_since = 0.0 if self.held.reading else float("inf")
        while (took := time.monotonic() - began) < NOTICE_PATIENCE:
            self._load.check()
            self._read_log()
            for event in self._events[seen:]:
                seen += 1
                unread = event.at < read_since
                detector = classify(event, plan.guest, requests=self._places, unread=unread)
                if detector is not None and event.at >= blow.flipped_at - LOG_STEP:
                    return detector, event
            if took > READ_ANYWAY and not self.held.reading:
                read_since = time.time()
                self.held.read_on(plan.key)
            await asyncio.sleep(POLL_LOG)  # a file gives no event for having grown
        return Detector.NOTHING, None

    async def _pass_markers(self) -> int:
        """Make writes until two markers have passed; return how many did, all guests voting."""
        since = self._places.newest
        self.held.push()
        deadline = time.monotonic() + MARKER_PATIENCE
        while len(found := self._markers(since)) < MARKERS and time.monotonic() < deadline:
            self._load.check()
            await asyncio.sleep(POLL_LOG)  # seconds away
        await self.held.stop()
        self._read_log()
        found = self._markers(since)
        self._anchor = found[-1] if found else 0
        return len(found)

    async def _census(self, plan: RoundPlan, value: bytes) -> dict[str, MemoryMatches]:
        """Count the right and the corrupted values in each guest's memory."""
        found: dict[str, MemoryMatches] = {}
        for guest in GUESTS:
            _, ram = await asyncio.to_thread(memory_of, self._node.layout, guest)
            copies = await asyncio.to_thread(find_held, ram)
            found[guest] = census(copies, value, self.corrupted, guest)
        return found

    def _read_log(self) -> None:
        for event in self._log.read():
            if event.event == "checkpoint":
                self._checkpoints += 1
                # The reply after the marker is the first sign of it.
                began = self._places.when(event.fields["seq"] + 1)
                if began is not None:
                    self._fetches.append(max(0.0, event.at - began))
            if event.event == "replica" and event.fields["after"] == "active":
                self._admissions.add(event.fields["seq"])
            if event.event in ("replica", "checkpoint", "journal", "voided"):
                self._events.append(event)

    async def keep_auditing(self) -> None:
        """Compare new checkpoints with the oracle until cancelled."""
        while True:
            self.look_at_journal()
            await asyncio.sleep(AUDIT_PERIOD)  # a directory of another process

    def look_at_journal(self) -> None:
        """Compare the checkpoints that are new."""
        self.audit.collect()
        self.audit.compare(self._load.oracle.known)
