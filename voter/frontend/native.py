"""The native front end: framed requests on TCP or a unix socket, pipelined, answered as voted.

A connection opens with OPEN and OPENED; then REQUEST frames, numbered by the client, are answered
by RESPONSE or FAILURE frames with the same number, in any order.  What is not a frame ends the
connection, after a FAILURE that says so.

To be executed once however often it is sent, a request (FLAG_ONCE) has a number in a session.
SESSION without payload opens a session, and is answered by a SESSION that names it; SESSION with a
name says that the requests that follow belong to it, on whatever connection.  The one just opened
counts as named if no other is.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import StrEnum
from functools import partial
from hashlib import blake2b
from typing import cast

import msgspec

from guests.protocol import wire
from guests.protocol.wire import FLAG_ONCE, FLAG_READ_ONLY, Decoder, Frame, FrameKind, encode
from voter.core.dedup import session_scope
from voter.core.events import Failure, Once, Release, SessionOpened
from voter.frontend.bounds import HELD_LIMIT, LINGER, STEP, UNSENT_LIMIT, Bounds
from voter.native_protocol import (
    NUMBERS_SIZE,
    SESSION_SIZE,
    OpenedPayload,
    decode_numbers,
    encode_failure,
    encode_response,
)
from voter.runner import Opening, Runner, Verdict
from voter.sockets import BACKLOG

__all__ = ["NativeServer", "Phase"]

WRITE_LIMIT = 64 << 20
"""Bytes of replies that a client may have unread: more, and its connection is ended."""
REQUEST_LIMIT = wire.MAX_PAYLOAD - (1 << 12)
"""Largest request in bytes; the rest of a frame is for what the order adds (time, history...)."""


def _caller_of(transport: asyncio.Transport) -> bytes:
    """Who is at the other end, as the services are told: ``uid:N`` (unix) or ``tcp:HOST``."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return b"uid:%d" % struct.unpack("3i", credentials)[1]
    peer = transport.get_extra_info("peername")
    return f"tcp:{peer[0]}".encode() if peer else b"unknown"


class Phase(StrEnum):
    """What a connection is waited for; it may be in several."""

    OPENING = "opening"  # its OPEN (timing.header)
    FRAME = "frame"  # the rest of a frame that has begun (timing.body)
    DRAIN = "drain"  # to take STEP of its replies (timing.body)
    LINGER = "linger"  # to close, after it was refused (LINGER)


class NativeConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: NativeServer) -> None:
        self._server = server
        self._runner = server.runner
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._caller = b""
        self._opened = False
        self._session = b""
        self._opening = False  # a session
        self._out: list[bytes] = []
        self._in_flight: dict[int, int] = {}  # client's number: ticket
        self._paused = False  # the client does not take its replies
        self._choked = False  # too many requests are under way
        self._ending = False  # the client sends no more
        self._refused = False  # what it sends is thrown away
        self._held = 0  # bytes of ours in bounds.held
        self._unsent = 0  # bytes of ours in bounds.unsent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._caller = _caller_of(self._transport)
        self._server.connections.add(self)
        self._server.bounds.enter(self, Phase.OPENING)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client is gone; what it asked for stays in the order."""
        self._transport = None
        self._out.clear()
        self._server.connections.discard(self)
        for phase in Phase:
            self._server.bounds.leave(self, phase)
        self._count_held(0)
        self._count_unsent(0)
        for ticket in self._in_flight.values():
            self._runner.cancel(ticket)
        self._in_flight.clear()

    def eof_received(self) -> bool:
        """asyncio: the client sends no more; it still gets its replies."""
        if self._refused:
            return False
        self._ending = True
        self._server.bounds.leave(self, Phase.FRAME)
        self._end_if_done()
        return True

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        if self._refused:
            return
        frames = self._decoder.feed(data)
        for frame in frames:
            if frame.kind == FrameKind.REQUEST and self._opened:
                self._request(frame)
            elif frame.kind == FrameKind.SESSION and self._opened:
                self._name_session(frame)
            elif frame.kind == FrameKind.OPEN and not self._opened:
                self._open(frame)
            else:
                text = f"a frame of kind {frame.kind} is not expected here"
                self._refuse(frame.seq, "protocol", text)
            if self._over():
                return
        if self._decoder.skipped:
            self._refuse(0, "protocol", "what was sent is not a Trivisor frame (wrong port?)")
        else:
            self._watch_frame(new=bool(frames))

    def _over(self) -> bool:
        return self._refused or self._transport is None

    def _watch_frame(self, *, new: bool) -> None:
        """A frame that has begun must be complete in time, and must not be one too many."""
        held, bounds = self._decoder.held, self._server.bounds
        if new or not held:
            bounds.leave(self, Phase.FRAME)
        self._count_held(held)
        if held:
            if bounds.held > HELD_LIMIT:
                self._refuse(0, Failure.OVERLOAD, "too many requests are half sent")
            elif not (self._paused or self._choked):
                bounds.enter(self, Phase.FRAME)

    def _count_held(self, held: int) -> None:
        self._server.bounds.held += held - self._held
        self._held = held

    def _count_unsent(self, unsent: int) -> None:
        self._server.bounds.unsent += unsent - self._unsent
        self._unsent = unsent

    def _open(self, frame: Frame) -> None:
        version = int.from_bytes(frame.payload[:2])
        if version != wire.PROTOCOL:
            text = f"the client speaks protocol {version}, the voter {wire.PROTOCOL}"
            self._refuse(frame.seq, "version", text)
            return
        self._opened = True
        self._server.bounds.leave(self, Phase.OPENING)
        self._send(encode(FrameKind.OPENED, 0, frame.seq, self._server.greeting))

    def _name_session(self, frame: Frame) -> None:
        """Go on with a session, or open one; whether there is such a one shows at its requests."""
        if not frame.payload and not self._opening:
            self._opening = True
            self._runner.open_session(self._caller, partial(self._tell_session, frame.seq))
        elif len(frame.payload) == SESSION_SIZE:
            self._session = frame.payload
            self._send(encode(FrameKind.SESSION, 0, frame.seq, frame.payload))
        else:
            text = f"a session has {SESSION_SIZE} bytes, and is opened one at a time"
            self._refuse(frame.seq, "protocol", text)

    def _tell_session(self, number: int, opening: Opening) -> None:
        self._opening = False
        if isinstance(opening, SessionOpened):
            self._session = self._session or opening.session
            self._send(encode(FrameKind.SESSION, 0, number, opening.session))
        else:
            self._fail(number, opening.failure, opening.detail)

    def _request(self, frame: Frame) -> None:
        number, flags, request, once = frame.seq, frame.flags, frame.payload, None
        if number in self._in_flight:
            self._refuse(number, "protocol", f"request {number} is still under way")
            return
        if flags & FLAG_ONCE:
            if not self._session or len(request) < NUMBERS_SIZE:
                self._refuse(number, "protocol", "a request to be executed once names its session")
                return
            done, key = decode_numbers(request)
            request = request[NUMBERS_SIZE:]
            if not flags & FLAG_READ_ONLY:
                fingerprint = blake2b(request, digest_size=16).digest()
                once = Once(session_scope(self._session), key.to_bytes(8), fingerprint, done)
        if len(request) > REQUEST_LIMIT:
            text = f"{len(request)} bytes, the limit is {REQUEST_LIMIT}"
            self._fail(number, Failure.TOO_LARGE, text)
            return
        self._in_flight[number] = 0
        ticket = self._runner.submit(
            request,
            self._caller,
            bool(flags & FLAG_READ_ONLY),
            partial(self._answer, number),
            once,
        )
        if number in self._in_flight:
            self._in_flight[number] = ticket
        if len(self._in_flight) >= self._server.max_in_flight:
            self._choked = True
            self._set_reading()

    def _fail(self, number: int, code: str, text: str) -> None:
        self._send(encode(FrameKind.FAILURE, 0, number, encode_failure(code, text)))

    def _answer(self, number: int, verdict: Verdict) -> None:
        self._in_flight.pop(number, None)
        if isinstance(verdict, Release):
            payload = encode_response(verdict.seq, verdict.agreed, verdict.dissent, verdict.reply)
            if len(payload) > wire.MAX_PAYLOAD:
                self._fail(number, Failure.TOO_LARGE, "the reply does not fit into a frame")
            else:
                self._send(encode(FrameKind.RESPONSE, 0, number, payload))
        else:
            self._fail(number, verdict.failure, verdict.detail)
        if self._choked and len(self._in_flight) < self._server.max_in_flight // 2:
            self._choked = False
            self._set_reading()

    def _refuse(self, number: int, code: str, text: str) -> None:
        """Say what is wrong and end the connection, in a way that lets the client read it."""
        self._fail(number, code, text)
        self.flush()
        self._refused = True
        for phase in Phase:
            self._server.bounds.leave(self, phase)
        self._decoder.clear()
        self._count_held(0)
        if self._transport is not None:
            # Closing now, with bytes of the client unread, could take the words from it.
            self._server.bounds.enter(self, Phase.LINGER)
            self._transport.write_eof()
            self._transport.resume_reading()

    def _send(self, frame: bytes) -> None:
        if self._transport is not None:
            if not self._out:
                self._runner.flush_soon(self)
            self._out.append(frame)

    def flush(self) -> None:
        """Write what has come together; end a client that never reads."""
        transport = self._transport
        if transport is not None and self._out and not self._refused:
            transport.write(b"".join(self._out))
            if self._paused:
                self._count_unsent(transport.get_write_buffer_size())
                if self._unsent > WRITE_LIMIT or self._server.bounds.unsent > UNSENT_LIMIT:
                    transport.abort()
        self._out.clear()
        self._end_if_done()

    def pause_writing(self) -> None:
        """asyncio: the client does not read: take no more requests from it."""
        self._paused = True
        self._server.bounds.enter(self, Phase.DRAIN)
        self._set_reading()

    def resume_writing(self) -> None:
        """asyncio: the client reads again."""
        self._paused = False
        self._server.bounds.leave(self, Phase.DRAIN)
        self._count_unsent(0)
        self._set_reading()

    def _set_reading(self) -> None:
        if self._transport is None or self._ending or self._refused:
            return
        if self._paused or self._choked:
            self._server.bounds.leave(self, Phase.FRAME)  # it is not its fault now
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            self._watch_frame(new=False)

    def _end_if_done(self) -> None:
        busy = self._in_flight or self._opening or self._out
        if self._ending and not busy and self._transport is not None:
            self._transport.close()

    def expire(self, phase: Phase) -> None:
        """The limit of a phase is over."""
        transport = self._transport
        if transport is None:
            return
        if phase is Phase.OPENING:
            self._refuse(0, "protocol", "no OPEN came in time")
        elif phase is Phase.FRAME:
            self._refuse(0, "protocol", "a frame was begun and not ended in time")
        elif phase is Phase.DRAIN and transport.get_write_buffer_size() <= self._unsent - STEP:
            self._count_unsent(transport.get_write_buffer_size())
            self._server.bounds.enter(self, Phase.DRAIN)
        else:
            transport.abort()

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
            OpenedPayload(
                protocol=wire.PROTOCOL,
                vote=str(runner.policy),
                replicas=list(runner.names),
                max_request=REQUEST_LIMIT,
                max_in_flight=self.max_in_flight,
                session_window=runner.config.limits.session_window,
            )
        )
        timing = runner.config.timing
        limits = {
            Phase.OPENING: timing.header,
            Phase.FRAME: timing.body,
            Phase.DRAIN: timing.body,
            Phase.LINGER: LINGER,
        }
        self.bounds: Bounds[NativeConnection, Phase] = Bounds(limits, NativeConnection.expire)
        self._servers: list[asyncio.Server] = []

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(lambda: NativeConnection(self), sock=sock)
        else:
            server = await loop.create_server(lambda: NativeConnection(self), sock=sock)
        sock.listen(BACKLOG)  # asyncio has set its own 100, which is also what it accepts in one go
        self._servers.append(server)
        self.bounds.start()

    async def stop(self) -> None:
        """Close the listening sockets and all connections."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.abort()
        self.bounds.stop()
