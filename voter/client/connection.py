"""The client's end of a native connection: it sends frames and keeps the futures of answers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec

from guests.protocol.wire import Decoder, Frame, FrameKind, encode
from voter.client.errors import ConnectionFailed, NotExecuted, RequestError, failure_error
from voter.native_protocol import OpenedPayload, decode_failure, decode_response

__all__ = ["SILENCE", "ClientConnection"]

SILENCE = 15.0
"""Seconds without any bytes, while an answer is due, after which the connection is closed.

The voter takes less time to answer that a request is not settled.
"""


class ClientConnection(asyncio.Protocol):
    """One connection; once it has a ``problem`` it is closed for good."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.decoder = Decoder()
        self.number = 0
        self.session = b""  # the session selected on this connection
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[OpenedPayload] = self.loop.create_future()
        self.out: list[bytes] = []
        self.problem: RequestError | None = None
        self.room = asyncio.Event()
        self.room.set()
        self._heard = 0  # calls of data_received
        self._awaited = 0  # answers that are due
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the voter."""
        self._heard += 1
        for frame in self.decoder.feed(data):
            self._take(frame)
        if self.decoder.skipped:
            self.fail(ConnectionFailed("what answers is not a Trivisor voter"))

    def _take(self, frame: Frame) -> None:
        if frame.kind == FrameKind.OPENED:
            if not self.opened.done():
                self.opened.set_result(msgspec.json.decode(frame.payload, type=OpenedPayload))
            return
        future = self.waiting.pop(frame.seq, None)
        if frame.kind == FrameKind.FAILURE:
            error = failure_error(*decode_failure(frame.payload))
            if future is None:  # the connection ends; what is under way may be executed
                refused = isinstance(error, NotExecuted)
                self.fail(ConnectionFailed(f"ended by the voter: {error}") if refused else error)
            elif not future.done():
                future.set_exception(error)
        elif future is not None and not future.done():
            answer = decode_response(frame.payload) if frame.kind == FrameKind.RESPONSE else frame
            future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self.transport = None
        self.fail(ConnectionFailed(f"connection to the voter lost{f': {exc}' if exc else ''}"))

    def pause_writing(self) -> None:
        """asyncio: the voter does not read as fast as the client writes."""
        self.room.clear()

    def resume_writing(self) -> None:
        """asyncio: the voter has read enough."""
        self.room.set()

    def fail(self, error: RequestError) -> None:
        """Close the connection, and fail everything that waits with ``error``."""
        self.problem = self.problem or error
        self.room.set()
        futures: list[asyncio.Future[Any]] = [*self.waiting.values(), self.opened]
        for future in futures:
            if not future.done():
                future.set_exception(self.problem)
                future.exception()  # marks it as retrieved: there may be no waiter
        self.waiting.clear()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self.transport is not None:
            self.transport.abort()

    def ask(self, kind: int, payload: bytes, flags: int = 0) -> asyncio.Future[Any]:
        """Send a frame; return the future of its answer."""
        if self.problem is not None:
            raise self.problem
        self.number += 1
        future = self.waiting[self.number] = self.loop.create_future()
        self.send(encode(kind, 0, self.number, payload, flags))
        return future

    def send(self, frame: bytes) -> None:
        """Write a frame with the others of this turn of the loop."""
        if not self.out:
            self.loop.call_soon(self._flush)
        self.out.append(frame)

    def _flush(self) -> None:
        if self.transport is not None:
            self.transport.write(b"".join(self.out))
        self.out.clear()

    async def answer(self, future: asyncio.Future[Any]) -> Any:
        """Wait for an answer while anything arrives.  Raises ConnectionFailed after SILENCE."""
        self._awaited += 1
        if self._watch is None:
            self._watch = self.loop.call_later(SILENCE, self._check_silence, self._heard)
        try:
            return await future
        finally:
            self._awaited -= 1

    def _check_silence(self, heard: int) -> None:
        """Check for silence: one timer for all answers."""
        self._watch = None
        if self._awaited and self._heard == heard:
            self.fail(ConnectionFailed(f"the voter said nothing for {SILENCE:g} s"))
        elif self._awaited:
            self._watch = self.loop.call_later(SILENCE, self._check_silence, self._heard)
