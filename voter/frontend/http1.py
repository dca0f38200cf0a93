"""HTTP/1.1 requests off the wire: bytes in, whole requests or a refusal out.  Pure; no I/O.

``feed`` takes bytes however they are cut, ``next`` gives one request at a time; what lies behind it
waits as bytes, so a client that pipelines costs no more than the bytes it sent.  Strict where
leniency would let two readers see two different requests (RFC 9112 section 11): a bare LF, a folded
line, white space before a colon, a second Host or Content-Length, Content-Length beside
Transfer-Encoding are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

__all__ = ["HEAD_LIMIT", "HEADER_LIMIT", "TARGET_LIMIT", "HttpRequest", "Refused", "RequestReader"]

HEAD_LIMIT = 32 << 10
"""Largest request line with all headers, in bytes."""
TARGET_LIMIT = 8 << 10
"""Largest request target in bytes."""
HEADER_LIMIT = 100
"""Most header lines of one request."""
_CHUNK_LINE_LIMIT = 256
_TRAILER_LIMIT = 8 << 10

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VISIBLE = bytes(range(0x21, 0x7F))
_TEXT = bytes({0x09, *range(0x20, 0x100)} - {0x7F})
"""What may stand in a header line (RFC 9110 section 5.5: no control character but the tab)."""
_BARE_LF = re.compile(rb"(?<!\r)\n")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
_VERSION = re.compile(rb"HTTP/\d\.\d")
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"})
_CHUNKED = -1


class Refused(Exception):
    """A request that cannot be taken; the connection ends after the answer ``status``."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class HttpRequest(NamedTuple):
    """One whole request.

    ``target`` is in origin form (or ``*``), percent-encoding kept.  ``headers`` are names in lower
    case and values, as bytes; what ``guests.message.encode_request`` would refuse is not in them.
    ``nominated`` are the headers that Connection names as meant for this hop only.
    """

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    nominated: frozenset[bytes]
    body: bytes
    keep_alive: bool
    http10: bool


class _Head(NamedTuple):
    """A request whose body may still be on its way; ``length`` in bytes, or _CHUNKED."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    nominated: frozenset[bytes]
    keep_alive: bool
    http10: bool
    length: int
    expects: bool


@lru_cache(maxsize=512)
def _name(raw: bytes) -> bytes:
    """Return a header's name in lower case, or nothing if it cannot be one."""
    return b"" if raw.translate(None, _TOKEN) else raw.lower()


def _line(line: bytes) -> tuple[str, str, bytes | None, bool]:
    """Take a request line apart: method, target in origin form, authority if the target held one,
    and whether it is HTTP/1.0.  Raises Refused."""
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[0] or parts[0].translate(None, _TOKEN):
        raise Refused(400, "the request line is not METHOD TARGET HTTP/1.1")
    method, raw, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise Refused(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
        raise Refused(400, "the request line does not end in HTTP/1.1")
    if len(raw) > TARGET_LIMIT:
        raise Refused(414, f"the target is over the limit of {TARGET_LIMIT} bytes")
    if raw.translate(None, _VISIBLE):
        raise Refused(400, "the target holds bytes that must be percent-encoded")
    authority = None
    if not raw.startswith(b"/"):
        if method == b"CONNECT":
            raise Refused(501, "no tunnels are made here")
        if absolute := _ABSOLUTE.fullmatch(raw):
            authority, raw = absolute[1], absolute[2]
            if not raw.startswith(b"/"):
                raw = b"/" + raw
        elif raw != b"*" or method != b"OPTIONS":
            raise Refused(400, "the target is not a path that begins with /")
    return method.decode("ascii"), raw.decode("ascii"), authority, version == b"HTTP/1.0"


def _header(line: bytes) -> tuple[bytes, bytes]:
    """Take a header line apart: name in lower case, value.  Raises Refused."""
    raw, colon, value = line.partition(b":")
    name = _name(raw)
    if not colon or not name:
        raise Refused(400, "a header line is not NAME: VALUE")
    return name, value.strip(b" \t")


def _only(values: dict[bytes, list[bytes]], name: bytes) -> bytes | None:
    """The one value of a header that must not be repeated.  Raises Refused."""
    found = values.get(name)
    if not found:
        return None
    if len(found) > 1:
        raise Refused(400, f"more than one {name.decode()} header")
    return found[0]


def _body_length(values: dict[bytes, list[bytes]], http10: bool, max_body: int) -> int:
    """How long the body is, by the headers; _CHUNKED if it says so itself.  Raises Refused."""
    length = _only(values, b"content-length")
    coding = values.get(b"transfer-encoding")
    if coding:
        if length is not None or http10:
            raise Refused(400, "transfer-encoding beside content-length, or in HTTP/1.0")
        if [value.lower() for value in coding] != [b"chunked"]:
            raise Refused(501, "the only transfer coding understood here is chunked")
        return _CHUNKED
    if length is None:
        return 0
    if not length.isdigit():
        raise Refused(400, "content-length is not a number")
    if len(length) > 18 or int(length) > max_body:
        raise Refused(413, f"the body is over the limit of {max_body} bytes")
    return int(length)


def _read_head(block: bytes, max_body: int) -> _Head:
    """Take the bytes before the empty line apart.  Raises Refused."""
    if block.replace(b"\r\n", b"").translate(None, _TEXT):
        raise Refused(400, "a control character (or a line that ends without CR) in the headers")
    first, *lines = block.split(b"\r\n")
    method, target, authority, http10 = _line(first)
    if len(lines) > HEADER_LIMIT:
        raise Refused(431, f"more than {HEADER_LIMIT} headers")
    headers = [_header(line) for line in lines]
    framing: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _FRAMING:
            framing.setdefault(name, []).append(value)
    host = _only(framing, b"host")
    if host is None and not http10:
        raise Refused(400, "HTTP/1.1 needs a Host header")
    if authority is not None:  # RFC 9112 section 3.2.2: it comes before Host
        headers = [(b"host", authority), *(h for h in headers if h[0] != b"host")]
    length = _body_length(framing, http10, max_body)
    nominated: frozenset[bytes] = frozenset()
    keep_alive = not http10
    if connection := framing.get(b"connection"):
        nominated = frozenset(o.strip().lower() for o in b",".join(connection).split(b","))
        keep_alive = b"close" not in nominated and (not http10 or b"keep-alive" in nominated)
    expects = False
    if expect := framing.get(b"expect"):
        if [value.lower() for value in expect] != [b"100-continue"]:
            raise Refused(417, "the only expectation understood here is 100-continue")
        expects = not http10
    return _Head(method, target, headers, nominated, keep_alive, http10, length, expects)


class RequestReader:
    """Reads the requests of one connection.  After Refused nothing more can be read."""

    __slots__ = ("_body", "_buffer", "_head", "_left", "_max_body", "_searched", "_trailer",
                 "wants_continue")  # fmt: skip

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._buffer = bytearray()
        self._searched = 0  # where a search for the end of the head goes on
        self._head: _Head | None = None
        self._body = bytearray()  # of a chunked request, as far as it is there
        self._left = 0  # bytes of the chunk under way with its CRLF; 0: a chunk's size is next
        self._trailer = -1  # bytes of trailer read; -1: the last chunk has not come
        self.wants_continue = False
        """The client waits for ``100 Continue`` before it sends the body; reset by the caller."""

    @property
    def held(self) -> int:
        """Bytes held: of a request that is not complete, and of all behind it."""
        return len(self._buffer) + len(self._body)

    @property
    def started(self) -> bool:
        """Whether part of a request is there."""
        return bool(self._buffer) or self._head is not None

    @property
    def in_body(self) -> bool:
        """Whether the headers of the request under way are complete."""
        return self._head is not None

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        self._buffer += data

    def next(self) -> HttpRequest | None:
        """Return the next whole request, or None if more bytes are needed.  Raises Refused."""
        head = self._head
        if head is None:
            if not self._buffer:
                return None
            head = self._find_head()
            if head is None:
                return None
        if head.length == _CHUNKED:
            if not self._read_chunks():
                self._note_wait(head)
                return None
            body = bytes(self._body)
            self._body = bytearray()
        else:
            if len(self._buffer) < head.length:
                self._note_wait(head)
                return None
            body = bytes(self._buffer[: head.length])
            del self._buffer[: head.length]
        self._head = None
        self.wants_continue = False
        return HttpRequest(
            head.method,
            head.target,
            head.headers,
            head.nominated,
            body,
            head.keep_alive,
            head.http10,
        )

    def _note_wait(self, head: _Head) -> None:
        """The body is not complete: is the client waiting to be told to send it?"""
        if self._head is None:
            self._head = head
            self.wants_continue = head.expects and not self.held

    def _find_head(self) -> _Head | None:
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            del buffer[:2]  # RFC 9112 section 2.2: some clients send one after a body
        end = buffer.find(b"\r\n\r\n", self._searched)
        if end < 0:
            self._check_early()
            return None
        if end > HEAD_LIMIT:
            self._refuse_long()
        block = bytes(buffer[:end])
        del buffer[: end + 4]
        self._searched = 0
        return _read_head(block, self._max_body)

    def _check_early(self) -> None:
        """Refuse at once what can no longer become a request, rather than wait for its end."""
        buffer, before = self._buffer, self._searched
        if len(buffer) > HEAD_LIMIT:
            self._refuse_long()
        if _BARE_LF.search(buffer, before):
            raise Refused(400, "a line that ends without CR")
        if buffer[:1].strip(b"\r").translate(None, _TOKEN):
            raise Refused(400, "this is not HTTP")
        end = buffer.find(b"\r\n")
        if end > 0 and before <= end + 2:
            _line(bytes(buffer[:end]))
        self._searched = max(0, len(buffer) - 3)

    def _refuse_long(self) -> None:
        if self._buffer.find(b"\r\n", 0, HEAD_LIMIT) < 0:
            raise Refused(414, f"the request line is over the limit of {HEAD_LIMIT} bytes")
        raise Refused(431, f"the headers are over the limit of {HEAD_LIMIT} bytes")

    def _read_chunks(self) -> bool:
        """Move what is there of a chunked body out of the buffer; tell whether it is complete."""
        buffer = self._buffer
        at = 0
        try:
            while self._trailer < 0:
                if self._left:
                    data = min(self._left - 2, len(buffer) - at)
                    if data > 0:
                        self._body += buffer[at : at + data]
                        at += data
                        self._left -= data
                    if self._left > 2 or len(buffer) - at < 2:
                        return False
                    if buffer[at : at + 2] != b"\r\n":
                        raise Refused(400, "a chunk does not end where its size says")
                    at += 2
                    self._left = 0
                end = buffer.find(b"\r\n", at, at + _CHUNK_LINE_LIMIT)
                if end < 0:
                    if len(buffer) - at >= _CHUNK_LINE_LIMIT or b"\n" in buffer[at:]:
                        raise Refused(400, "a chunk's size line is too long or malformed")
                    return False
                size = self._chunk_size(bytes(buffer[at:end]))
                at = end + 2
                if size:
                    self._left = size + 2
                else:
                    self._trailer = 0
            while True:  # trailer fields are dropped (RFC 9110 section 6.5.1)
                end = buffer.find(b"\r\n", at)
                if self._trailer + (len(buffer) if end < 0 else end) - at > _TRAILER_LIMIT:
                    raise Refused(431, f"the trailers are over the limit of {_TRAILER_LIMIT} bytes")
                if end < 0:
                    return False
                line, at = bytes(buffer[at:end]), end + 2
                self._trailer += len(line) + 2
                if line.translate(None, _TEXT):
                    raise Refused(400, "a control character in the trailers")
                if not line:
                    self._trailer = -1
                    return True
                _header(line)
        finally:
            del buffer[:at]

    def _chunk_size(self, line: bytes) -> int:
        digits = line.partition(b";")[0]
        if (
            line.translate(None, _TEXT)
            or not 1 <= len(digits) <= 16
            or digits.strip(b"0123456789abcdefABCDEF")
        ):
            raise Refused(400, "a chunk's size is not a hexadecimal number")
        size = int(digits, 16)
        if len(self._body) + size > self._max_body:
            raise Refused(413, f"the body is over the limit of {self._max_body} bytes")
        return size
