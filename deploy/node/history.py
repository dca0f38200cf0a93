"""What has happened to a node, the newest last, in bounded memory."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["EventHistory"]

KEPT = 1000


class EventHistory:
    """The last events of a node, numbered from 1: the voter's, and what the supervisor did.

    An event is {"id", "time" (seconds since 1970), "what", "guest" (or None), ...}.
    """

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._last = 0
        self._news = asyncio.Event()

    def add(self, what: str, guest: str | None = None, **details: Any) -> None:
        """Note that something happened now."""
        self._last += 1
        self._events.append(
            {"id": self._last, "time": time.time(), "what": what, "guest": guest, **details}
        )
        news, self._news = self._news, asyncio.Event()
        news.set()

    def after(self, since: int) -> list[dict[str, Any]]:
        """Return the events after number ``since``."""
        return [event for event in self._events if event["id"] > since]

    async def follow(self, since: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the events after number ``since``, and those to come, without end."""
        while True:
            news = self._news
            for event in self.after(since):
                since = event["id"]
                yield event
            await news.wait()
