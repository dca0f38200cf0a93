"""The native front end: framed requests on TCP or a unix socket, pipelined, answered as they are voted.

A connection opens with OPEN and OPENED; then REQUEST frames, numbered by the client, are answered by RESPONSE or
FAILURE frames with the same number, in any order.  What is not a frame ends the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from functools import partial
from typing import cast

import msgspec

from guests import wire
from guests.wire import FLAG_READ_ONLY, Decoder, Frame, Kind, encode
from voter.core.events import Failure, Release
from voter.frontend.verdict import Opened, encode_failure, encode_response
from voter.runner import Runner, Verdict

__all__ = ["NativeServer"]

WRITE_LIMIT = 8 << 20
"""Bytes of replies that a client may leave unread before its connection is ended."""
REQUEST_LIMIT = wire.MAX_PAYLOAD - (1 << 12)
"""Largest request in bytes; the rest of a frame holds what the order adds (time, history, caller)."""


def _caller_of(transport: asyncio.Transport) -> bytes:
    """Who is at the other end, as the services are told: ``uid:N`` (unix) or ``tcp:HOST``."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return b"uid:%d" % struct.unpack("3i", credentials)[1]
    peer = transport.get_extra_info("peername")
    return f"tcp:{peer[0]}".encode() if peer else b"unknown"


class NativeConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: NativeServer) -> None:
        self._server = server
        self._runner = server.runner
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._caller = b""
        self._opened = False
        self._out: list[bytes] = []
        self._in_flight: dict[int, int] = {}  # client's number: ticket
        self._paused = self._choked = self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._caller = _caller_of(self._transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client is gone; what it asked for stays in the order."""
        self._transport = None
        self._out.clear()
        self._server.connections.discard(self)
        for ticket in self._in_flight.values():
            self._runner.cancel(ticket)
        self._in_flight.clear()

    def eof_received(self) -> bool:
        """asyncio: the client sends no more; it still gets its replies."""
        self._ending = True
        self._end_if_done()
        return True

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        for frame in self._decoder.feed(data):
            if self._transport is None:
                return
            if frame.kind == Kind.REQUEST and self._opened:
                self._request(frame)
            elif frame.kind == Kind.OPEN and not self._opened:
                self._open(frame)
            else:
                self._refuse(frame.seq, "protocol", f"a frame of kind {frame.kind} is not expected here")
                return
        if self._decoder.skipped:
            self._refuse(0, "protocol", "what was sent is not a Trivisor frame (wrong port?)")

    def _open(self, frame: Frame) -> None:
        version = int.from_bytes(frame.payload[:2])
        if version != wire.PROTOCOL:
            text = f"the client speaks protocol {version}, the voter {wire.PROTOCOL}"
            self._refuse(frame.seq, "version", text)
            return
        self._opened = True
        self._send(encode(Kind.OPENED, 0, frame.seq, self._server.greeting))

    def _request(self, frame: Frame) -> None:
        number = frame.seq
        if number in self._in_flight:
            self._refuse(number, "protocol", f"request {number} is still under way")
            return
        if len(frame.payload) > REQUEST_LIMIT:
            text = f"{len(frame.payload)} bytes, the limit is {REQUEST_LIMIT}"
            self._send(encode(Kind.FAILURE, 0, number, encode_failure(Failure.TOO_LARGE, text)))
            return
        self._in_flight[number] = 0
        ticket = self._runner.submit(
            frame.payload,
            self._caller,
            bool(frame.flags & FLAG_READ_ONLY),
            partial(self._answer, number),
        )
        if number in self._in_flight:
            self._in_flight[number] = ticket
        if len(self._in_flight) >= self._server.max_in_flight:
            self._choked = True
            self._set_reading()

    def _answer(self, number: int, verdict: Verdict) -> None:
        self._in_flight.pop(number, None)
        if isinstance(verdict, Release):
            payload = encode_response(
                verdict.seq, verdict.agreed, verdict.dissent, verdict.reply
            )
            if len(payload) > wire.MAX_PAYLOAD:
                text = encode_failure(Failure.TOO_LARGE, "the reply does not fit into a frame")
                self._send(encode(Kind.FAILURE, 0, number, text))
            else:
                self._send(encode(Kind.RESPONSE, 0, number, payload))
        else:
            text = encode_failure(verdict.failure, verdict.detail)
            self._send(encode(Kind.FAILURE, 0, number, text))
        if self._choked and len(self._in_flight) < self._server.max_in_flight // 2:
            self._choked = False
            self._set_reading()

    def _refuse(self, number: int, code: str, text: str) -> None:
        """Say what is wrong and end the connection."""
        self._send(encode(Kind.FAILURE, 0, number, encode_failure(code, text)))
        self.flush()
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _send(self, frame: bytes) -> None:
        if self._transport is not None:
            if not self._out:
                self._runner.flush_soon(self)
            self._out.append(frame)

    def flush(self) -> None:
        """Write what has come together; end a client that never reads."""
        transport = self._transport
        if transport is not None and self._out:
            transport.write(b"".join(self._out))
            if transport.get_write_buffer_size() > WRITE_LIMIT:
                transport.abort()
        self._out.clear()
        self._end_if_done()

    def pause_writing(self) -> None:
        """asyncio: the client does not read: take no more requests from it."""
        self._paused = True
        self._set_reading()

    def resume_writing(self) -> None:
        """asyncio: the client reads again."""
        self._paused = False
        self._set_reading()

    def _set_reading(self) -> None:
        if self._transport is None or self._ending:
            return
        if self._paused or self._choked:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _end_if_done(self) -> None:
        if self._ending and not self._in_flight and not self._out and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()


class NativeServer:
    """Serves native clients on any number of listening sockets."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.max_in_flight = runner.config.max_in_flight
        self.connections: set[NativeConnection] = set()
        self.greeting = msgspec.json.encode(
            Opened(
                protocol=wire.PROTOCOL,
                vote=str(runner.policy),
                replicas=list(runner.names),
                max_request=REQUEST_LIMIT,
                max_in_flight=self.max_in_flight,
            )
        )
        self._servers: list[asyncio.Server] = []

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(lambda: NativeConnection(self), sock=sock)
        else:
            server = await loop.create_server(lambda: NativeConnection(self), sock=sock)
        self._servers.append(server)

    async def stop(self) -> None:
        """Close the listening sockets and all connections."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.abort()
