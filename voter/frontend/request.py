"""HTTP/1.1 requests from a stream of bytes.  Pure.

Theory of operation.  A *head* (request line and headers) is collected here until its empty line,
checked against the limits and against forms that two readers could read in two ways, and parsed by
h11.  A body with Content-Length is as many of the bytes that follow; h11 decodes a chunked one.
Each request has an h11 connection of its own, for the voter writes responses without h11: they are
always whole, so their framing is one Content-Length.

Added to h11, which is more lenient: lines of a head end with CR LF; no folded lines; one
Content-Length, with nothing but digits; never both Content-Length and Transfer-Encoding; sizes
have limits.  Extensions and trailers of chunks are dropped, so h11's leniency there is harmless:
replicas get every body with its length (``voter.frontend.proxying``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import h11

from guests.protocol.message import MessageError
from voter.frontend.proxying import origin_form

__all__ = ["HEADER_LIMIT", "HEAD_LIMIT", "LINE_LIMIT", "BadRequest", "HttpRequest", "RequestReader"]

HEAD_LIMIT = 32 << 10
"""Largest request line with all headers, in bytes; a larger one is answered 431."""
LINE_LIMIT = 8 << 10
"""Longest line of a head, in bytes; a longer one is answered 414 or 431."""
HEADER_LIMIT = 100
"""Most header lines of one request; more are answered 431."""
SLICE = 16 << 10
"""Bytes of a chunked body that h11 gets at a time."""
EVENTS = 64
"""Chunks that one call of ``next`` decodes: they cost 5 to 10 us each, however small they are."""
EMPTY_LINES = 4
"""Empty lines before a request that are ignored (RFC 9112, section 2.2)."""

_START = re.compile(rb"[\r!#-'*+\-.0-9A-Z^_`a-z|~]")
_REQUEST_LINE = re.compile(rb"[!#-'*+\-.0-9A-Z^_`a-z|~]+ [^ ]+ HTTP/[0-9]\.[0-9]")
_LENGTHS = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)


class BadRequest(Exception):
    """A request that cannot be read; the connection ends after an answer with ``status``."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class HttpRequest(NamedTuple):
    """A complete request.  ``target`` is in origin form."""

    method: str
    target: str
    authority: str | None  # the host named by an absolute target, otherwise None
    headers: list[tuple[bytes, bytes]]  # names in lower case
    keep_alive: bool
    old: bool  # HTTP/1.0
    body: bytes = b""


class RequestReader:
    """Reads the requests of one connection."""

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._buffer = bytearray()
        self._head: HttpRequest | None = None  # read, while its body is not complete
        self._length = 0  # of its body
        self._chunks: h11.Connection | None = None  # decodes its body, if that is chunked
        self._decoded = bytearray()
        self._searched = 0  # bytes of the buffer that do not hold the end of a head
        self._check_at = 0  # bytes of an incomplete head at which it is checked again
        self.more = False
        """Whether ``next`` has more to decode without more bytes."""
        self.expects_continue = False
        """Whether the client waits for "100 Continue" before it sends the body."""

    @property
    def held(self) -> int:
        """Bytes of requests that are not complete."""
        return len(self._buffer) + len(self._decoded)

    @property
    def in_body(self) -> bool:
        """Whether the head of a request is read and its body is not complete."""
        return self._head is not None

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._buffer += data

    def next(self) -> HttpRequest | None:
        """Return the next request, or None if it is not complete.  Raises BadRequest."""
        if self._head is None:
            self._read_head()
        head = self._head
        if head is None:
            return None
        if self._chunks is not None:
            body = self._decode(self._chunks)
        elif len(self._buffer) >= self._length:
            body = bytes(self._buffer[: self._length])
            del self._buffer[: self._length]
        else:
            body = None
        if body is None:
            return None
        self._head, self._chunks, self.expects_continue = None, None, False
        return head._replace(body=body) if body else head

    def end(self) -> None:
        """Raise BadRequest if the client sends no more, and has not completed a request."""
        if self._buffer or self._head is not None:
            raise BadRequest(400, "the request ends before its end")

    def _read_head(self) -> None:
        buffer = self._buffer
        for _ in range(EMPTY_LINES):
            if buffer.startswith(b"\r\n"):
                del buffer[:2]
        end = buffer.find(b"\r\n\r\n", self._searched, HEAD_LIMIT)
        if end < 0 and len(buffer) < self._check_at:
            self._searched = max(0, len(buffer) - 3)
            return
        head = bytes(buffer[: HEAD_LIMIT + 1 if end < 0 else end + 4])
        _check_head(head)
        if end < 0:  # checked at each doubling, so that the work is linear
            self._searched = max(0, len(buffer) - 3)
            self._check_at = min(2 * len(buffer), HEAD_LIMIT + 1)
            return
        self._searched = self._check_at = 0
        del buffer[: end + 4]
        lengths = [value.strip(b" \t") for value in _LENGTHS.findall(head)]
        if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
            raise BadRequest(400, "the Content-Length is not one number")
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self._max_body):
            self._refuse_body()
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=LINE_LIMIT)
        try:
            parser.receive_data(head)
            request = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(error.error_status_hint, str(error)) from error
        if not isinstance(request, h11.Request):
            raise BadRequest(400, "the request is malformed")
        self._head = _checked(request, bool(lengths))
        self._length = int(lengths[0]) if lengths else 0
        fields = dict(self._head.headers)
        if b"transfer-encoding" in fields:
            self._chunks = parser
        self.expects_continue = b"expect" in fields and not self._head.old

    def _decode(self, parser: h11.Connection) -> bytes | None:
        """Decode EVENTS parts of a chunked body; return the body once it is complete."""
        self.more = False
        try:
            for _ in range(EVENTS):
                event = parser.next_event()
                if isinstance(event, h11.Data):
                    self._decoded += event.data
                    if len(self._decoded) > self._max_body:
                        self._refuse_body()
                elif isinstance(event, h11.EndOfMessage):
                    self._buffer[:0] = parser.trailing_data[0]
                    body, self._decoded = bytes(self._decoded), bytearray()
                    return body
                elif not self._buffer:
                    return None
                else:
                    parser.receive_data(bytes(self._buffer[:SLICE]))
                    del self._buffer[:SLICE]
        except h11.RemoteProtocolError as error:
            raise BadRequest(400, "the chunks of the body are malformed") from error
        self.more = True
        return None

    def _refuse_body(self) -> None:
        raise BadRequest(413, f"the body is over the limit of {self._max_body} bytes")


def _check_head(head: bytes) -> None:
    """Raise BadRequest if a head, or the part of it that is here, cannot be taken."""
    if head and not _START.match(head):
        raise BadRequest(400, "this is not HTTP")
    lines = head.split(b"\r\n")
    if len(lines[0]) > LINE_LIMIT:
        raise BadRequest(414, f"the request line is over the limit of {LINE_LIMIT} bytes")
    if len(lines) > 1 and not _REQUEST_LINE.fullmatch(lines[0]):
        raise BadRequest(400, "the request line is malformed")
    # The empty line at the end makes two empty parts.
    if len(head) > HEAD_LIMIT or len(lines) > HEADER_LIMIT + 3 or max(map(len, lines)) > LINE_LIMIT:
        raise BadRequest(
            431,
            f"the headers are over a limit: {HEADER_LIMIT} lines, {LINE_LIMIT} bytes a line,"
            f" {HEAD_LIMIT} bytes",
        )
    if head.count(b"\n") != len(lines) - 1 or b"\n " in head or b"\n\t" in head:
        raise BadRequest(400, "a line does not end with CR LF, or is folded")


def _checked(request: h11.Request, has_length: bool) -> HttpRequest:
    """Return a request without its body.  Raises BadRequest if it cannot be taken."""
    headers, fields = list(request.headers), dict(request.headers)
    method, version = request.method.decode(), request.http_version
    if method == "CONNECT":
        raise BadRequest(501, "this server makes no tunnels")
    try:
        target, authority = origin_form(request.target.decode())
    except MessageError as error:
        raise BadRequest(400, str(error)) from error
    if target == "*" and method != "OPTIONS":
        raise BadRequest(400, "the target * is for OPTIONS only")
    if version not in (b"1.1", b"1.0"):
        raise BadRequest(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    if b"transfer-encoding" in fields and (has_length or version == b"1.0"):
        raise BadRequest(400, "Transfer-Encoding with Content-Length, or in HTTP/1.0")
    if fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise BadRequest(417, "the only expectation understood here is 100-continue")
    old = version == b"1.0"
    keep_alive = not old
    if b"connection" in fields:
        values = b",".join(value for name, value in headers if name == b"connection")
        options = {option.strip() for option in values.lower().split(b",")}
        keep_alive = b"keep-alive" in options if old else b"close" not in options
    return HttpRequest(method, target, authority, headers, keep_alive, old)
