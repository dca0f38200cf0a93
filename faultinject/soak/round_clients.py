"""The clients of a round: one stores the marked value, one reads it repeatedly, one makes writes.

They make their requests through the soak's load, so that the oracle checks each reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from faultinject.soak.load import Load
from voter.client import Client

__all__ = ["RoundClients"]

READ_PERIOD = 0.025
"""Seconds between two reads of the value."""
IN_FLIGHT = 3
"""Writes that the writer has in progress at a time."""
WRITE_PERIOD = 0.02
"""Seconds between two writes.  A guest without idle time delays its digest for seconds, because
the process that hashes the state has the lowest priority.
"""
WRITE_KEYS = 8
"""Number of keys that the writer writes to."""
LEAST_BODY, MOST_BODY = 2 << 10, 16 << 10
"""Bytes of its values.  Between two markers the log must outgrow the state, or the voter fetches
no checkpoint.  So a larger state needs larger writes.
"""
_WRITES_PER_MARKER = 250
"""Least number of writes between two markers that are the writer's."""


class RoundClients:
    """The clients that store, read and surround the values to be corrupted."""

    def __init__(self, load: Load, state: int) -> None:
        """``state``: bytes of the service's state."""
        self._load = load
        self._body = bytes(min(MOST_BODY, max(LEAST_BODY, 2 * state // _WRITES_PER_MARKER)))
        self._clients: list[Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._writes = 0
        self.values: dict[str, bytes] = {}
        """The right value of each key."""
        self.reading = False
        """Whether a client reads a value repeatedly."""

    async def __aenter__(self) -> Self:
        for _ in range(3):
            self._clients.append(await self._load.connect())
        for client in self._clients:  # a first write opens the session, which takes a place
            await self._load.make(client, "writer", "push", "PUT", "/kv/push-0", self._body)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()

    # A cancelled request has an unknown outcome, so each task ends between two requests.

    def start_reading(self, key: str) -> None:
        """Read this key repeatedly until ``stop``."""
        self.reading = True
        self._tasks.append(asyncio.create_task(self._keep_reading(key), name=f"read {key}"))

    def start_writing(self) -> None:
        """Make writes, several at a time, until ``stop``."""
        for _ in range(IN_FLIGHT):
            self._tasks.append(asyncio.create_task(self._keep_writing(), name="write"))

    async def stop(self) -> None:
        """End reading and writing after the requests in progress.  Raises a failed task's error."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)
        self._stopping.clear()
        self.reading = False

    async def _keep_reading(self, key: str) -> None:
        while not self._stopping.is_set():
            await self._read(self._clients[1], key)
            await self._pause(READ_PERIOD)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _keep_writing(self) -> None:
        while not self._stopping.is_set():
            self._writes += 1
            target = f"/kv/push-{self._writes % WRITE_KEYS}"
            body = b"%d " % self._writes + self._body
            await self._load.make(self._clients[2], "writer", "push", "PUT", target, body)
            await self._pause(WRITE_PERIOD)

    async def store(self, key: str, value: bytes) -> bool:
        """Store a value through the vote; return whether that was acknowledged."""
        reply = await self._load.make(
            self._clients[0], "storer", "hold", "PUT", f"/kv/{key}", value
        )
        self.values[key] = value
        return reply is not None and 200 <= reply.status < 300

    async def read_back(self) -> bool:
        """Read every key through the vote; return whether each has the stored value."""
        right = [await self._read(self._clients[0], key) for key in self.values]
        return all(right)

    async def _read(self, client: Client, key: str) -> bool:
        reply = await self._load.make(client, "reader", "read-held", "GET", f"/kv/{key}")
        return reply is not None and reply.status == 200 and reply.body == self.values[key]
