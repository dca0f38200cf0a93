"""Canonical HTTP/1.1 messages: requests and replies between voter, agent and service.

A request has exactly one form: header names in lower case, a content length if and only if there
is a body, no hop-by-hop header.  So all replicas get the same bytes, and the voter can compare
their replies byte for byte.  The voter treats these bytes as opaque.  The HTTP front end, the
client library and the agent decode them with this module.  Pure; standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

__all__ = ["REASONS", "MessageError", "Reply", "Request", "encode_reply", "encode_request"]

REASONS: dict[int, str] = {
    200: "OK",
    201: "Created",
    204: "No Content",
    206: "Partial Content",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
    428: "Precondition Required",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_MAX_HEADERS = 128
_METHODS: Final = {
    method.encode(): method for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")
}
"""The usual methods, which need no check."""
_STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b" % (status, reason.encode()) for status, reason in REASONS.items()
}


class MessageError(ValueError):
    """Bytes are not a canonical message, or parts cannot be encoded as one."""


def _is_token(name: bytes) -> bool:
    return bool(name) and _TOKEN.issuperset(name)


def _breaks_line(value: bytes) -> bool:
    """Return whether a header's value contains a byte that would end its line."""
    return b"\n" in value or b"\r" in value or b"\0" in value


@lru_cache(maxsize=256)
def _encode_name(name: str) -> bytes:
    """Return a header's encoded name (cached: a service sends the same few names)."""
    raw = name.encode("latin-1", "replace").lower()
    if not name.isascii() or not _is_token(raw):
        raise MessageError(f"header {name!r} has a name that cannot be sent")
    return raw


def _encode_headers(headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    lines = []
    for name, value in headers:
        raw_name = _encode_name(name)
        try:
            raw_value = value.encode("latin-1")
        except UnicodeEncodeError as error:
            raise MessageError(f"header {name!r} has a value that is not Latin-1") from error
        if b"\n" in raw_value or b"\r" in raw_value or b"\0" in raw_value:
            raise MessageError(f"header {name!r} has a value that cannot be sent")
        if raw_name != b"content-length":
            lines.append(b"%b: %b\r\n" % (raw_name, raw_value))
    if body:
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"".join(lines)


def _decode_headers(block: bytes) -> list[tuple[str, str]]:
    headers = []
    if block:
        # Counted before they are split, which takes 15 ms for a MiB.
        if block.count(b"\r\n") >= _MAX_HEADERS:
            raise MessageError(f"more than {_MAX_HEADERS} headers")
        for line in block.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if not colon or not _is_token(name) or _breaks_line(value):
                raise MessageError("a header line is malformed")
            headers.append((name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")))
    return headers


class Request:
    """One request as a service sees it.

    ``method``: in upper case.  ``target``: path and query, percent-encoded, as sent.  ``head``: the
    header lines as received.  ``headers`` decodes them at its first use; a service can search
    ``head`` first, which is cheaper.
    """

    __slots__ = ("_headers", "body", "head", "method", "target")

    def __init__(self, method: str, target: str, body: bytes, head: bytes = b"") -> None:
        self.method = method
        self.target = target
        self.body = body
        self.head = head
        self._headers: dict[str, str] | None = None

    @property
    def path(self) -> str:
        """The target without its query, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def path_bytes(self) -> bytes:
        """The percent-decoded path."""
        return unquote_to_bytes(self.path)

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; the last one of a name counts."""
        text = self.target.partition("?")[2]
        return dict(parse_qsl(text, keep_blank_values=True)) if text else {}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by lower-case name; values of repeated headers are joined by a comma."""
        if self._headers is None:
            headers: dict[str, str] = {}
            for name, value in _decode_headers(self.head):
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            self._headers = headers
        return self._headers

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Decode canonical bytes.  Raises MessageError."""
        head, end, body = data.partition(b"\r\n\r\n")
        if not end:
            raise MessageError("a request without the empty line after its headers")
        line, _, rest = head.partition(b"\r\n")
        parts = line.split(b" ")
        if len(parts) != 3 or parts[2] != b"HTTP/1.1":
            raise MessageError("a malformed request line")
        target = parts[1].decode("latin-1")
        # It contains no space, so this accepts what `encode_request` accepts.
        if not target or not target.isascii() or not target.isprintable():
            raise MessageError("a target that is not percent-encoded ASCII")
        method = _METHODS.get(parts[0])
        if method is None:
            if not _is_token(parts[0]):
                raise MessageError("a method that is not a token")
            method = parts[0].decode("latin-1")
        return cls(method, target, body, rest)


def encode_request(
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> bytes:
    """Return the canonical bytes of a request.

    ``target`` must be printable ASCII without spaces (percent-encode first).  Raises MessageError.
    """
    # A lone surrogate must not become a "?", which is another target.
    raw_method, raw_target = (text.encode("utf-8", "surrogatepass") for text in (method, target))
    if not _is_token(raw_method):
        raise MessageError(f"method {method!r} is not a token")
    if not raw_target or any(byte <= 0x20 or byte >= 0x7F for byte in raw_target):
        raise MessageError(f"target {target!r} must be percent-encoded ASCII")
    head = _encode_headers(headers, body)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (raw_method, raw_target, head, body)


class Reply:
    """A service's answer: a status from 200 to 599, a body and headers.

    Headers must be deterministic.  The front end adds Date and Server, outside the vote.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes | str = b"",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> None:
        self.status = status
        self.body = body.encode() if isinstance(body, str) else body
        self.headers: Sequence[tuple[str, str]]
        if isinstance(headers, tuple):  # immutable, so it needs no copy
            self.headers = headers
        elif isinstance(headers, Mapping):
            self.headers = list(headers.items())
        else:
            self.headers = list(headers)

    def header(self, name: str) -> str | None:
        """Return the first header of this name, in any case, or None."""
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), None)

    @classmethod
    def decode(cls, data: bytes) -> Reply:
        """Decode a reply from an untrusted source.  Raises MessageError."""
        head, end, body = data.partition(b"\r\n\r\n")
        if not end:
            raise MessageError("a reply without the empty line after its headers")
        line, _, rest = head.partition(b"\r\n")
        parts = line.split(b" ", 2)
        if len(parts) != 3 or parts[0] != b"HTTP/1.1" or len(parts[1]) != 3:
            raise MessageError("a malformed status line")
        if not parts[1].isdigit() or not 200 <= int(parts[1]) <= 599:
            raise MessageError("a status that is not 200 to 599")
        return cls(int(parts[1]), body, _decode_headers(rest))


def encode_reply(reply: Reply) -> bytes:
    """Return the bytes of a reply.  Raises MessageError if status or a header is invalid."""
    status = reply.status
    if not 200 <= status <= 599:
        raise MessageError(f"status {status} is not 200 to 599")
    head = _encode_headers(reply.headers, reply.body)
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status" % status
    return b"%b\r\n%b\r\n%b" % (line, head, reply.body)
