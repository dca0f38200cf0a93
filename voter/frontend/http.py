"""The HTTP front end: any method and any path is one request through the vote.

One connection has one request under way; what a client pipelines behind it waits as unread bytes,
so replies come in order.  Paths in ``reserved`` are answered here, errors are problems (see
``problem``), header rules are in ``proxying``, the syntax in ``http1``.

A client that sends no more (half-closed) still gets its replies.  One whose connection breaks is
forgotten; what it asked for stays in the order.  Each wait has a limit (``Phase``), and what all
clients together can make the voter hold is bounded by HELD_LIMIT and UNSENT_LIMIT.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from email.utils import formatdate
from enum import StrEnum
from typing import cast

from guests.message import MessageError, Reply
from voter.client import READ_ONLY_METHODS
from voter.core.events import Release
from voter.frontend.bounds import HELD_LIMIT, LINGER, STEP, UNSENT_LIMIT, Bounds
from voter.frontend.http1 import HttpRequest, Refused, RequestReader
from voter.frontend.problem import problem_of_failure, problem_of_status
from voter.frontend.proxying import canonical_request, encode_response, vote_header
from voter.frontend.reserved import Reserved
from voter.runner import Runner, Verdict
from voter.sockets import BACKLOG

__all__ = ["HttpServer", "Phase"]

READ_AHEAD = 64 << 10
"""Bytes a client may send behind the request under way before it is no longer read."""
STOP_PATIENCE = 0.5
"""Seconds for what is written to get out when the server stops."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(StrEnum):
    """What a connection waits for."""

    IDLE = "idle"  # a request (timing.idle)
    HEAD = "head"  # the rest of a request's line and headers (timing.header)
    BODY = "body"  # the rest of its body (timing.body)
    VOTE = "vote"  # its verdict (the runner's timing.request)
    DRAIN = "drain"  # the client to take what was written (STEP bytes in timing.body)
    LINGER = "linger"  # the client to close, after the last response (LINGER)
    OVER = "over"  # nothing


class HttpConnection(asyncio.Protocol):
    """One client."""

    __slots__ = ("_advancing", "_caller", "_counted", "_eof", "_last", "_phase", "_reader",
                 "_request", "_server", "_still", "_ticket", "_transport", "_unsent")  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._reader = RequestReader(server.runner.config.max_body)
        self._transport: asyncio.Transport | None = None
        self._caller = b""
        self._phase = Phase.OVER
        self._request: HttpRequest | None = None  # the one under way
        self._ticket = 0
        self._counted = 0  # bytes of ours in bounds.held
        self._unsent = 0  # bytes of ours in bounds.unsent
        self._eof = False  # the client sends no more
        self._still = False  # we do not read
        self._last = False  # no request is taken any more
        self._advancing = False

    # ---------------------------------------------------------- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client is there."""
        self._transport = cast(asyncio.Transport, transport)
        # "Paused" then means: not all is sent.
        self._transport.set_write_buffer_limits(high=0)
        peer = self._transport.get_extra_info("peername")
        self._caller = f"http:{peer[0]}".encode() if isinstance(peer, tuple) else b"http:local"
        server = self._server
        server.connections.add(self)
        self._enter(Phase.IDLE)
        if len(server.connections) > server.max_connections:
            self._refuse(503, f"{server.max_connections} connections are open already")

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client is gone; what it asked for stays in the order."""
        self._transport = None
        if self._phase is Phase.VOTE and self._ticket:
            self._server.runner.cancel(self._ticket)
        self._enter(Phase.OVER)
        self._count(0)
        self.resume_writing()
        self._server.forget(self)

    def eof_received(self) -> bool:
        """asyncio: the client sends no more; it still gets its replies."""
        self._eof = True
        if self._phase is Phase.LINGER:
            return False
        self._advance()
        return True

    def pause_writing(self) -> None:
        """asyncio: the client does not take all that was written."""
        if self._transport is not None:
            self._count_unsent(self._transport.get_write_buffer_size())
            if self._server.bounds.unsent > UNSENT_LIMIT:
                self._transport.abort()

    def resume_writing(self) -> None:
        """asyncio: all is written."""
        self._count_unsent(0)
        if self._phase is Phase.DRAIN:
            self._settle()

    # --------------------------------------------------------------- requests

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        if self._last:
            return
        self._reader.feed(data)
        if self._phase is Phase.VOTE or self._phase is Phase.DRAIN:
            self._count(self._reader.held)
            if self._reader.held > READ_AHEAD and self._transport is not None:
                self._transport.pause_reading()
                self._still = True
        else:
            self._advance()

    def _advance(self) -> None:
        """Take requests for as long as there are any, and none is under way."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._phase in (Phase.IDLE, Phase.HEAD, Phase.BODY):
                request = self._reader.next()
                if request is None:
                    self._wait_for_more()
                    break
                self._start(request)
        except Refused as refused:
            self._refuse(refused.status, refused.detail)
        finally:
            self._advancing = False

    def _wait_for_more(self) -> None:
        """No whole request is there."""
        reader = self._reader
        self._count(reader.held)
        if self._eof:
            if reader.started:
                raise Refused(400, "the request ends before its end")
            self._close()
        elif not reader.started:
            self._enter(Phase.IDLE)
        else:
            if self._server.bounds.held > HELD_LIMIT:
                raise Refused(503, "too many requests are half sent")
            self._enter(Phase.BODY if reader.in_body else Phase.HEAD)
            if reader.wants_continue and self._transport is not None:
                reader.wants_continue = False
                self._transport.write(_CONTINUE)
        if self._still and not self._eof and self._transport is not None:
            self._still = False
            self._transport.resume_reading()

    def _start(self, request: HttpRequest) -> None:
        """Submit a request, or answer it if its path is the voter's own."""
        server = self._server
        self._enter(Phase.VOTE)
        self._count(self._reader.held)
        self._request = request
        self._ticket = 0
        path, _, query = request.target.partition("?")
        if path in server.reserved:
            self._respond(server.reserved.answer(request.method, path, query))
            return
        data = canonical_request(request)
        read_only = request.method in READ_ONLY_METHODS
        ticket = server.runner.submit(data, self._caller, read_only, self._answer)
        if self._request is request:  # it may have been refused at once
            self._ticket = ticket

    def _answer(self, verdict: Verdict) -> None:
        """The runner's verdict on the request under way."""
        runner = self._server.runner
        if isinstance(verdict, Release):
            vote = vote_header(verdict, runner.policy.of, runner.names)
            try:
                reply = Reply.decode(verdict.reply)
            except MessageError as error:
                reply = problem_of_status(502, f"the voted reply is not HTTP: {error}", verdict.seq)
            self._respond(reply, vote)
        else:
            self._respond(problem_of_failure(verdict))

    # -------------------------------------------------------------- responses

    def _refuse(self, status: int, detail: str) -> None:
        """Say what is wrong and end the connection."""
        self._request = None
        self._respond(problem_of_status(status, detail))

    def _respond(self, reply: Reply, *extra: tuple[str, str]) -> None:
        """Write a response to the request under way; without one, it is the last response."""
        request, self._request = self._request, None
        if self._transport is None:
            return
        keep_alive = request is not None and request.keep_alive and not self._server.stopping
        data = encode_response(
            reply,
            self._server.date(),
            extra=extra,
            head_only=request is not None and request.method == "HEAD",
            keep_alive=keep_alive,
            http10=request is not None and request.http10,
        )
        self._last = not keep_alive
        self._transport.write(data)
        self._settle()

    def _settle(self) -> None:
        """After a response: wait until it is taken, then for the next request or for the end."""
        transport = self._transport
        if transport is None:
            return
        if self._unsent:
            self._enter(Phase.DRAIN)
        elif not self._last:
            self._enter(Phase.IDLE)
            self._advance()
        elif self._eof:
            self._close()
        else:
            # Closing now, with bytes of the client unread, could take the response from it.
            self._enter(Phase.LINGER)
            self._reader = RequestReader(0)
            self._count(0)
            transport.write_eof()
            if self._still:
                self._still = False
                transport.resume_reading()

    # ------------------------------------------------------------- bookkeeping

    def _enter(self, phase: Phase) -> None:
        if phase is not self._phase:
            bounds = self._server.bounds
            bounds.leave(self, self._phase)
            self._phase = phase
            bounds.enter(self, phase)

    def _count(self, held: int) -> None:
        if held != self._counted:
            self._server.bounds.held += held - self._counted
            self._counted = held

    def _count_unsent(self, unsent: int) -> None:
        self._server.bounds.unsent += unsent - self._unsent
        self._unsent = unsent

    def _close(self) -> None:
        self._last = True
        if self._transport is not None:
            self._transport.close()

    def expire(self, phase: Phase) -> None:
        """The limit of a phase is over."""
        self._phase = Phase.OVER
        if phase is Phase.HEAD:
            self._refuse(408, "the request line and headers did not come in time")
        elif phase is Phase.BODY:
            self._refuse(408, "the body did not come in time")
        elif phase is Phase.DRAIN:
            self._expect_step()
        else:
            self._close()

    def _expect_step(self) -> None:
        """The client has had its time to take replies: give it more if it took some."""
        if self._transport is not None:
            left = self._transport.get_write_buffer_size()
            if left > self._unsent - STEP:
                self._transport.abort()
            else:
                self._count_unsent(left)
                self._enter(Phase.DRAIN)

    def end(self, *, at_once: bool = False) -> None:
        """The server stops: close, after what is written has gone out or ``at_once``."""
        self._close()
        if at_once and self._transport is not None:
            self._transport.abort()


class HttpServer:
    """Serves HTTP clients on any number of listening sockets."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.reserved = Reserved(runner)
        self.connections: set[HttpConnection] = set()
        self.stopping = False
        # Some descriptors must be left for links, the control socket and native clients.
        self.max_connections = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 9 // 10
        timing = runner.config.timing
        limits = {
            Phase.IDLE: timing.idle,
            Phase.HEAD: timing.header,
            Phase.BODY: timing.body,
            Phase.DRAIN: timing.body,
            Phase.LINGER: LINGER,
        }
        self.bounds: Bounds[HttpConnection, Phase] = Bounds(limits, HttpConnection.expire)
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._date = ""
        self._dated = 0

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(lambda: HttpConnection(self), sock=sock)
        else:
            server = await loop.create_server(lambda: HttpConnection(self), sock=sock)
        sock.listen(BACKLOG)  # asyncio has set its own 100, which is also what it accepts in one go
        self._servers.append(server)
        self.bounds.start()

    async def stop(self) -> None:
        """Stop listening, close all connections; what is written gets STOP_PATIENCE to go out."""
        self.stopping = True
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.end()
        self._empty.clear()
        if self.connections:
            try:
                async with asyncio.timeout(STOP_PATIENCE):
                    await self._empty.wait()
            except TimeoutError:
                for connection in tuple(self.connections):
                    connection.end(at_once=True)
        self.bounds.stop()

    def forget(self, connection: HttpConnection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def date(self) -> str:
        """The Date header's value, made once a second."""
        now = int(time.time())
        if now != self._dated:
            self._dated = now
            self._date = formatdate(now, usegmt=True)
        return self._date
