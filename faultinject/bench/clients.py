"""Clients of what is compared: a guest's bare link, and plain HTTP servers.

Both are as cheap as Python allows, so that a target's own cost dominates what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

from guests.protocol import wire
from guests.protocol.wire import Decoder, FrameKind, encode, encode_order
from voter.address import Address, connect

__all__ = ["BareLink", "HttpPool"]


class BareLink(asyncio.Protocol):
    """A link to one agent without a voter: the baseline (a).  Make one with ``open``."""

    EPOCH = 0xBA5E

    def __init__(self, requests: Iterator[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self._requests = requests
        self._decoder = Decoder()
        self._welcome: asyncio.Future[wire.Welcome] = loop.create_future()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._out: list[bytes] = []
        self._seq = 0
        self._history = bytes(8)
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls, address: Address, requests: Iterator[bytes], *, deadline: float = 10.0
    ) -> BareLink:
        """Connect and shake hands, again each second until the agent answers.

        Raises TimeoutError after ``deadline`` seconds.
        """
        hello = encode(FrameKind.HELLO, cls.EPOCH, 0, wire.PROTOCOL.to_bytes(2) + b"\0")
        async with asyncio.timeout(deadline):
            while True:
                link = cls(requests)
                await connect(address, lambda link=link: link)  # type: ignore[misc]
                cast(asyncio.Transport, link._transport).write(hello)
                try:
                    async with asyncio.timeout(1.0):
                        welcome = await asyncio.shield(link._welcome)
                except TimeoutError:
                    link.close()
                    continue
                link._seq, link._history = welcome.last_seq, welcome.history
                return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the agent."""
        for frame in self._decoder.feed(data):
            if frame.epoch != self.EPOCH:
                continue
            if frame.kind == FrameKind.WELCOME and not self._welcome.done():
                self._welcome.set_result(wire.decode_welcome(frame.payload))
            elif frame.kind == FrameKind.REPLY:
                self._waiting.pop(frame.seq).set_result(frame.payload)

    def start(self) -> asyncio.Future[bytes]:
        """Send the next order; the future gives its reply."""
        self._seq = seq = self._seq + 1
        history = seq.to_bytes(8)
        payload = encode_order(0, self._history, history, b"bench", next(self._requests))
        self._history = history
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(encode(FrameKind.ORDER, self.EPOCH, seq, payload))
        future = self._waiting[seq] = asyncio.get_running_loop().create_future()
        return future

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()


class _HttpConnection(asyncio.Protocol):
    """A keep-alive HTTP/1.1 connection with one request at a time.

    The server must state the length of every reply.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._future: asyncio.Future[bytes] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(ConnectionError("the server closed the connection"))

    def start(self, request: bytes) -> asyncio.Future[bytes]:
        self._future = asyncio.get_running_loop().create_future()
        if self.transport is not None:
            self.transport.write(request)
        return self._future

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        lower = buffer[:head].lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(buffer) < head + 4 + length or self._future is None:
            return
        self._buffer = buffer[head + 4 + length :]
        future, self._future = self._future, None
        if buffer[9:10] == b"2":
            future.set_result(buffer[: head + 4 + length])
        else:
            future.set_exception(RuntimeError(f"HTTP reply {buffer[:60]!r}"))


class HttpPool:
    """Keep-alive connections to one HTTP server.

    It allows as many requests in flight as it has connections.
    """

    def __init__(self, connections: list[_HttpConnection], requests: Iterator[bytes]) -> None:
        self._all = connections
        self._free = list(connections)
        self._requests = requests

    @classmethod
    async def open(cls, port: int, size: int, requests: Iterator[bytes]) -> HttpPool:
        """Open ``size`` connections to a port of this host.  Raises OSError."""
        loop = asyncio.get_running_loop()
        connections = []
        for _ in range(size):
            _, connection = await loop.create_connection(_HttpConnection, "127.0.0.1", port)
            connections.append(connection)
        return cls(connections, requests)

    def start(self) -> asyncio.Future[bytes]:
        """Make the next request on a free connection."""
        connection = self._free.pop()
        future = connection.start(next(self._requests))
        future.add_done_callback(lambda _: self._free.append(connection))
        return future

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            if connection.transport is not None:
                connection.transport.abort()
