"""One HTTP client, and the server that HTTP front ends are made from.

Theory of operation.  Requests of a connection are answered one after the other: while one is under
way (``_request``), what follows stays in the reader as bytes, and above READ_AHEAD of them the
voter stops reading.  ``advance`` starts the next request; it runs when bytes arrive, after an
answer, and when the client has read its last reply.  It never recurses: an answer schedules it for
a later turn of the loop, so that a client with many requests in one packet delays nobody.

A client that sends no more (half-closed) still gets its replies.  A request that cannot be read is
answered with a problem (``voter.frontend.problem``), after which the connection lingers
(``voter.frontend.serving``).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from guests.protocol.message import Reply
from voter.config import Timing
from voter.frontend.problem import problem_of_status
from voter.frontend.proxying import encode_response
from voter.frontend.request import BadRequest, HttpRequest, RequestReader
from voter.frontend.serving import READ_AHEAD, FrontEnd, FrontEndConnection, Phase, caller_in
from voter.sockets import Peer, peer_of

if TYPE_CHECKING:
    from voter.access import Access

__all__ = ["HttpConnection", "HttpFrontEnd"]

STOP_PATIENCE = 0.5
"""Seconds for responses under way when the server stops."""


class HttpConnection(FrontEndConnection):
    """One client."""

    def __init__(self, server: HttpFrontEnd) -> None:
        super().__init__(server)
        self._front = server
        self._reader = RequestReader(server.max_body)
        self._request: HttpRequest | None = None  # under way
        self._refusal: BadRequest | None = None  # to be sent after the answer to that one
        self._last = False  # the answer to the request under way is the last one
        self._streaming = False  # that answer ends with the connection
        self._phase: Phase | None = None
        self._full = False  # reading is paused
        self.caller = b""
        """The client's name for the services: ``http:IP`` or ``http:local``, or ``cert:NAME``.

        Where a token is needed, each request has its own: ``token:NAME``.
        """
        self.on_lost: Callable[[], object] | None = None
        """Cancels the request under way."""
        self._read = asyncio.Event()  # the client has read what was sent
        self._read.set()

    @property
    def peer(self) -> Peer | None:
        """The process at the other end of a unix socket; None on TCP, or without a connection."""
        transport = self._transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        return peer_of(sock) if sock is not None and sock.family == socket.AF_UNIX else None

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._request is not None

    # --------------------------------------------------------------- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        super().connection_made(transport)
        # One reply at a time.  TLS pauses at the limit, other transports above it.
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=int(self._tls), low=0)
        peer = transport.get_extra_info("peername")
        self.caller = f"http:{peer[0]}".encode() if isinstance(peer, tuple) else b"http:local"
        if self._tls and (certificate := transport.get_extra_info("peercert")):
            self.caller = caller_in(certificate)
        self._enter(Phase.IDLE)
        if len(self._front.connections) > self._front.max_connections:
            limit = self._front.max_connections
            self._refuse(BadRequest(503, f"{limit} connections are open already"))
        elif self.crowded:
            self._refuse(BadRequest(503, self.crowded))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed: cancel the request under way."""
        super().connection_lost(exc)
        self._request = None
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        if not self._deaf:
            self._reader.feed(data)
            if self.scheduled:
                self._watch()
            else:
                self.advance()

    def eof_received(self) -> bool:
        """asyncio: the client sends no more."""
        self._eof = True
        if self._streaming or (self._deaf and not self.busy):
            return False  # a stream has no other sign that its reader is gone
        if not self.scheduled:
            self.advance()
        return not self._tls  # TLS knows no half-closed connections

    def pause_writing(self) -> None:
        """asyncio: the client does not read as fast as the voter writes."""
        super().pause_writing()
        self._read.clear()

    def resume_writing(self) -> None:
        """asyncio: the client has read everything."""
        super().resume_writing()
        self._read.set()
        self._front.schedule(self)

    # -------------------------------------------------------------- requests

    def advance(self) -> None:
        """Start the next request, if the one before is answered and the next is complete."""
        if self._transport is None or self._deaf:
            return
        if self.busy or self._paused:
            self._watch()
            return
        reader = self._reader
        try:
            request = reader.next()
            if request is None and self._eof and not reader.more:
                reader.end()
        except BadRequest as error:
            self._refuse(error)
            return
        if request is not None:
            self._request = request
            self._watch()
            self._front.handle(self, request)
        elif self._eof and not reader.more:
            self._transport.close()
        else:
            self._watch()

    def _watch(self) -> None:
        """Count what is held, set the deadline, and stop or resume reading."""
        reader, transport = self._reader, self._transport
        held = reader.held
        if held != self._held:
            self._count_held(held)
        if held > 0 and self._front.bounds.held > self._front.held_limit:
            self._refuse(BadRequest(503, "too many requests are half sent"))
            return
        waits = self.busy or self._paused
        if waits:
            self._enter(None)
        elif reader.in_body:
            self._enter(Phase.BODY)
            if reader.expects_continue and not held and transport is not None:
                reader.expects_continue = False
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self._enter(Phase.HEAD if held else Phase.IDLE)
        if reader.more and not waits:
            self._front.schedule(self)
        full = held > READ_AHEAD and (waits or self.scheduled)
        if full is not self._full and transport is not None:
            self._full = full
            if full:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _enter(self, phase: Phase | None) -> None:
        """Wait for something else from now on."""
        if phase is not self._phase:
            if self._phase is not None:
                self._front.bounds.leave(self, self._phase)
            if phase is not None:
                self._front.bounds.enter(self, phase)
            self._phase, self._extended = phase, 0

    def _late(self, phase: Phase) -> None:
        """Refuse a request that did not come in time."""
        if phase is Phase.HEAD:
            self._refuse(BadRequest(408, "the request line and headers did not come in time"))
        elif phase is Phase.BODY:
            self._refuse(BadRequest(408, "the body did not come in time"))
        else:
            super()._late(phase)

    # --------------------------------------------------------------- answers

    def answer(self, reply: Reply, *extra: tuple[str, str], last: bool = False) -> None:
        """Send the response to the request under way, with these headers added.

        With ``last`` the connection ends after it.  Raises MessageError if the reply cannot be
        sent; then nothing has happened.
        """
        request, transport = self._request, self._transport
        if request is None or transport is None:
            return
        ends = last or self._last or not request.keep_alive
        # What the client does not assume: HTTP/1.1 keeps connections, HTTP/1.0 closes them.
        connection_header = "" if ends == request.old else "close" if ends else "keep-alive"
        data = encode_response(
            reply, *extra, head=request.method == "HEAD", connection=connection_header
        )
        self._request = self.on_lost = None
        transport.write(data)
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif ends:
            self._end()
        elif self._reader.held or self._eof or self._paused:
            self._front.schedule(self)
        else:
            self._enter(Phase.IDLE)

    def refuse(self, status: int, detail: str, *extra: tuple[str, str]) -> None:
        """Answer the request under way with a problem, and end the connection."""
        self.answer(problem_of_status(status, detail), *extra, last=True)

    def _refuse(self, error: BadRequest) -> None:
        """Send a problem after what is owed to earlier requests, and end the connection."""
        self._discard()
        if self.busy:
            self._refusal = error
            if self._transport is not None:
                self._transport.resume_reading()
        elif self._transport is not None:
            # The detail may hold bytes of the client's.
            detail = str(error)[:200].encode("ascii", "backslashreplace").decode()
            reply = problem_of_status(error.status, detail)
            self._transport.write(encode_response(reply, connection="close"))
            self._end()

    def _end(self) -> None:
        """End the connection once the client has its last response."""
        self._discard()
        self._linger()

    def _discard(self) -> None:
        """Read nothing of what is here and what still comes."""
        self._deaf = True
        self._reader = RequestReader(self._front.max_body)
        self._count_held(0)
        self._enter(None)

    def start_stream(self, content_type: str) -> None:
        """Begin a response that ends with the connection; ``write`` continues it."""
        self._last = self._streaming = True
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n"
        self.write(head.encode())

    def write(self, data: bytes) -> None:
        """Send a part of a streamed response."""
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read all parts of a streamed response."""
        await self._read.wait()

    def finish(self) -> None:
        """End the connection after the answer to the request under way."""
        self._last = True
        if not self.busy and not self._deaf and self._transport is not None:
            self._transport.close()


class HttpFrontEnd(FrontEnd):
    """Serves HTTP clients; a subclass answers their requests."""

    def __init__(
        self,
        timing: Timing,
        max_body: int,
        access: Access | None = None,
        most_from_one: int | None = None,
    ) -> None:
        super().__init__(
            {
                Phase.IDLE: timing.idle,
                Phase.HEAD: timing.header,
                Phase.BODY: timing.body,
                Phase.UNREAD: timing.body,
            },
            access,
            most_from_one,
        )
        self.max_body = max_body
        # Some descriptors must be left for links, the control socket and native clients.
        self.max_connections = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 9 // 10

    def connect(self) -> HttpConnection:
        """Return the protocol of a new connection."""
        self.bounds.start()
        return HttpConnection(self)

    @abstractmethod
    def handle(self, connection: HttpConnection, request: HttpRequest) -> None:
        """Answer a request, now or later, by ``connection.answer``."""

    async def stop(self) -> None:
        """Stop listening, and close all connections; responses under way get STOP_PATIENCE."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.finish()
        if self.connections:
            self.empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_PATIENCE):
                    await self.empty.wait()
        await super().stop()
        await asyncio.sleep(0)  # asyncio reports the end of a connection in its next turn
