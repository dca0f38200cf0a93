"""What is known of a node: its guests and replicas now, and what has happened to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import structlog

from deploy.machine.spec import GuestState
from deploy.node.interfaces import GuestPort
from deploy.supervisor.repair_policy import FlapCounter
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable

__all__ = ["HISTORY_LENGTH", "EventHistory", "NodeObserver", "Roles"]

HISTORY_LENGTH = 1000
"""Events that are kept; the oldest are dropped."""
RECENT = 5.0
"""Seconds.  A supervisor that takes over also receives older events, which are no flaps."""

_log = structlog.get_logger(__name__)


class EventHistory:
    """The last events of a node, numbered from 1: the voter's and the supervisor's.

    An event is {"id", "time" (seconds since 1970), "event", "guest" (or None), ...}.
    """

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=HISTORY_LENGTH)
        self._last = 0
        self._added = asyncio.Event()

    def add(self, event: str, guest: str | None = None, **details: Any) -> None:
        """Add an event that happens now."""
        self._last += 1
        self._events.append(
            {"id": self._last, "time": time.time(), "event": event, "guest": guest, **details}
        )
        added, self._added = self._added, asyncio.Event()
        added.set()

    def after(self, since: int) -> list[dict[str, Any]]:
        """Return the events after number ``since``."""
        return [event for event in self._events if event["id"] > since]

    async def follow(self, since: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the events after number ``since`` and all future ones, without end."""
        while True:
            added = self._added
            for event in self.after(since):
                since = event["id"]
                yield event
            await added.wait()


class Roles(NamedTuple):
    """The table of roles, by replica, and its version."""

    version: int
    table: dict[str, str]


_MISMATCHES = ("dissent", "refused: restore failed", "its restored state is not the checkpoint")
_OTHER_FORMAT = "the journal holds states of"
"""What the voter says of a replica whose service differs from the one that wrote the journal."""


class NodeObserver:
    """Follows the voter's events; knows the last state of each replica and guest.

    ``voter_pid`` returns the pid of the current voter process.
    """

    def __init__(
        self,
        guests: Mapping[str, GuestPort],
        voter: VoterControl,
        *,
        voter_pid: Callable[[], int | None],
        history: EventHistory,
    ) -> None:
        self._guests = guests
        self._voter = voter
        self._voter_pid = voter_pid
        self.history = history
        self._received = 0  # events of the voter
        self._source: tuple[int | None, int] = (None, 0)  # the voter's pid, its last event's number
        self._wake = asyncio.Event()
        self.news = asyncio.Condition()
        """Notified whenever something below may have changed."""
        self.flaps = {name: FlapCounter() for name in guests}
        self.replicas: dict[str, dict[str, Any]] = {}
        """The last status of each replica, from the voter."""
        self.mismatched: dict[str, str] = {}
        """Replicas that did not continue the journal as it was voted, and what happened."""
        self.voter_status: dict[str, Any] | None = None
        """The voter's last status; None while it does not answer."""
        self.roles: Roles | None = None
        """The roles that a voter reported last; None if none has."""
        self.voter_seen: tuple[int | None, float] = (None, 0.0)
        """The pid of the voter that answered last, and since when it answers (steady clock)."""

    # ---- following

    def wake(self) -> None:
        """End a `sleep` early: something has changed."""
        self._wake.set()

    async def sleep(self, seconds: float) -> None:
        """Wait until `wake`, ``seconds`` at most; then notify ``news``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()
        async with self.news:
            self.news.notify_all()

    async def follow(self) -> None:
        """Receive the voter's events until cancelled."""
        while True:
            try:
                status = await self.poll()
                if status.get("pid") != self._source[0]:  # another voter numbers its events from 1
                    self._source = (status.get("pid"), 0)
                async for event in self._voter.events(self._source[1]):
                    await self._receive(event)
            except VoterUnreachable as error:
                self.voter_status = None
                await self._notify()
                _log.debug("no voter events", error=str(error))
            # The voter is restarting or ended the stream; no event reports its return.
            await asyncio.sleep(0.1)

    async def _receive(self, event: dict[str, Any]) -> None:
        name, before, after = event["replica"], event["before"], event["after"]
        self._source = (self._source[0], int(event["id"]))
        self._received += 1
        voted_or_joining = before in ("active", "learner", "restoring")
        if voted_or_joining and after == "absent" and time.time() - event["time"] < RECENT:
            self.flaps[name].record(time.monotonic())
        self.history.add(
            "replica", name, before=before, after=after, reason=event["reason"], seq=event["seq"]
        )
        self.replicas.setdefault(name, {}).update(state=after, reason=event["reason"])
        if after in ("expelled", "absent") and str(event["reason"]).startswith(_MISMATCHES):
            self.mismatched[name] = event["reason"]
        await self._notify()

    async def _notify(self) -> None:
        self._wake.set()
        async with self.news:
            self.news.notify_all()

    async def poll(self) -> dict[str, Any]:
        """Ask the voter for its status and return it.  Raises VoterUnreachable."""
        received = self._received
        try:
            status = await self._voter.status()
        except VoterUnreachable:
            self.voter_status = None
            raise
        self.voter_status = status
        if "roles" in status:
            self.roles = Roles(int(status["roles"]["version"]), dict(status["roles"]["table"]))
        if status.get("pid") != self.voter_seen[0]:
            self.voter_seen = (status.get("pid"), time.monotonic())
        if self._received == received:  # otherwise the events are newer than the answer
            self.replicas = {replica["name"]: replica for replica in status["replicas"]}
            for name, replica in self.replicas.items():
                if _OTHER_FORMAT in str(replica.get("link_problem")):
                    self.mismatched[name] = replica["link_problem"]
        async with self.news:
            self.news.notify_all()
        return status

    async def voter_answers(self) -> bool:
        """Return whether the voter answers, or has not answered yet since its start."""
        try:
            await self.poll()
        except VoterUnreachable:
            return self._voter_pid() != self.voter_seen[0]
        return True

    # ---- state

    def replica_state(self, name: str) -> str | None:
        """Return the voter's state of a replica; None while the voter does not answer."""
        if self.voter_status is None:
            return None
        return str(self.replicas.get(name, {}).get("state", "absent"))

    @property
    def voting(self) -> set[str]:
        """The replicas that vote and whose guests run (the voter may not have noticed an end)."""
        return {
            name
            for name, guest in self._guests.items()
            if self.replica_state(name) == "active" and guest.state == GuestState.READY
        }

    async def wait_mismatched(self, need: int) -> None:
        """Wait until ``need`` replicas did not continue the journal as it was voted."""
        while len(self.mismatched) < need:
            with contextlib.suppress(VoterUnreachable):
                await self.poll()  # no event reports the problem of a link
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5), self.news:
                    await self.news.wait_for(lambda: len(self.mismatched) >= need)

    async def wait_active(self, names: Callable[[], list[str]], seconds: float) -> bool:
        """Wait until all these replicas vote; return False if not within ``seconds``.

        ``names`` returns them as they are at that time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self.news:
                await self.news.wait_for(
                    lambda: all(self.replica_state(name) == "active" for name in names())
                )
                return True
        return False
