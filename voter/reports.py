"""Reports: what operators and the supervisor can follow on the control socket.

There are two logs.  *Incidents* are changes of replicas' states and roles, and dissents.
*Differences* are replies of replicas that do not vote, where they differ from the released ones.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from voter import log
from voter.core import events as ev
from voter.core.membership import Membership

__all__ = ["Difference", "EventLog", "Incident", "Reports"]

LONGEST_PART = 64 << 10
"""Bytes of a request or reply in a difference that are kept; the rest is cut off."""
DIFFERENCE_BYTES = 4 << 20
"""Bytes of all differences that are kept; the oldest are dropped."""
MOST_EVENTS = 1000
"""Events of one log that are kept; the oldest are dropped."""


class Incident(NamedTuple):
    """A change of a replica's state or role, or its dissent."""

    id: int
    time: float  # wall clock, seconds since 1970
    replica: str
    before: str
    after: str
    reason: str
    seq: int


class Difference(NamedTuple):
    """A reply of a replica without a vote that differs from the released one, or its digest.

    Requests and replies are canonical bytes (``guests.protocol.message``), in base64, cut at
    LONGEST_PART.  None: it was not kept.
    """

    id: int
    time: float  # wall clock, seconds since 1970
    replica: str
    role: str
    kind: str  # reply or digest
    seq: int
    behind: float  # seconds from the end of the vote to this reply
    request: str | None
    released: str | None
    other: str | None
    sizes: tuple[int | None, ...]  # bytes of request, released and other reply

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        return sum(len(part or "") for part in (self.request, self.released, self.other))


E = TypeVar("E", Incident, Difference)


class EventLog(Generic[E]):
    """The last events of one kind, numbered from 1."""

    def __init__(self, most_bytes: int = 0, size: Callable[[E], int] = lambda event: 0) -> None:
        """Keep MOST_EVENTS events, and of those ``most_bytes`` bytes as ``size`` counts them."""
        self.kept: deque[E] = deque()
        self._size: Callable[[E], int] = size
        self._most_bytes = most_bytes
        self._bytes = self._last = 0
        self._news = asyncio.Event()  # set at the next event, and then replaced

    @property
    def next_id(self) -> int:
        """The number of the next event."""
        return self._last + 1

    def add(self, event: E) -> None:
        """Add an event, which has the next number."""
        self._last = event.id
        self.kept.append(event)
        self._bytes += self._size(event)
        while len(self.kept) > MOST_EVENTS or self._bytes > self._most_bytes:
            self._bytes -= self._size(self.kept.popleft())
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def after(self, since: int) -> list[E]:
        """Wait until there are events with an id over ``since``; return those still kept.

        Any number of listeners may wait.  A gap in the ids shows that some were dropped.
        """
        while True:
            news = self._news
            found = [event for event in self.kept if event.id > since]
            if found:
                return found
            await news.wait()


class Reports:
    """The logs of one voter."""

    def __init__(
        self, members: Membership, wall_ns: Callable[[], int], counters: dict[str, int]
    ) -> None:
        """``wall_ns`` returns nanoseconds since 1970; ``counters`` are the runner's."""
        self.incidents = EventLog[Incident]()
        self.differences = EventLog[Difference](DIFFERENCE_BYTES, lambda each: each.size)
        self._members = members
        self._wall_ns = wall_ns
        self._counters = counters

    def changed(self, effect: ev.Changed) -> None:
        """Report that a replica has changed its state, or dissented."""
        if effect.reason == "dissent":
            self._counters["dissents"] += 1
            # An observer may dissent at each request: report the 1st, 2nd, 4th, 8th...
            times = self._members[effect.replica].dissents
            if effect.before == effect.after and times & (times - 1):
                return
        self._add(effect.replica, effect.before, effect.after, effect.reason, effect.seq)

    def role_assigned(self, effect: ev.RoleAssigned) -> None:
        """Report that a replica has another role."""
        state = str(self._members[effect.replica].state)
        reason = f"role {effect.before} -> {effect.after}"
        reason += f": {effect.reason}" if effect.reason else ""
        self._add(effect.replica, state, state, reason, effect.seq)

    def _wall(self) -> float:
        return self._wall_ns() / 1e9

    def _add(self, index: int, before: str, after: str, reason: str, seq: int) -> None:
        incidents, name = self.incidents, self._members[index].name
        incidents.add(Incident(incidents.next_id, self._wall(), name, before, after, reason, seq))
        log.info("replica", replica=name, before=before, after=after, reason=reason, seq=seq)

    def differed(self, effect: ev.Differed) -> None:
        """Report a difference."""
        replica, log_ = self._members[effect.replica], self.differences
        kind = "reply" if effect.request else "digest"
        parts = effect.request, effect.released, effect.other
        request, released, other = (
            None if part is None else b64encode(part[:LONGEST_PART]).decode() for part in parts
        )
        sizes = tuple(None if part is None else len(part) for part in parts)
        log_.add(
            Difference(
                log_.next_id, self._wall(), replica.name, str(replica.role), kind, effect.seq,
                effect.behind, request, released, other, sizes,
            )
        )  # fmt: skip

    def voided(self, effect: ev.Voided) -> None:
        """Report a request that all replicas skip from now on."""
        self._counters["voided"] += 1
        log.info("voided", seq=effect.seq)

    def clock_changed(self, effect: ev.ClockChanged) -> None:
        """Report that the wall clock was set, or that agreed time stepped towards it."""
        self._counters["clock_steps"] += 1
        log.info("clock", set_by=effect.wall_ns / 1e9, agreed_time_steps_by=effect.step_ns / 1e9)
