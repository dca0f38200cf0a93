"""Markers in the voter's order, found from outside: a marker takes a place and answers no client.

So a place that no released reply has, while all guests vote and no session is opened, is that of a
marker.  The admission of a guest takes a place too; the voter's log names those places.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from statistics import median

from faultinject.soak.voter_log import VoterEvent, VoterLog

__all__ = ["MarkerTracker", "SequenceGaps"]

POLL_LOG = 0.05
"""Seconds between two polls of the voter's log, a file of another process."""
CHECKPOINT_PATIENCE = 10.0
"""Seconds after a marker within which its checkpoint is fetched, or the wait ends."""
FETCHES = 3
"""Number of the last fetches whose median duration is used."""


class SequenceGaps:
    """The places that released replies have, and when each reply came by ``clock``.  Pure."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._clock = clock
        self._taken: dict[int, float] = {}
        self.newest = 0
        """The highest place of a released reply."""

    def __contains__(self, place: object) -> bool:
        return place in self._taken

    def add(self, place: int) -> None:
        """Record the place of a released reply."""
        self._taken.setdefault(place, self._clock())
        self.newest = max(self.newest, place)

    def forget(self, upto: int) -> None:
        """Drop all places up to this one, so that memory does not grow with the run."""
        self._taken = {place: at for place, at in self._taken.items() if place > upto}

    def when(self, place: int) -> float | None:
        """Return when the reply at this place came; None if no reply has it."""
        return self._taken.get(place)

    def gaps(self, since: int, upto: int) -> list[int]:
        """Return the places after ``since`` and up to ``upto`` that no reply has, ascending."""
        return [place for place in range(since + 1, upto + 1) if place not in self._taken]


class MarkerTracker:
    """Follows the markers and checkpoints of the voter, by its log and the places of replies."""

    def __init__(self, places: SequenceGaps, log: VoterLog, known: Callable[[], int]) -> None:
        """``known`` returns the place up to which the order is known."""
        self.places = places
        self.events: list[VoterEvent] = []
        """Events of the voter's log since ``begin_round``."""
        self.last = 0
        """Place of this voter's last marker; 0: not known."""
        self.checkpoints = 0
        """Number of checkpoints that this voter has fetched."""
        self._log = log
        self._known = known
        self._fetches: deque[float] = deque(maxlen=FETCHES)  # seconds from marker to fetched state
        self._admissions: set[int] = set()  # places taken by the admission of a guest

    @property
    def fetch_seconds(self) -> float | None:
        """The median duration of the last few fetches; None before the first."""
        return median(self._fetches) if self._fetches else None

    def begin_round(self) -> None:
        """Forget places before the last marker, and admissions."""
        self._admissions.clear()
        self.places.forget(min(self.last or self.places.newest, self.places.newest))

    def voter_ended(self) -> bool:
        """Forget this voter's markers; return whether one of them had no checkpoint yet."""
        self.read_log()
        fetched = {event.fields["seq"] for event in self.events if event.event == "checkpoint"}
        markers = self.since(self.last) if self.last else []
        self.last = self.checkpoints = 0
        return any(place not in fetched for place in markers)

    def since(self, place: int) -> list[int]:
        """Return the places of markers after ``place``."""
        gaps = self.places.gaps(place, self._known())
        return [gap for gap in gaps if gap not in self._admissions]

    def read_log(self) -> None:
        """Read what the voter has logged since the last call."""
        for event in self._log.read():
            if event.event == "checkpoint":
                self.checkpoints += 1
                # The first sign of a marker is the reply at the next place.
                began = self.places.when(event.fields["seq"] + 1)
                if began is not None:
                    self._fetches.append(max(0.0, event.at - began))
            if event.event == "replica" and event.fields["after"] == "active":
                self._admissions.add(event.fields["seq"])
            if event.event in ("replica", "checkpoint", "journal", "voided"):
                self.events.append(event)

    async def next(self, since: int, deadline: float) -> int:
        """Return the place of the first marker after ``since``; 0 at the deadline."""
        while not (found := self.since(since)):
            if time.monotonic() > deadline:
                return 0
            await asyncio.sleep(POLL_LOG)
        return found[0]

    async def next_checkpoint(self) -> None:
        """Wait until the voter has fetched one more checkpoint, or for CHECKPOINT_PATIENCE."""
        before = self.checkpoints
        deadline = time.monotonic() + CHECKPOINT_PATIENCE
        while self.checkpoints == before and time.monotonic() < deadline:
            self.read_log()
            await asyncio.sleep(POLL_LOG)
