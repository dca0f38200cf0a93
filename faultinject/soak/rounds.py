"""Run the rounds: a corrupted state and a killed voter at almost the same time.

A round stores a value, waits for its trigger, flips one bit of the value in one guest's memory and
kills the voter.  It then waits until the corruption is detected and all guests vote again.  At its
end two markers must pass with all guests voting.  The voter orders the second one only when every
guest has reported its digest at the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from faultinject.faults.site import NotApplied
from faultinject.soak.checkpoints import CheckpointAudit
from faultinject.soak.corruption import GuestMemory, StateCorruptor
from faultinject.soak.load import Load
from faultinject.soak.markers import POLL_LOG, MarkerTracker, SequenceGaps
from faultinject.soak.plan import GUESTS, PlannedInjection, SoakFaultKind
from faultinject.soak.record import InjectedFault, RoundRecord
from faultinject.soak.recovery import NotRecovered, Recovery
from faultinject.soak.round_clients import RoundClients
from faultinject.soak.round_plan import MARKERS, RoundPlan, RoundTrigger
from faultinject.soak.soak_injector import InjectionProof, OpenFault, SoakInjector
from faultinject.soak.view import NodeView
from faultinject.soak.voter_log import Detector, VoterEvent, VoterLog, classify
from voter.core.limits import Limits

__all__ = ["RoundRunner"]

MARKER_EVERY = Limits().marker_every
POLL = 0.002
"""Seconds between two polls of the places of released replies."""
LOG_STEP = 0.002
"""Precision of the log's times in seconds: milliseconds, rounded down."""
MOMENT_TIMEOUT = 60.0
"""Seconds to reach the round's moment; then the round continues without it."""
READ_AFTER = 45.0
"""Seconds after which a client reads a corrupted value that nothing has detected."""
DETECTION_TIMEOUT = 120.0
"""Seconds for a corruption to be detected.  More is a broken promise."""
MARKER_TIMEOUT = 120.0
"""Seconds for the markers at the end of a round."""
AUDIT_PERIOD = 0.5
"""Seconds between two audits of the journal."""
TIMELINE = 30
"""Most events of the voter's log in a round's record."""


class _Injected(NamedTuple):
    """The corruption and the kill as they were applied."""

    corruption: InjectionProof
    kill: InjectionProof
    flipped_at: float  # seconds since 1970
    interrupted: bool


class RoundRunner:
    """Runs the rounds of one plan."""

    def __init__(
        self,
        node: NodeView,
        load: Load,
        recovery: Recovery,
        say: Callable[[str], None],
        *,
        places: SequenceGaps,
        audit: CheckpointAudit,
        seed: int,
        state: int,
    ) -> None:
        """``say`` gets a message about each round that could not be applied."""
        self.clients = RoundClients(load, state)
        self.rounds: list[RoundRecord] = []
        self.failed: list[str] = []
        """Rounds that could not be applied, with the reasons."""
        self.unhealed: list[InjectedFault] = []
        """Faults of the round from which the node did not recover."""
        self._load = load
        self._recovery = recovery
        self._say = say
        self._audit = audit
        self._injector = SoakInjector(node)
        self._corruptor = StateCorruptor(node.layout, self.clients, seed)
        log = VoterLog(node.layout.voter_log)
        self._markers = MarkerTracker(places, log, lambda: load.oracle.known)
        self._began = time.monotonic()
        self._numbers = 0

    async def run(self, plan: RoundPlan) -> list[InjectedFault]:
        """Run one round; append its record to ``rounds`` and return its two faults.

        A round that could not be applied is in ``failed``, and returns no faults.
        Raises NotRecovered.
        """
        self._numbers += 2
        corrupt = PlannedInjection(
            number=self._numbers - 1, kind=SoakFaultKind.CORRUPT_STATE, target=plan.guest
        )
        kill = PlannedInjection(number=self._numbers, kind=SoakFaultKind.VOTER_KILL, target="voter")
        await self._recovery.complete([], "before a round")
        await asyncio.sleep(plan.calm)
        await self._recovery.keep_limits([corrupt, kill])
        self._markers.begin_round()
        wrong_before, compared_before = self._load.oracle.wrong, self._audit.compared
        try:
            value = await self._corruptor.store(plan)
            memory = await self._corruptor.memory(plan.guest)  # takes too long for the moment
            await self._until_trigger(plan)
            window = self._load.watch()
            self._markers.read_log()
            self._markers.events.clear()
            injected = await self._inject(plan, value, kill, memory)
        except NotApplied as error:
            await self.clients.stop()
            self.failed.append(f"round {plan.number}: {error}")
            self._say(self.failed[-1])
            return []
        opened = [
            OpenFault(corrupt, injected.corruption, False, str(plan.trigger), window),
            OpenFault(kill, injected.kill, False, "", window),
        ]
        try:
            detector, event = await self._detect(plan, injected)
            await self.clients.stop()
            since = await self._recovery.complete(opened, "after a round")
            window.ended = since
            opened[-1].recovered_after = since - injected.kill.at
            right = await self.clients.read_back()
            markers = await self._pass_markers()
            await self._recovery.complete([], "after the markers of a round")
        except NotRecovered:
            self.unhealed = [fault.record(self._began) for fault in opened]
            raise
        found = await self._corruptor.census(value)
        self._markers.read_log()
        flipped_at, events = injected.flipped_at, self._markers.events
        self.rounds.append(
            RoundRecord(
                number=plan.number,
                guest=plan.guest,
                key=plan.key,
                trigger=str(plan.trigger),
                lead=plan.lead,
                planned_offset=plan.offset,
                offset=round(injected.kill.at - injected.corruption.at, 4),
                corruption=injected.corruption.proof,
                kill=injected.kill.proof,
                interrupted=injected.interrupted,
                noticed_by=str(detector),
                noticed_after=None if event is None else round(event.at - flipped_at, 3),
                noticed_as="" if event is None else str(event),
                timeline=[f"{one.at - flipped_at:+.3f} s {one}" for one in events[:TIMELINE]],
                wrong=self._load.oracle.wrong - wrong_before,
                read_back=right,
                markers=markers,
                checkpoints=self._audit.compared - compared_before,
                memory=found,
                recovered_after=round(since - injected.kill.at, 3),
                longest_pause=round(window.longest, 4),
            )
        )
        return [fault.record(self._began) for fault in opened]

    # ----------------------------------------------------------- the moment

    async def _until_trigger(self, plan: RoundPlan) -> None:
        """Wait for the round's moment, less its lead."""
        if plan.trigger is RoundTrigger.READ:
            self.clients.start_reading(plan.key)
            return
        self.clients.start_writing()
        markers, places = self._markers, self._markers.places
        deadline = time.monotonic() + MOMENT_TIMEOUT
        if not markers.last:
            markers.last = await markers.next(places.newest, deadline)
        if plan.trigger is RoundTrigger.FETCH:
            # The voter fetches states from the guests in turn, beginning with the first.
            wanted = GUESTS.index(plan.guest)
            while time.monotonic() < deadline and (
                markers.fetch_seconds is None or markers.checkpoints % len(GUESTS) != wanted
            ):
                markers.last = await markers.next(markers.last, deadline)
                await markers.next_checkpoint()
        if not markers.last:
            return  # no marker in time
        began, first = time.monotonic(), places.newest
        expected = markers.last + MARKER_EVERY + 1
        unit = 1.0
        if plan.trigger is RoundTrigger.FETCH and markers.fetch_seconds is not None:
            unit = markers.fetch_seconds
        wait = plan.lead * unit - self._corruptor.search_seconds  # a search comes before the flip
        while time.monotonic() < deadline and not markers.since(markers.last):
            took = time.monotonic() - began
            rate = (places.newest - first) / took if took > 0.2 else 0.0
            if places.newest >= expected - max(0.0, -wait) * rate:
                break
            await asyncio.sleep(POLL)
        await asyncio.sleep(max(0.0, wait))

    # -------------------------------------------------------- the injection

    async def _inject(
        self, plan: RoundPlan, value: bytes, kill: PlannedInjection, memory: GuestMemory
    ) -> _Injected:
        """Flip the bit and kill the voter, as far apart as the plan says.  Raises NotApplied."""
        copies = await self._corruptor.prepare(plan, value, memory)
        killing: asyncio.Task[InjectionProof] | None = None
        if plan.offset < 0:
            killing = asyncio.create_task(self._injector.inject(kill))
            await asyncio.sleep(-plan.offset)
        at, wall = time.monotonic(), time.time()
        done = self._corruptor.flip(plan, value, memory, copies)
        if killing is None:
            killing = asyncio.create_task(self._kill_after(plan.offset, kill))
        try:
            done += await self._corruptor.flip_rest(plan, value, memory)
        finally:
            killed = await killing
        self._recovery.applied(kill.kind, killed.at)
        interrupted = self._markers.voter_ended()
        return _Injected(self._corruptor.prove(plan, memory, done, at), killed, wall, interrupted)

    async def _kill_after(self, seconds: float, kill: PlannedInjection) -> InjectionProof:
        await asyncio.sleep(seconds)
        return await self._injector.inject(kill)

    # ------------------------------------------------------------ the result

    async def _detect(
        self, plan: RoundPlan, injected: _Injected
    ) -> tuple[Detector, VoterEvent | None]:
        """Wait until something detects the corruption; return what, and the voter's event."""
        began = time.monotonic()
        seen = 0
        read_since = 0.0 if self.clients.reading else float("inf")
        while (took := time.monotonic() - began) < DETECTION_TIMEOUT:
            self._load.check()
            self._markers.read_log()
            for event in self._markers.events[seen:]:
                seen += 1
                unread = event.at < read_since
                requests = self._markers.places
                detector = classify(event, plan.guest, requests=requests, unread=unread)
                if detector is not None and event.at >= injected.flipped_at - LOG_STEP:
                    return detector, event
            if took > READ_AFTER and not self.clients.reading:
                read_since = time.time()
                self.clients.start_reading(plan.key)
            await asyncio.sleep(POLL_LOG)
        return Detector.NOTHING, None

    async def _pass_markers(self) -> int:
        """Make writes until two markers have passed; return the number that did."""
        since = self._markers.places.newest
        self.clients.start_writing()
        deadline = time.monotonic() + MARKER_TIMEOUT
        while len(self._markers.since(since)) < MARKERS and time.monotonic() < deadline:
            self._load.check()
            await asyncio.sleep(POLL_LOG)
        await self.clients.stop()
        self._markers.read_log()
        found = self._markers.since(since)
        self._markers.last = found[-1] if found else 0
        return len(found)

    # ------------------------------------------------------------- the audit

    async def audit_forever(self) -> None:
        """Compare new checkpoints with the model until cancelled."""
        while True:
            self.audit()
            await asyncio.sleep(AUDIT_PERIOD)

    def audit(self) -> None:
        """Compare the checkpoints that are new."""
        self._audit.collect()
        self._audit.compare(self._load.oracle.known)
