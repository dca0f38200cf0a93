"""What is seen of a node: its guests, and its replicas as the voter tells of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from deploy.node.history import EventHistory
from deploy.node.interfaces import GuestPort
from deploy.supervisor.repair_policy import FlapCounter
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable

__all__ = ["NodeObserver"]

NEWS = 5.0
"""Seconds for which an event is news; a supervisor that takes over is told older ones too."""

_log = structlog.get_logger(__name__)


class NodeObserver:
    """Follows the voter, and knows how each replica stands."""

    def __init__(
        self,
        guests: Mapping[str, GuestPort],
        voter: VoterControl,
        *,
        voter_pid: Callable[[], int | None],
        history: EventHistory,
    ) -> None:
        """``voter_pid`` tells which process is the voter now."""
        self._guests = guests
        self._voter = voter
        self._voter_pid = voter_pid
        self._history = history
        self._falls = {name: FlapCounter() for name in guests}
        self._told = 0  # events of the voter taken
        self._source: tuple[int | None, int] = (None, 0)  # which voter, and its last event taken
        self._voter_began: tuple[int | None, float] = (None, 0.0)  # which voter, seen since when
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        self.replicas: dict[str, dict[str, Any]] = {}
        """The voter's last word on each replica."""
        self.voter_status: dict[str, Any] | None = None
        """The voter's last whole status; None while it does not answer."""

    def wake(self) -> None:
        """Look now: something has changed."""
        self._wake.set()

    async def follow(self) -> None:
        """Take the voter's events as they come, until cancelled."""
        while True:
            try:
                status = await self.look()
                if status.get("pid") != self._source[0]:  # another voter counts its events anew
                    self._source = (status.get("pid"), 0)
                async for event in self._voter.events(self._source[1]):
                    self._source = (self._source[0], int(event["id"]))
                    self._told += 1
                    self._note_fall(event)
                    self._history.add(
                        "replica",
                        event["replica"],
                        before=event["before"],
                        after=event["after"],
                        reason=event["reason"],
                        seq=event["seq"],
                    )
                    replica = self.replicas.setdefault(event["replica"], {})
                    replica.update(state=event["after"], reason=event["reason"])
                    await self._tell()
            except VoterUnreachable as error:
                self.voter_status = None
                await self._tell()
                _log.debug("no voter events", error=str(error))
            # The voter is starting again, or ended the stream: nothing tells when it is back.
            await asyncio.sleep(0.1)

    def _note_fall(self, event: dict[str, Any]) -> None:
        came_from = event["before"] in ("active", "learner", "restoring")
        if came_from and event["after"] == "absent" and time.time() - event["time"] < NEWS:
            self._falls[event["replica"]].note(time.monotonic())

    async def _tell(self) -> None:
        self._wake.set()
        async with self._news:
            self._news.notify_all()

    async def look(self) -> dict[str, Any]:
        """Ask the voter how all stands.  Raises VoterUnreachable."""
        told = self._told
        try:
            status = await self._voter.status()
        except VoterUnreachable:
            self.voter_status = None
            raise
        self.voter_status = status
        if status.get("pid") != self._voter_began[0]:
            self._voter_began = (status.get("pid"), time.monotonic())
        if self._told == told:  # else the answer may be older than what the events said meanwhile
            self.replicas = {replica["name"]: replica for replica in status["replicas"]}
        async with self._news:
            self._news.notify_all()
        return status

    def replica_state(self, name: str) -> str | None:
        """The voter's word for a replica; None while the voter does not answer."""
        if self.voter_status is None:
            return None
        return str(self.replicas.get(name, {}).get("state", "absent"))

    @property
    def active(self) -> int:
        """How many replicas vote."""
        return len(self._voting)

    @property
    def _voting(self) -> set[str]:
        """The replicas that vote and whose guests run: the voter may not have noticed yet."""
        return {
            name
            for name, guest in self._guests.items()
            if self.replica_state(name) == "active" and guest.state == "ready"
        }

    async def wait_active(self, names: list[str], seconds: float) -> bool:
        """Wait until all of these replicas vote; False if they do not within ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(
                    lambda: all(self.replica_state(name) == "active" for name in names)
                )
                return True
        return False

    async def answers(self) -> bool:
        """Whether the voter tells how all stands, or has never yet done so since its start."""
        try:
            await self.look()
        except VoterUnreachable:
            return self._voter_pid() != self._voter_began[0]
        return True
