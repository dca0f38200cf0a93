"""The clients of a round: one stores the value, one reads it again and again, one makes writes.

All of them go through the soak's load, so the oracle checks each of their replies.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from faultinject.soak.load import Load
from voter.client import Client

__all__ = ["HeldValues"]

READ_PERIOD = 0.025
"""Seconds between two reads of the value."""
IN_FLIGHT = 3
"""Writes that the writer has under way at a time."""
PUSH_PERIOD = 0.02
"""Seconds between two writes of each.  A guest without idle time delays its digest for seconds,
because the process that hashes the state has the lowest priority.
"""
PUSH_KEYS = 8
"""Keys that the writer writes to."""
LEAST_BODY, MOST_BODY = 2 << 10, 16 << 10
"""Bytes of its values.  Between two markers the log must outgrow the state, or the voter fetches
no checkpoint; a larger state needs larger writes.
"""
_BODY_SHARE = 250
"""So many of the writes between two markers are at least the writer's."""


class HeldValues:
    """Stores, reads and surrounds the values that are corrupted."""

    def __init__(self, load: Load, state: int) -> None:
        """``state``: bytes that the service holds."""
        self._load = load
        self._body = bytes(min(MOST_BODY, max(LEAST_BODY, 2 * state // _BODY_SHARE)))
        self._clients: list[Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._pushes = 0
        self.values: dict[str, bytes] = {}
        """What each key holds."""
        self.reading = False
        """Whether a client reads a held value again and again."""
        self.mismatches: list[str] = []
        """Reads that gave another value, in words."""

    async def __aenter__(self) -> Self:
        for _ in range(3):
            self._clients.append(await self._load.connect())
        for client in self._clients:  # a first write opens the session, which takes a place
            await self._load.make(client, "pusher", "push", "PUT", "/kv/push-0", self._body)
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

    # A request that is cancelled has an unknown outcome, so a task ends between two requests.

    def read_on(self, key: str) -> None:
        """Have a client read this key until ``stop``."""
        self.reading = True
        self._tasks.append(asyncio.create_task(self._read_on(key), name=f"read {key}"))

    def push(self) -> None:
        """Have a client make writes, several at a time, until ``stop``."""
        for _ in range(IN_FLIGHT):
            self._tasks.append(asyncio.create_task(self._push(), name="push"))

    async def stop(self) -> None:
        """End reading and writing after the requests under way.  Raises what a task failed with."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)
        self._stopping.clear()
        self.reading = False

    async def _read_on(self, key: str) -> None:
        while not self._stopping.is_set():
            await self._read(self._clients[1], key)
            await self._pause(READ_PERIOD)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _push(self) -> None:
        while not self._stopping.is_set():
            self._pushes += 1
            target = f"/kv/push-{self._pushes % PUSH_KEYS}"
            body = b"%d " % self._pushes + self._body
            await self._load.make(self._clients[2], "pusher", "push", "PUT", target, body)
            await self._pause(PUSH_PERIOD)

    async def store(self, key: str, value: bytes) -> bool:
        """Store a value through the vote; return whether that was acknowledged."""
        reply = await self._load.make(
            self._clients[0], "holder", "hold", "PUT", f"/kv/{key}", value
        )
        self.values[key] = value
        return reply is not None and 200 <= reply.status < 300

    async def read_back(self) -> bool:
        """Read every key through the vote; return whether each holds what was stored."""
        right = [await self._read(self._clients[0], key) for key in self.values]
        return all(right)

    async def _read(self, client: Client, key: str) -> bool:
        reply = await self._load.make(client, "reader", "read-held", "GET", f"/kv/{key}")
        right = reply is not None and reply.status == 200 and reply.body == self.values[key]
        if not right:
            shown = "no reply" if reply is None else f"{reply.status} {reply.body.hex()[:160]}"
            self.mismatches.append(f"{key}: {shown}, stored {self.values[key].hex()}")
        return right
