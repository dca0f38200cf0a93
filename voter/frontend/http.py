"""The HTTP front end: any method and any path is one request through the vote.  Served by aiohttp.

Requests of one connection are answered one after the other.  Paths in ``reserved`` are answered
here, errors are problems (see ``problem``), header rules are in ``proxying``, what one client may
do in ``connection``.

A client that sends no more (half-closed) still gets its replies.  One whose connection breaks is
forgotten; what it asked for stays in the order.  What all clients together can make the voter hold
is bounded by HELD_LIMIT and UNSENT_LIMIT (and what is under way by ``limits.pending``).
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterable
from typing import cast

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11

from guests.protocol.message import MessageError, Reply
from voter.core.events import Once, Release
from voter.frontend.bounds import HELD_LIMIT
from voter.frontend.connection import BadRequest, HttpConnection
from voter.frontend.idempotency import REPLAYED, find_key, once_of
from voter.frontend.problem import problem_of_failure, problem_of_status
from voter.frontend.proxying import canonical_request, origin_form, to_response, vote_header
from voter.frontend.reserved import Reserved
from voter.native_protocol import READ_ONLY_METHODS
from voter.runner import Runner, Verdict
from voter.sockets import BACKLOG

__all__ = ["HttpServer"]

STOP_PATIENCE = 0.25
"""Seconds for responses under way to get out when the server stops; as many again to those whose
request is cancelled."""


class HttpServer:
    """Serves HTTP clients on any number of listening sockets."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.timing = runner.config.timing
        self.reserved = Reserved(runner)
        self.connections: set[HttpConnection] = set()
        # Some descriptors must be left for links, the control socket and native clients.
        self.max_connections = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 9 // 10
        self.held_limit = HELD_LIMIT
        self.held = 0
        """Bytes of requests that are not complete."""
        self.unsent = 0
        """Bytes of replies that are not taken."""
        self._web: web.Server | None = None
        self._servers: list[asyncio.Server] = []

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        loop = asyncio.get_running_loop()
        server = self._web = self._web or web.Server(self._handle, handler_cancellation=True)
        listen = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._servers.append(await listen(lambda: HttpConnection(self, server), sock=sock))
        sock.listen(BACKLOG)  # asyncio has set its own 100, which is also what it accepts in one go

    async def stop(self) -> None:
        """Stop listening, close all connections; what is written gets STOP_PATIENCE to go out."""
        for server in self._servers:
            server.close()
        if self._web is not None:
            self._web.pre_shutdown()
            await self._web.shutdown(STOP_PATIENCE)
        for connection in tuple(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # asyncio tells them so in its next turn

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request: from here if its path is the voter's own, else by the vote."""
        target, authority = self._check(request)
        body = await self._read(request)
        path, _, query = target.partition("?")
        if path in self.reserved:
            return to_response(self.reserved.answer(request.method, path, query))
        caller = cast(HttpConnection, request.protocol).caller
        method, headers, once = request.method, request.raw_headers, None
        read_only = method in READ_ONLY_METHODS
        if not read_only:
            once = self._once(headers, caller, method, target, body)
        data = canonical_request(method, target, headers, authority, body)
        verdict = await self._vote(data, caller, read_only, once)
        if not isinstance(verdict, Release):
            return to_response(problem_of_failure(verdict))
        extra = [vote_header(verdict, self.runner.policy.of, self.runner.names)]
        if verdict.replayed:
            extra.append(REPLAYED)
        try:
            return to_response(Reply.decode(verdict.reply), *extra)
        except MessageError as error:
            text = f"the voted reply is not HTTP: {error}"
            return to_response(problem_of_status(502, text, verdict.seq), *extra)

    def _once(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        caller: bytes,
        method: str,
        target: str,
        body: bytes,
    ) -> Once | None:
        """What makes a request with an Idempotency-Key be executed once.  Raises Refused."""
        try:
            key = find_key(headers)
        except MessageError as error:
            raise BadRequest(400, str(error)) from error
        return None if key is None else once_of(key, caller, method, target, body)

    def _check(self, request: web.BaseRequest) -> tuple[str, str | None]:
        """Return target and authority of a request that can be taken.  Raises Refused."""
        headers = request.headers
        coding = headers.get(hdrs.TRANSFER_ENCODING)
        if coding is not None and request.version == HttpVersion10:
            raise BadRequest(400, "transfer-encoding in HTTP/1.0")
        if coding is not None and coding.lower() != "chunked":
            raise BadRequest(501, "the only transfer coding understood here is chunked")
        if headers.get(hdrs.EXPECT, "100-continue").lower() != "100-continue":
            raise BadRequest(417, "the only expectation understood here is 100-continue")
        if int(headers.get(hdrs.CONTENT_LENGTH, 0)) > self.runner.config.max_body:
            self._refuse_body()
        try:
            return origin_form(request.raw_path)
        except MessageError as error:
            raise BadRequest(400, str(error)) from error

    def _refuse_body(self) -> None:
        raise BadRequest(413, f"the body is over the limit of {self.runner.config.max_body} bytes")

    async def _read(self, request: web.BaseRequest) -> bytes:
        """Return the body.  Raises Refused, RequestPayloadError."""
        content = request.content
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > self.runner.config.max_body:
                self._refuse_body()
            return body
        if hdrs.EXPECT in request.headers and not content.total_bytes:
            wire = request.transport
            if wire is not None and request.version == HttpVersion11:
                wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts = bytearray()
        try:
            async with asyncio.timeout(self.timing.body):
                while piece := await content.readany():
                    parts += piece
                    self.held += len(piece)
                    if len(parts) > self.runner.config.max_body:
                        self._refuse_body()
                    if self.held > self.held_limit:
                        raise BadRequest(503, "too many requests are half sent")
        except TimeoutError:
            raise BadRequest(408, "the body did not come in time") from None
        finally:
            self.held -= len(parts)
        return bytes(parts)

    async def _vote(
        self, data: bytes, caller: bytes, read_only: bool, once: Once | None
    ) -> Verdict:
        """Return the verdict on a request; cancelled when its client has gone."""
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

        def settle(found: Verdict) -> None:
            if not verdict.done():  # cancelled in this very turn of the loop
                verdict.set_result(found)

        ticket = self.runner.submit(data, caller, read_only, settle, once)
        try:
            return await verdict
        except asyncio.CancelledError:
            self.runner.cancel(ticket)
            raise
