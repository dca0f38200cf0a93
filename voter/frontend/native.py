"""The native front end: framed requests on TCP or a unix socket, pipelined, answered as voted.

A connection opens with OPEN and OPENED.  Then the client sends REQUEST frames with numbers of its
own, and the voter answers each with a RESPONSE or FAILURE of the same number, in any order.  Bytes
that are not a frame end the connection: the voter answers the requests before them, sends a FAILURE
that says so, and closes.

OPEN holds the version of the protocol (u16), and after it the client's token where it needs one.

A client may send up to 64 requests in one REQUESTS frame.  Each is taken as if it had come in a
frame of its own.  From then on, the voter sends all answers of a turn of its loop in one RESPONSES.

A request with FLAG_ONCE is executed once however often it is sent: it has a number in a *session*.
SESSION without payload opens a session, and the answer names it.  SESSION with a name selects it
for the requests that follow, on any connection.  An opened session is selected if no other is.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

import msgspec

from guests.protocol import wire
from guests.protocol.wire import (
    FLAG_ONCE,
    FLAG_READ_ONLY,
    Decoder,
    Frame,
    FrameKind,
    WireError,
    encode,
)
from voter.core.dedup import session_scope
from voter.core.entries import Once
from voter.core.events import Failure, Release, SessionOpened
from voter.frontend.serving import READ_AHEAD, FrontEnd, FrontEndConnection, Phase, caller_in
from voter.native_protocol import (
    NUMBERS_SIZE,
    SESSION_SIZE,
    Item,
    OpenedPayload,
    decode_numbers,
    decode_several,
    encode_failure,
    encode_response,
    encode_several,
    split,
)
from voter.runner import Result, Runner, SessionResult
from voter.sockets import peer_of

if TYPE_CHECKING:
    from voter.access import Access

__all__ = ["NativeServer"]

WRITE_LIMIT = 64 << 20
"""Bytes of replies that a client may leave unread; above that its connection is closed."""
SLICE = 1 << 10
"""Bytes that are decoded in one step: up to 30 frames, or two of 64 requests each without content.

A request costs about 30 us.
"""
REQUEST_LIMIT = wire.MAX_PAYLOAD - (1 << 12)
"""Largest request in bytes; an ORDER adds time, history and caller to it."""


def _caller_of(transport: asyncio.Transport) -> bytes:
    """Return the client's name for the services: ``uid:N`` (unix), ``cert:NAME`` or ``tcp:HOST``.

    A client with a token is ``token:NAME``, once it has sent that.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return b"uid:%d" % peer_of(sock).uid
    if certificate := transport.get_extra_info("peercert"):
        return caller_in(certificate)
    peer = transport.get_extra_info("peername")
    return f"tcp:{peer[0]}".encode() if peer else b"unknown"


class NativeConnection(FrontEndConnection):
    """One client."""

    def __init__(self, server: NativeServer) -> None:
        super().__init__(server)
        self._native = server
        self._runner = server.runner
        self._input = bytearray()  # not decoded yet
        self._decoder = Decoder()
        self.caller = b""
        """The client's name for the services: see ``_caller_of``."""
        self._token = b""  # the digest of the client's token, if it needs one
        self._handshaken = False
        self._session = b""
        self._session_pending = False  # a session is being opened
        self._out: list[bytes] = []
        self._answers: list[Item] = []  # to be sent after ``_out``: number, kind, payload
        self._together = False  # the client has sent REQUESTS, so it takes RESPONSES
        self._in_flight: dict[int, int] = {}  # client's number: ticket
        self._choked = False  # too many requests are under way
        self._refusal: bytes | None = None  # FAILURE to be sent after the answers to these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        super().connection_made(transport)
        self.caller = _caller_of(cast(asyncio.Transport, transport))
        self._server.bounds.enter(self, Phase.HANDSHAKE)
        if self.crowded:
            self._refuse(0, Failure.OVERLOAD, self.crowded)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed; what the client has ordered stays in the order."""
        super().connection_lost(exc)
        self._out.clear()
        self._answers.clear()
        for ticket in self._in_flight.values():
            self._runner.cancel(ticket)
        self._in_flight.clear()

    def eof_received(self) -> bool:
        """asyncio: the client sends no more, but still gets its replies."""
        self._eof = True
        if self._deaf and not self._busy:
            return False
        self._server.bounds.leave(self, Phase.BODY)
        self._end_if_done()
        return not self._tls  # TLS knows no half-closed connections

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        if self._deaf:
            return
        self._input += data
        if self.scheduled:
            self._watch()
        else:
            self.advance()

    def advance(self) -> None:
        """Decode the next SLICE that completes a frame, and take its frames."""
        if self._over() or self._paused or self._choked:
            return
        frames: list[Frame] = []
        while self._input and not frames:
            frames = self._decoder.feed(bytes(self._input[:SLICE]))
            del self._input[:SLICE]
        blocked = self._runner.blocked
        for frame in frames:
            if blocked is not None and (why := blocked(self.caller)):
                self._refuse(frame.seq, "blocked", why)
            elif frame.kind == FrameKind.REQUEST and self._handshaken:
                self._request(frame.seq, frame.flags, frame.payload)
            elif frame.kind == FrameKind.REQUESTS and self._handshaken:
                self._take_several(frame)
            elif frame.kind == FrameKind.SESSION and self._handshaken:
                self._name_session(frame)
            elif frame.kind == FrameKind.OPEN and not self._handshaken:
                self._open(frame)
            else:
                text = f"a frame of kind {frame.kind} is not expected here"
                self._refuse(frame.seq, "protocol", text)
            if self._over():
                return
        if self._decoder.skipped:
            self._refuse(0, "protocol", "what was sent is not a Trivisor frame (wrong port?)")
            return
        self._watch(new=bool(frames))
        self._end_if_done()

    def _over(self) -> bool:
        return self._deaf or self._transport is None

    def _watch(self, *, new: bool = False) -> None:
        """Count what is held, set the deadline of a partial frame, and stop or resume reading."""
        if self._transport is None or self._deaf:
            return
        held, bounds = self._decoder.held + len(self._input), self._server.bounds
        self._count_held(held)
        if new or not held:
            self._extended = 0
        waits = self._paused or self._choked
        if new or waits or not held:
            bounds.leave(self, Phase.BODY)
        if held and bounds.held > self._server.held_limit:
            self._refuse(0, Failure.OVERLOAD, "too many requests are half sent")
            return
        if held and not waits:
            bounds.enter(self, Phase.BODY)
            if self._input:
                self._server.schedule(self)
        if waits or len(self._input) > READ_AHEAD:
            self._transport.pause_reading()
        elif not self._eof:
            self._transport.resume_reading()

    def _open(self, frame: Frame) -> None:
        version = int.from_bytes(frame.payload[:2])
        if version != wire.PROTOCOL:
            text = f"the client speaks protocol {version}, the voter {wire.PROTOCOL}"
            self._refuse(frame.seq, "version", text)
            return
        if self.access is not None:
            from voter.access import digest_of  # noqa: PLC0415 - loaded only with tokens

            caller, self._token = (
                self.access.caller_of(frame.payload[2:]),
                digest_of(frame.payload[2:]),
            )
            if caller is None:
                self._refuse(
                    frame.seq, "unauthorized", "no token, or not a valid one, came with OPEN"
                )
                return
            self.caller = caller
        self._handshaken = True
        self._server.bounds.leave(self, Phase.HANDSHAKE)
        self._send(encode(FrameKind.OPENED, 0, frame.seq, self._native.greeting))

    def _name_session(self, frame: Frame) -> None:
        """Select a session, or open one.

        An unknown name is detected at the first request that uses it."""
        if not frame.payload and not self._session_pending:
            self._session_pending = True
            self._runner.open_session(self.caller, partial(self._answer_session, frame.seq))
        elif len(frame.payload) == SESSION_SIZE:
            self._session = frame.payload
            self._send(encode(FrameKind.SESSION, 0, frame.seq, frame.payload))
        else:
            text = f"a session has {SESSION_SIZE} bytes, and is opened one at a time"
            self._refuse(frame.seq, "protocol", text)

    def _answer_session(self, number: int, result: SessionResult) -> None:
        self._session_pending = False
        if isinstance(result, SessionOpened):
            self._session = self._session or result.session
            self._send(encode(FrameKind.SESSION, 0, number, result.session))
        else:
            self._fail(number, result.failure, result.detail)

    def _take_several(self, frame: Frame) -> None:
        """Take the requests of one frame, up to the first that ends the connection."""
        try:
            items = decode_several(frame.payload)
        except WireError as error:
            self._refuse(frame.seq, "protocol", str(error))
            return
        self._together = True
        for number, flags, request in items:
            self._request(number, flags, request)
            if self._over():
                return

    def _request(self, number: int, flags: int, request: bytes) -> None:
        once = None
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
            self.caller,
            bool(flags & FLAG_READ_ONLY),
            partial(self._answer, number),
            once,
        )
        if number in self._in_flight:
            self._in_flight[number] = ticket
        if len(self._in_flight) >= self._native.max_in_flight:
            self._choked = True
            self._watch()

    def recheck(self) -> None:
        """End the connection if its token was revoked."""
        if self.access is not None and self._token and not self.access.holds(self._token):
            self._refuse(0, "unauthorized", "the token was revoked")

    def _fail(self, number: int, code: str, text: str) -> None:
        self._send_answer(number, FrameKind.FAILURE, encode_failure(code, text))

    def _answer(self, number: int, result: Result) -> None:
        self._in_flight.pop(number, None)
        if isinstance(result, Release):
            payload = encode_response(result.seq, result.agreed, result.dissent, result.reply)
            if len(payload) > wire.MAX_PAYLOAD:
                self._fail(number, Failure.TOO_LARGE, "the reply does not fit into a frame")
            else:
                self._send_answer(number, FrameKind.RESPONSE, payload)
        else:
            self._fail(number, result.failure, result.detail)
        if self._choked and len(self._in_flight) < self._native.max_in_flight // 2:
            self._choked = False
            self._watch()

    @property
    def _busy(self) -> bool:
        """Whether an answer is owed to the client."""
        return bool(self._in_flight or self._session_pending or self._out or self._answers)

    def _refuse(self, number: int, code: str, text: str) -> None:
        """Take nothing more; send a FAILURE after the answers that are owed, then linger."""
        if self._deaf:
            return
        self._refusal = encode(FrameKind.FAILURE, 0, number, encode_failure(code, text))
        self._deaf = True
        self._input.clear()
        self._decoder.clear()
        self._count_held(0)
        for phase in (Phase.HANDSHAKE, Phase.BODY):
            self._server.bounds.leave(self, phase)
        if self._transport is not None:
            self._transport.resume_reading()
        self._end_if_done()

    def _send(self, frame: bytes) -> None:
        if self._transport is not None:
            if not self._out and not self._answers:
                self._runner.flush_soon(self)
            self._out.append(frame)

    def _send_answer(self, number: int, kind: int, payload: bytes) -> None:
        if self._transport is not None:
            if not self._out and not self._answers:
                self._runner.flush_soon(self)
            self._answers.append((number, kind, payload))

    def _encode_answers(self) -> None:
        """Put the answers of this turn into frames: one alone is a RESPONSE or FAILURE."""
        groups = split(self._answers) if self._together else ([each] for each in self._answers)
        for group in groups:
            number, kind, payload = group[0]
            if len(group) > 1:
                kind, payload = FrameKind.RESPONSES, encode_several(group)
            self._out.append(encode(kind, 0, number, payload))
        self._answers.clear()

    def flush(self) -> None:
        """Write the frames of this turn; close a connection whose client never reads."""
        transport = self._transport
        self._encode_answers()
        if transport is not None and self._out:
            transport.write(b"".join(self._out))
            if self._paused:
                self._count_unsent(transport.get_write_buffer_size())
                if self._unsent > WRITE_LIMIT:
                    transport.abort()
        self._out.clear()
        self._end_if_done()

    def pause_writing(self) -> None:
        """asyncio: the client does not read: take no more requests from it."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """asyncio: the client reads again."""
        super().resume_writing()
        self._watch()

    def _end_if_done(self) -> None:
        """End the connection once all is answered, if the client sends no more or is refused."""
        if self._busy or self._transport is None:
            return
        if self._refusal is not None:
            self._transport.write(self._refusal)
            self._refusal = None
            self._linger()
        elif self._eof and not self._input:
            self._transport.close()

    def _late(self, phase: Phase) -> None:
        """Refuse a handshake or frame that is late."""
        if phase is Phase.HANDSHAKE:
            self._refuse(0, "protocol", "no OPEN came in time")
        elif phase is Phase.BODY:
            self._refuse(0, "protocol", "a frame was not completed in time")
        else:
            super()._late(phase)


class NativeServer(FrontEnd):
    """Serves native clients on any number of listening sockets."""

    def __init__(self, runner: Runner, access: Access | None = None) -> None:
        timing = runner.config.timing
        super().__init__(
            {Phase.HANDSHAKE: timing.header, Phase.BODY: timing.body, Phase.UNREAD: timing.body},
            access,
            runner.config.clients.connections,
        )
        self.runner = runner
        runner.drop_client.append(self.drop)
        self.max_in_flight = runner.config.max_in_flight
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

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        await super().serve(sock)
        self.bounds.start()

    def recheck(self) -> None:
        """End the connections whose token was revoked."""
        for connection in tuple(self.connections):
            connection.recheck()

    def drop(self, caller: bytes) -> None:
        """Close a client's connections at once; what it has ordered stays in the order."""
        for connection in tuple(self.connections):
            if connection.caller == caller:
                connection.abort()

    def connect(self) -> NativeConnection:
        """Return the protocol of a new connection."""
        return NativeConnection(self)
