"""Samples a node for all dashboards at once: its state, its rates, and the last ten minutes.

One task asks the voter once an interval, however many browsers watch, and encodes each message
once.  A reader keeps only its position: messages are in a bounded ring, and a reader that falls
behind it gets the full state again.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from deploy.dashboard.campaigns import CampaignBoard
from deploy.dashboard.rates import Rates

__all__ = ["Collector", "Message", "NodeSource"]

WATCHED_INTERVAL = 1.0
"""Seconds between samples while a browser watches."""
UNWATCHED_INTERVAL = 5.0
"""Seconds between samples otherwise, so that a new page has a history."""
WINDOW = 600.0
"""Seconds of history that a new page gets."""
MOST_MESSAGES = 64
"""Messages in the ring: the longest interruption, in samples, after which a browser continues."""
MOST_EVENTS = 300
"""Events that a new page gets."""
HELD = 2.0
"""Seconds without a sample after which a reader checks whether it may go on."""

_log = structlog.get_logger(__name__)


class NodeSource(Protocol):
    """What the dashboard shows of a node, and may do to it: its supervisor."""

    async def status(self) -> dict[str, Any]:
        """Return the status that `trivisor status --json` prints."""

    def events_after(self, since: int) -> list[dict[str, Any]]:
        """Return the events after number ``since``."""

    @property
    def fault_kinds(self) -> Mapping[str, str]:
        """The kinds of fault that can be injected, with what each does; empty if none may be."""

    @property
    def faults_hint(self) -> str:
        """How to allow faults."""

    async def inject(self, kind: str, guest: str, seconds: float | None) -> object:
        """Inject a fault.  Raises DeployError."""

    async def heal(self, guest: str) -> dict[str, Any]:
        """End a guest's fault and repair the guest.  Raises DeployError."""


class Message(NamedTuple):
    """One server-sent event; ``number`` counts them."""

    number: int
    data: bytes


class Collector:
    """Samples a node until cancelled, and serves what it knows."""

    def __init__(self, node: NodeSource, board: CampaignBoard) -> None:
        self._node = node
        self._board = board
        self._rates = Rates()
        self._points: deque[list[float | None]] = deque(maxlen=int(WINDOW / WATCHED_INTERVAL))
        self._repaired: dict[str, dict[str, Any]] = {}
        self._last_event = 0
        self._state: dict[str, Any] = {}
        self._full: Message | None = None
        self._run = secrets.token_hex(4)  # a browser's position in another run means nothing
        self._number = 0
        self._messages: deque[Message] = deque(maxlen=MOST_MESSAGES)
        self._news = asyncio.Event()
        self._watched = asyncio.Event()
        self.watchers = 0

    # ---- sampling

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            try:
                await self.sample()
            except Exception:  # noqa: BLE001 - costs one sample, never the supervisor
                _log.exception("the dashboard has no sample", error_code="TV0908")
            if self.watchers:
                await asyncio.sleep(WATCHED_INTERVAL)  # a period, not a condition
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNWATCHED_INTERVAL):
                    await self._watched.wait()

    async def sample(self) -> None:
        """Take one sample and publish it."""
        status = await self._node.status()
        now = time.time()
        events = self._node.events_after(self._last_event)
        for event in events:
            self._last_event = event["id"]
            if event["event"] in ("repaired", "healed"):
                self._repaired[event["guest"]] = event
        self._state = self._describe(status)
        point = self._rates.point(now, status)
        self._points.append(point)
        while self._points and (self._points[0][0] or 0.0) < now - WINDOW:
            self._points.popleft()
        self._number += 1
        self._full = None
        update = {"state": self._state, "points": [point], "events": events}
        self._messages.append(self._message("update", update))
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _describe(self, status: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the page shows of the node now."""
        voter, journal = status["voter"], status["durability"]["journal"] or {}
        shown = {
            key: status.get(key)
            for key in (
                "phase", "status", "vote", "service", "http", "dir", "uuid", "accel", "storage",
                "connect_problem", "repair", "allow_faults",
            )
        }  # fmt: skip
        return shown | {
            "durability": status["durability"]["kind"],
            "restarts": status["supervisor"]["restarts"],
            "faults": dict(self._node.fault_kinds),
            "faults_hint": self._node.faults_hint,
            "voter": {key: voter.get(key) for key in ("pid", "seq", "compiled", "pending")},
            "journal": {
                key: journal.get(key)
                for key in (
                    "bytes", "segments", "position", "synced", "full", "reason", "sync_last_ms",
                    "sync_longest_ms",
                )
            },
            "guests": [self._describe_guest(guest) for guest in status["guests"]],
            "campaign": self._board.current(),
            "watchers": self.watchers,
        }  # fmt: skip

    def _describe_guest(self, guest: Mapping[str, Any]) -> dict[str, Any]:
        replica, repairs = guest["replica"], guest["repairs"]
        repaired = self._repaired.get(guest["name"])
        return {
            **{key: guest[key] for key in ("name", "state", "vm", "pid", "fault")},
            **{key: replica.get(key) for key in ("reason", "lag", "dissents")},
            "votes": replica.get("state") == "active",
            **{key: repairs[key] for key in ("count", "in_progress", "abandoned", "last_error")},
            "memory": _resident(guest["pid"]),
            "repaired": repaired and {key: repaired.get(key) for key in ("time", "seconds", "why")},
        }

    def _message(self, kind: str, document: Mapping[str, Any]) -> Message:
        data = msgspec.json.encode(document)
        head = f"id: {self._run}-{self._number}\nevent: {kind}\ndata: ".encode()
        return Message(self._number, head + data + b"\n\n")

    # ---- readers

    def _snapshot(self) -> Message:
        """Return the whole state, encoded once for all browsers that connect between samples."""
        if self._full is None:
            events = self._node.events_after(0)[-MOST_EVENTS:]
            events = [event for event in events if event["id"] <= self._last_event]
            document = {
                "state": self._state, "points": list(self._points), "events": events,
                "window": WINDOW,
            }  # fmt: skip
            self._full = self._message("full", document)
        return self._full

    async def follow(self, last_id: str) -> AsyncIterator[bytes]:
        """Yield messages: those after ``last_id`` if they are still known, else the whole state.

        An empty one at least every ``HELD`` seconds lets the caller notice that it has to end.
        """
        run, _, number = last_id.partition("-")
        known = run == self._run and number.isascii() and number.isdigit() and len(number) < 16
        position = int(number) if known else -1
        self.watchers += 1
        self._watched.set()
        try:
            while True:
                news = self._news
                if position != self._number and self._messages:
                    oldest = self._messages[0].number
                    if oldest - 1 <= position < self._number:
                        found = [each for each in self._messages if each.number > position]
                    else:
                        found = [self._snapshot()]
                    position = found[-1].number
                    yield b"".join([each.data for each in found])
                    continue
                try:
                    async with asyncio.timeout(HELD):
                        await news.wait()
                except TimeoutError:
                    yield b""
        finally:
            self.watchers -= 1
            if not self.watchers:
                self._watched.clear()


def _resident(pid: int | None) -> int | None:
    """Return a process's resident memory in bytes; None if it has ended."""
    if pid is None:
        return None
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return None
