"""One HTTP client: aiohttp's protocol, with the deadlines and bounds that it leaves to others.

Parsing, queueing, flow control and keep-alive are aiohttp's.  Added here: a limit on the time that
a request line with headers takes, and on their size; replies to a client that sends no more, or
that does not take them; an end of the connection that does not cost the client the last response.

aiohttp's own parser in Python, not the one in C, which refuses methods that it does not know.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import TOKENRE, HttpRequestParserPy, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from voter.frontend.bounds import LINGER, STEP, UNSENT_LIMIT
from voter.frontend.problem import problem_of_status
from voter.frontend.proxying import to_response

if TYPE_CHECKING:
    from voter.frontend.http import HttpServer

__all__ = ["HEADER_LIMIT", "HEAD_LIMIT", "HttpConnection", "BadRequest", "RequestParser"]

HEAD_LIMIT = 32 << 10
"""Largest request line with all headers, in bytes."""
LINE_LIMIT = 8 << 10
"""Longest line among them, in bytes."""
HEADER_LIMIT = 100
"""Most header lines of one request."""
QUEUE = 4
"""Requests parsed while an earlier one is under way; what comes behind them waits as bytes."""
READ_AHEAD = 64 << 10
"""Bytes of a body that nobody has read yet (aiohttp stops reading at twice as many)."""


class BadRequest(HttpProcessingError):
    """A request that cannot be taken; the connection ends after the answer ``status``."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(code=status, message=detail)


class RequestParser(HttpRequestParserPy):
    """Takes any token as a method, and makes no tunnels."""

    def parse_message(self, lines: list[bytes]) -> RawRequestMessage:
        """Take the lines of a request apart.  Raises HttpProcessingError."""
        if sum(map(len, lines)) > HEAD_LIMIT:
            raise BadRequest(431, f"the headers are over the limit of {HEAD_LIMIT} bytes")
        try:
            message = super().parse_message(lines)
        except ValueError as error:
            raise BadRequest(400, f"the request is malformed: {error}") from error
        if message.version not in (HttpVersion11, HttpVersion10):
            raise BadRequest(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
        if message.method == "CONNECT":
            raise BadRequest(501, "no tunnels are made here")
        if len(message.headers.get("Content-Length", "")) > 18:
            raise BadRequest(413, "the body is over any limit")
        return message._replace(upgrade=False) if message.upgrade else message


class HttpConnection(RequestHandler):
    """One client."""

    __slots__ = ("_deaf", "_eof", "_front", "_held", "_late", "_lingers", "_slow", "_unsent",
                 "_wire", "caller")  # fmt: skip

    def __init__(self, front: HttpServer, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=front.timing.idle,
            access_log=None,  # type: ignore[arg-type]
            lingering_time=0,
            read_bufsize=READ_AHEAD,
        )
        self._max_msg_queue_size, self._msg_queue_resume_size = QUEUE, QUEUE // 2
        self._parser = RequestParser(
            self,
            loop,
            READ_AHEAD,
            max_line_size=LINE_LIMIT,
            max_field_size=LINE_LIMIT,
            max_headers=HEADER_LIMIT + 2,  # it counts the request line and the empty one
            payload_exception=RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=QUEUE,
        )
        self.caller = b""
        self._front = front
        self._wire: asyncio.Transport | None = None
        self._held = 0  # bytes of ours in front.held
        self._unsent = 0  # bytes of ours in front.unsent
        self._late: asyncio.TimerHandle | None = None  # the rest of a head must be there
        self._slow: asyncio.TimerHandle | None = None  # STEP bytes must be taken
        self._deaf = False  # what comes in is thrown away
        self._eof = False  # the client sends no more
        self._lingers = False  # the last response is written

    # ---------------------------------------------------------- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client is there."""
        super().connection_made(transport)
        front, wire = self._front, cast(asyncio.Transport, transport)
        self._wire = wire
        wire.set_write_buffer_limits(high=0)  # "paused" then means: not all is sent
        peer = wire.get_extra_info("peername")
        self.caller = f"http:{peer[0]}".encode() if isinstance(peer, tuple) else b"http:local"
        front.connections.add(self)
        if len(front.connections) > front.max_connections:
            self.refuse(503, f"{front.max_connections} connections are open already")

    def connection_lost(self, exc: BaseException | None) -> None:
        """asyncio: the client is gone; aiohttp cancels its handler."""
        super().connection_lost(exc)
        self._wire = None
        self._watch_head(0)
        self._count_unsent(0)
        self._front.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client (aiohttp: none, to go on with what it has)."""
        if self._deaf:
            return
        count = self._request_count
        super().data_received(data)
        parser = cast(RequestParser | None, self._parser)
        if parser is None:  # the connection is over
            return
        if self._request_count != count and self._late is not None:
            self._late.cancel()  # that one is complete; the next has its own time
            self._late = None
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._deaf = True
            self._watch_head(0)
        elif parser._tail or parser._lines:
            self._watch_head(len(parser._tail) + sum(map(len, parser._lines)))
        elif self._held:
            self._watch_head(0)

    def eof_received(self) -> bool:  # type: ignore[override]
        """asyncio: the client sends no more; it still gets its replies."""
        self._eof = True
        parser = cast(RequestParser, self._parser)
        if self._lingers:
            return False
        if parser._payload_parser is not None:
            error = RequestPayloadError("the request ends before its end")
            parser._payload_parser.payload.set_exception(error)
        elif self._held:
            self.refuse(400, "the request ends before its end")
        self._end_if_done()
        return True

    def _end_if_done(self) -> None:
        """Once all requests of a client that sends no more are under way, let the last end it."""
        if self._eof and not self._messages:
            if self._waiter is not None:
                self.force_close()
            self.close()

    # --------------------------------------------------------------- requests

    def _watch_head(self, held: int) -> None:
        """So many bytes wait for the rest of their request's headers (or for a place to go)."""
        parser, front = cast(RequestParser, self._parser), self._front
        front.held += held - self._held
        self._held = held
        partial = held and len(self._messages) < QUEUE
        if not partial and self._late is not None:
            self._late.cancel()
            self._late = None
        if front.held > front.held_limit and held:
            self.refuse(503, "too many requests are half sent")
        elif partial:
            start = (parser._lines or [parser._tail])[0].lstrip(b"\r")[:1]
            if start and not TOKENRE.match(start.decode("latin-1")):
                self.refuse(400, "this is not HTTP")
            elif held > HEAD_LIMIT:
                self.refuse(431, f"the headers are over the limit of {HEAD_LIMIT} bytes")
            elif self._late is None:
                self.keep_alive(True)  # it is not idle any more
                self._late = self._loop.call_later(
                    front.timing.header,
                    self.refuse,
                    408,
                    "the request line and headers did not come in time",
                )

    def refuse(self, status: int, detail: str) -> None:
        """Say what is wrong, after what is owed to earlier requests, and end the connection."""
        if not self._deaf:
            self._deaf = True
            error = _ErrInfo(status, BadRequest(status, detail), detail)
            self._messages.append((error, EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            self._watch_head(0)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp: make the response to a request that was not understood, or to a fault of ours
        (that is logged, and the connection ends without a word: the outcome is unknown)."""
        lines = getattr(self._parser, "_lines", ())
        if isinstance(exc, BadRequest):
            status = exc.code
        elif len(lines) > HEADER_LIMIT + 1 or (isinstance(exc, LineTooLong) and lines):
            status = 431
        elif isinstance(exc, LineTooLong):
            status = 414
        elif isinstance(exc, (HttpProcessingError, RequestPayloadError)):
            status = 400
        elif exc is not None:
            raise exc
        detail = getattr(exc, "message", "") or str(exc) or "the request is malformed"
        if exc is not None and isinstance(exc.__cause__, HttpProcessingError):
            detail = f"the body is malformed: {exc.__cause__.message}"
        # The words may hold bytes of the client's.
        detail = detail[:200].encode("ascii", "backslashreplace").decode()
        response = to_response(problem_of_status(status, detail))
        response.headers["Connection"] = "close"
        response.force_close()
        return response

    # -------------------------------------------------------------- responses

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """aiohttp: send a response.  After the last one wait for the client to close: closing with
        bytes of it unread could take the response from it."""
        sent = await super().finish_response(request, resp, start_time)
        if isinstance(resp, web.Response):
            resp.body = None  # aiohttp keeps the response until the next one
            resp.headers.clear()
        if not resp.keep_alive and not self._eof and self._wire is not None:
            self._deaf = self._lingers = True
            self._watch_head(0)
            self._wire.write_eof()
            self._wire.resume_reading()
            await asyncio.sleep(LINGER)  # cancelled when the client closes
        self._end_if_done()
        return sent

    def pause_writing(self) -> None:
        """asyncio: the client does not take all that was written."""
        super().pause_writing()
        if self._wire is not None:
            self._count_unsent(self._wire.get_write_buffer_size())
            self._slow = self._loop.call_later(self._front.timing.body, self._expect_step)
            if self._front.unsent > UNSENT_LIMIT:
                self._wire.abort()

    def resume_writing(self) -> None:
        """asyncio: all is written."""
        super().resume_writing()
        self._count_unsent(0)

    def _expect_step(self) -> None:
        """The client has had its time to take a reply: give it more if it took some."""
        if self._wire is not None:
            left = self._wire.get_write_buffer_size()
            if left > self._unsent - STEP:
                self._wire.abort()
            else:
                self._count_unsent(left)
                self._slow = self._loop.call_later(self._front.timing.body, self._expect_step)

    def _count_unsent(self, unsent: int) -> None:
        self._front.unsent += unsent - self._unsent
        self._unsent = unsent
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def abort(self) -> None:
        """End the connection now."""
        if self._wire is not None:
            self._wire.abort()
