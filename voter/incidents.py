"""Incidents: changes of replicas' states, as reported to operators and the supervisor."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

__all__ = ["Incident", "IncidentLog"]


class Incident(NamedTuple):
    """A change of a replica's state, or its dissent."""

    id: int
    time: float  # wall clock, seconds since 1970
    replica: str
    before: str
    after: str
    reason: str
    seq: int


class IncidentLog:
    """The last incidents, numbered from 1."""

    def __init__(self) -> None:
        self.kept: deque[Incident] = deque(maxlen=1000)
        self._last = 0
        self._news = asyncio.Event()  # set at the next incident, and then replaced

    def add(
        self, time: float, *, replica: str, before: str, after: str, reason: str, seq: int
    ) -> None:
        """Add an incident that happens now, at ``time`` seconds since 1970."""
        self._last += 1
        self.kept.append(Incident(self._last, time, replica, before, after, reason, seq))
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def after(self, since: int) -> list[Incident]:
        """Wait until there are incidents with an id over ``since``; return those still kept.

        Any number of listeners may wait.  Only the last 1000 are kept: a gap in the ids shows it.
        """
        while True:
            news = self._news
            found = [incident for incident in self.kept if incident.id > since]
            if found:
                return found
            await news.wait()
