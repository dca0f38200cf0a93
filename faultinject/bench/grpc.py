"""The least of a gRPC client: unary calls of one method, many at a time on one HTTP/2 connection.

It is here so that etcd is driven at no more cost than the voter's own clients: a call is one
write of a ready-made head and its message, an answer is read without looking into its headers.  A
call without a message in its answer has failed; gRPC's words for it stay unread, but their bytes
are in the error.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Iterator
from typing import cast

__all__ = ["Connection", "Error", "encode_bytes", "fields"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
LARGEST_WINDOW = (1 << 31) - 1
FIRST_WINDOW = (1 << 16) - 1
LARGEST_MESSAGE = 16_000
"""Bytes, so that a message is one frame."""

_HEAD = struct.Struct(">BHBBI")  # length (24 bits), type, flags, stream
_LATER = bytes([0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62])
"""POST, http, and the four fields that the first call left in the server's table."""


class Error(Exception):
    """A call that was not answered, or a connection that cannot be used any more."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def _text(text: str) -> bytes:
    """A string of a header: its size in one byte, no Huffman code."""
    data = text.encode()
    if len(data) > 126:
        raise ValueError(f"{text!r} is too long for a header here")
    return bytes([len(data)]) + data


def encode_bytes(number: int, value: bytes) -> bytes:
    """Return field ``number`` (1 to 15) of a protobuf message, of type bytes."""
    size, more = bytearray(), len(value)
    while more > 127:
        size.append(more & 127 | 128)
        more >>= 7
    size.append(more)
    return bytes([number << 3 | 2]) + size + value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of a protobuf message's fields; whole numbers and bytes only.

    Raises ValueError for other types, IndexError for a message that is cut.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2:
            yield tag >> 3, data[at : at + value]
            at += value
        else:
            raise ValueError(f"protobuf type {tag & 7} is not known here")


class Connection(asyncio.Protocol):
    """One connection for one method.  Make one with ``open``."""

    def __init__(self, authority: str, method: str) -> None:
        self._first = (
            b"\x83\x86\x44" + _text(method) + b"\x41" + _text(authority)
            + b"\x5f" + _text("application/grpc") + b"\x40" + _text("te") + _text("trailers")
        )  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._stream = -1
        self._calls: dict[int, tuple[asyncio.Future[bytes], list[bytes]]] = {}
        self._window = FIRST_WINDOW
        self._held: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()  # the window is used up
        self._out: list[bytes] = []
        self._problem: Error | None = None

    @classmethod
    async def open(cls, host: str, port: int, method: str) -> Connection:
        """Connect.  Raises OSError."""
        authority = f"{host}:{port}"
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(authority, method), host, port)
        return connection

    def call(self, message: bytes) -> asyncio.Future[bytes]:
        """Make one call; the future gives the answer's message.  Raises Error, ValueError."""
        if self._problem is not None:
            raise self._problem
        if len(message) > LARGEST_MESSAGE:
            raise ValueError(f"a message of {len(message)} bytes, {LARGEST_MESSAGE} at most")
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._held.append((b"\0" + len(message).to_bytes(4) + message, future))
        self._send_held()
        return future

    def close(self) -> None:
        """End the connection, and all calls on it."""
        self._fail(Error("the client was closed"))

    # ------------------------------------------------------------- sending

    def _send_held(self) -> None:
        while self._held and len(self._held[0][0]) <= self._window:
            data, future = self._held.popleft()
            self._window -= len(data)
            self._stream = stream = self._stream + 2
            block = _LATER if stream > 1 else self._first
            self._calls[stream] = future, []
            self._write(
                _frame(HEADERS, END_HEADERS, stream, block) + _frame(DATA, END_STREAM, stream, data)
            )

    def _write(self, data: bytes) -> None:
        """Write with the others of this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # ----------------------------------------------------------- receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)
        more = (LARGEST_WINDOW - FIRST_WINDOW).to_bytes(4)  # never to be filled up again
        self._transport.write(PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(WINDOW, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is over."""
        self._fail(Error(f"the server closed the connection ({exc})"))

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the server."""
        data = self._buffer + data if self._buffer else data
        at, size = 0, len(data)
        while size - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            end = at + 9 + (high << 16 | low)
            if end > size:
                break
            self._take(kind, flags, stream, data[at + 9 : end])
            at = end
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (DATA, HEADERS):
            self._take_answer(kind, flags, stream, payload)
        elif kind == SETTINGS and not flags & ACK:
            self._write(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._write(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW and stream == 0:
            self._window += int.from_bytes(payload)
            self._send_held()
        elif kind == GOAWAY:
            self._fail(Error(f"the server goes away: {payload[8:]!r}"))
        elif kind == RESET:
            self._end(stream, payload)

    def _take_answer(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if flags & PADDED and kind == DATA:
            self._fail(Error("padded data are not known here"))
        elif kind == DATA and stream in self._calls:
            self._calls[stream][1].append(payload)
        if flags & END_STREAM:
            self._end(stream, payload)

    def _end(self, stream: int, payload: bytes) -> None:
        future, parts = self._calls.pop(stream, (None, []))
        if future is None or future.done():
            return
        data = b"".join(parts)
        if len(data) < 5 or data[0] or int.from_bytes(data[1:5]) != len(data) - 5:
            future.set_exception(Error(f"a call failed: {payload!r}"))
        else:
            future.set_result(data[5:])

    def _fail(self, error: Error) -> None:
        self._problem = self._problem or error
        futures = [future for future, _ in self._calls.values()]
        futures += [future for _, future in self._held]
        self._calls.clear()
        self._held.clear()
        for future in futures:
            if not future.done():
                future.set_exception(self._problem)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
