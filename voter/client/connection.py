"""The client's end of a native connection: it sends frames and keeps the futures of answers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec

from guests.protocol.wire import MAX_PAYLOAD, Decoder, Frame, FrameKind, WireError, encode
from voter.client.errors import ConnectionFailed, NotExecuted, RequestError, failure_error
from voter.native_protocol import (
    Item,
    OpenedPayload,
    decode_failure,
    decode_response,
    decode_several,
    encode_several,
    split,
)

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
        self._out: list[bytes] = []
        self._requests: list[Item] = []  # to be sent after ``_out``
        self._flushing = False  # _flush runs at the end of this turn of the loop
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
            self.fail(ConnectionFailed("what answers is not a Trivisor voter", error_code="TV0310"))

    def _take(self, frame: Frame) -> None:
        if frame.kind == FrameKind.OPENED:
            if not self.opened.done():
                self.opened.set_result(msgspec.json.decode(frame.payload, type=OpenedPayload))
            return
        if frame.kind == FrameKind.RESPONSES:
            for number, kind, payload in decode_several(frame.payload):
                self._take_answer(number, kind, payload)
        elif frame.kind == FrameKind.SESSION:
            future = self.waiting.pop(frame.seq, None)
            if future is not None and not future.done():
                future.set_result(frame)
        else:
            self._take_answer(frame.seq, frame.kind, frame.payload)

    def _take_answer(self, number: int, kind: int, payload: bytes) -> None:
        future = self.waiting.pop(number, None)
        if kind == FrameKind.RESPONSE:
            if future is not None and not future.done():
                future.set_result(decode_response(payload))
        elif kind == FrameKind.FAILURE:
            error = failure_error(*decode_failure(payload))
            if future is None:  # the connection ends; what is under way may be executed
                refused = isinstance(error, NotExecuted)
                self.fail(ConnectionFailed(f"ended by the voter: {error}") if refused else error)
            elif not future.done():
                future.set_exception(error)
        else:
            raise WireError(f"an answer of kind {kind}")

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
        """Send a frame; return the future of its answer.

        The requests of one turn of the loop are sent together.  Raises ValueError for a payload
        over MAX_PAYLOAD bytes.
        """
        if self.problem is not None:
            raise self.problem
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD}")
        number = self.number = self.number + 1
        future = self.waiting[number] = self.loop.create_future()
        if kind == FrameKind.REQUEST:
            self._requests.append((number, flags, payload))
            self._flush_at_end()
        else:
            self.send(encode(kind, 0, number, payload, flags))
        return future

    def send(self, frame: bytes) -> None:
        """Write a frame after the others of this turn of the loop."""
        self._encode_requests()
        self._out.append(frame)
        self._flush_at_end()

    def _flush_at_end(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _encode_requests(self) -> None:
        """Put the requests of this turn into frames: one alone is a REQUEST."""
        for group in split(self._requests):
            number, flags, payload = group[0]
            if len(group) == 1:
                self._out.append(encode(FrameKind.REQUEST, 0, number, payload, flags))
            else:
                self._out.append(encode(FrameKind.REQUESTS, 0, number, encode_several(group)))
        self._requests.clear()

    def _flush(self) -> None:
        self._flushing = False
        self._encode_requests()
        if self.transport is not None:
            self.transport.write(b"".join(self._out))
        self._out.clear()

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
