"""The client library: requests through the vote, over a native connection.

::

    async with await Client.connect("unix:/path/native.sock") as client:
        answer = await client.request("PUT", "/kv/colour", b"blue")
        answer.status, answer.body, answer.vote.seq

Requests may be made concurrently; they are pipelined on one connection.  Errors are those of
``voter.errors``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import msgspec

from guests import wire
from guests.message import MessageError, Reply, encode_request
from guests.wire import FLAG_READ_ONLY, Decoder, Frame, Kind, encode
from voter.address import split_host_port
from voter.errors import ConnectionFailed, RequestError, TooLarge, failure_error
from voter.frontend.verdict import Opened, Vote, decode_failure, decode_response

__all__ = ["READ_ONLY_METHODS", "Answer", "Client"]

READ_ONLY_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that are safe in HTTP's sense: ordered and voted like all others, but not kept for
recovery.
"""


class Answer(NamedTuple):
    """A released reply and how it was voted."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    vote: Vote


class _Protocol(asyncio.Protocol):
    """The client's end of a native connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.decoder = Decoder()
        self.waiting: dict[int, asyncio.Future[tuple[Vote, bytes]]] = {}
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self.out: list[bytes] = []
        self.problem: RequestError | None = None
        self.room = asyncio.Event()
        self.room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            self._take(frame)
        if self.decoder.skipped:
            self.fail(ConnectionFailed("what answers is not a Trivisor voter"))

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.RESPONSE:
            future = self.waiting.pop(frame.seq, None)
            if future is not None and not future.done():
                future.set_result(decode_response(frame.payload))
        elif frame.kind == Kind.FAILURE:
            error = failure_error(*decode_failure(frame.payload))
            future = self.waiting.pop(frame.seq, None)
            if future is None:
                self.fail(error)
            elif not future.done():
                future.set_exception(error)
        elif frame.kind == Kind.OPENED and not self.opened.done():
            self.opened.set_result(msgspec.json.decode(frame.payload, type=Opened))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.fail(ConnectionFailed(f"connection to the voter lost{f': {exc}' if exc else ''}"))

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def fail(self, error: RequestError) -> None:
        """End everything that waits with ``error``."""
        self.problem = self.problem or error
        self.room.set()
        futures: list[asyncio.Future[Any]] = [*self.waiting.values(), self.opened]
        for future in futures:
            if not future.done():
                future.set_exception(self.problem)
                future.exception()  # whoever waits for it gets it too; nobody need
        self.waiting.clear()
        if self.transport is not None:
            self.transport.abort()

    def send(self, frame: bytes) -> None:
        """Write with the others of this turn of the loop."""
        if not self.out:
            asyncio.get_running_loop().call_soon(self._flush)
        self.out.append(frame)

    def _flush(self) -> None:
        if self.transport is not None:
            self.transport.write(b"".join(self.out))
        self.out.clear()


class Client:
    """A native client of a voter.  Make one with ``connect``."""

    def __init__(self, protocol: _Protocol, opened: Opened) -> None:
        self._protocol = protocol
        self._number = 0
        self.server = opened
        """What the voter said of itself: vote policy, replica names, limits."""

    @classmethod
    async def connect(cls, address: str, *, timeout: float = 5.0) -> Client:
        """Connect to ``unix:PATH`` or ``tcp:HOST:PORT``.  Raises ConnectionFailed, ValueError."""
        loop = asyncio.get_running_loop()
        kind, _, rest = address.partition(":")
        try:
            async with asyncio.timeout(timeout):
                protocol: _Protocol
                if kind == "unix":
                    _, protocol = await loop.create_unix_connection(_Protocol, rest)
                elif kind == "tcp":
                    host, port = split_host_port(rest)
                    transport, protocol = await loop.create_connection(_Protocol, host, port)
                    sock = transport.get_extra_info("socket")
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                else:
                    raise ValueError(f"address {address!r}: write unix:PATH or tcp:HOST:PORT")
                protocol.send(encode(Kind.OPEN, 0, 0, wire.PROTOCOL.to_bytes(2)))
                return cls(protocol, await protocol.opened)
        except (OSError, TimeoutError) as error:
            raise ConnectionFailed(f"no voter at {address}: {str(error) or 'timed out'}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        self._protocol.fail(ConnectionFailed("the client was closed"))

    def start(
        self, request: bytes, *, read_only: bool = False
    ) -> asyncio.Future[tuple[Vote, bytes]]:
        """Send canonical request bytes; the future gives the vote and the reply's bytes.

        The cheapest way in; many may be under way.  Raises ConnectionFailed, TooLarge at once.
        """
        protocol = self._protocol
        if protocol.problem is not None:
            raise protocol.problem
        if len(request) > self.server.max_request:
            raise TooLarge(f"{len(request)} bytes, the limit is {self.server.max_request}")
        self._number += 1
        future = protocol.waiting[self._number] = asyncio.get_running_loop().create_future()
        flags = FLAG_READ_ONLY if read_only else 0
        protocol.send(encode(Kind.REQUEST, 0, self._number, request, flags))
        return future

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        timeout: float | None = 30.0,
    ) -> Answer:
        """Make one HTTP-style request through the vote.

        ``timeout`` in seconds, after which TimeoutError is raised.  Raises the errors of
        ``voter.errors``.
        """
        method = method.upper()
        data = encode_request(method, target, headers, body)
        await self._protocol.room.wait()
        async with asyncio.timeout(timeout):
            vote, raw = await self.start(data, read_only=method in READ_ONLY_METHODS)
        try:
            reply = Reply.decode(raw)
        except MessageError as error:
            raise RequestError(f"the voted reply is not HTTP: {error}") from error
        return Answer(reply.status, list(reply.headers), reply.body, vote)

    def dissenters(self, vote: Vote) -> list[str]:
        """Names of the replicas that said something else than the released reply."""
        return [n for i, n in enumerate(self.server.replicas) if vote.dissent >> i & 1]
