"""Canonical HTTP/1.1 messages: requests and replies between voter, agent and service.

A request has exactly one form: header names in lower case, a content length if and only if there
is a body, no hop-by-hop header.  So all replicas get the same bytes, and the voter can compare
their replies byte for byte.  The voter treats these bytes as opaque.  The HTTP front end, the
client library and the agent decode them with this module.  Pure; standard library only.

This module is compiled (``guests.compiled``).  What a service makes of a Reply is ``Any`` here: so
no call checks its type, and the same bytes, or the same error, come of it in both forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from guests.compiled import mypyc_attr

__all__ = [
    "REASONS",
    "MessageError",
    "Reply",
    "Request",
    "decode_request",
    "encode_reply",
    "encode_request",
]

REASONS: Final = {
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

_TOKEN: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_MAX_HEADERS: Final = 128
_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"})
"""The usual methods, which need no check."""
_STATUS_LINES: Final = {
    status: f"HTTP/1.1 {status} {reason}\r\n" for status, reason in REASONS.items()
}
_NAMES: Final[dict[str, str]] = {}
"""Header names that were checked, in lower case: a service sends the same few names."""
_MAX_NAMES: Final = 256


class MessageError(ValueError):
    """Bytes are not a canonical message, or parts cannot be encoded as one."""


def _is_token(name: bytes) -> bool:
    return bool(name) and _TOKEN.issuperset(name)


def _check_name(name: Any) -> str:
    """Return a header's name in lower case.  Raises MessageError."""
    raw: bytes = name.encode("latin-1", "replace").lower()
    if not name.isascii() or not _is_token(raw):
        raise MessageError(f"header {name!r} has a name that cannot be sent")
    lower = raw.decode()
    if len(_NAMES) < _MAX_NAMES:
        _NAMES[name] = lower
    return lower


def _breaks_line(value: Any) -> bool:
    """Return whether a header's value contains a byte that would end its line."""
    # Numbers: to search for bytes, ``in`` raises and drops an exception each time.
    return 0x0A in value or 0x0D in value or 0 in value


def _check_value(name: Any, value: Any) -> None:
    """Raise MessageError if a header's value cannot be sent."""
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError as error:
        raise MessageError(f"header {name!r} has a value that is not Latin-1") from error
    if _breaks_line(raw):
        raise MessageError(f"header {name!r} has a value that cannot be sent")


def _join(start: str, headers: Any, body: Any) -> bytes:
    """Return the bytes of a message, whose first line is ``start``."""
    parts: list[str] = [start]
    for pair in headers:
        if isinstance(pair, tuple) and len(pair) == 2:  # without an iterator, which costs more
            name, value = pair[0], pair[1]
        else:
            name, value = pair
        lower = _NAMES.get(name) or _check_name(name)
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            _check_value(name, value)
        if lower != "content-length":
            parts.append(lower)
            parts.append(": ")
            parts.append(value)
            parts.append("\r\n")
    if body:
        parts.append(f"content-length: {len(body)}\r\n")
    parts.append("\r\n")
    head = "".join(parts).encode("latin-1")
    if type(body) is bytes:  # a subclass may add in its own way
        return head + body
    return b"%b%b" % (head, body)


def _decode_headers(block: bytes) -> list[tuple[str, str]]:
    """Return the names, in lower case, and values of header lines.  Raises MessageError."""
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


def _split_request(data: bytes) -> tuple[str, str, bytes, bytes]:
    """Return a request's method, target, body and header lines.  Raises MessageError."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        raise MessageError("a request without the empty line after its headers")
    # As text: mypyc has direct calls for its methods, which cost a quarter of those of bytes.
    text = head.decode("latin-1")
    size = text.find("\r\n")
    if size < 0:
        size = len(text)
    first = text.find(" ")
    second = text.find(" ", first + 1)
    if not 0 <= first < second or text[second:size] != " HTTP/1.1":
        raise MessageError("a malformed request line")
    method, target = text[:first], text[first + 1 : second]
    # It contains no space, so this accepts what `encode_request` accepts.
    if not target or not target.isascii() or not target.isprintable():
        raise MessageError("a target that is not percent-encoded ASCII")
    if method not in _METHODS and not _is_token(method.encode("latin-1")):
        raise MessageError("a method that is not a token")
    return method, target, body, head[size + 2 :]


def _split_reply(data: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Return status, body and headers of a reply from an untrusted source.  Raises MessageError."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        raise MessageError("a reply without the empty line after its headers")
    line, _, lines = head.partition(b"\r\n")
    parts = line.split(b" ", 2)
    if len(parts) != 3 or parts[0] != b"HTTP/1.1" or len(parts[1]) != 3:
        raise MessageError("a malformed status line")
    if not parts[1].isdigit() or not 200 <= int(parts[1]) <= 599:
        raise MessageError("a status that is not 200 to 599")
    return int(parts[1]), body, _decode_headers(lines)


@mypyc_attr(allow_interpreted_subclasses=True)
class Request:
    """One request as a service sees it.

    ``method``: in upper case.  ``target``: path and query, percent-encoded, as sent.  ``head``: the
    header lines as received.  ``headers`` decodes them at its first use; ``mentions`` is cheaper.
    """

    __slots__ = ("_headers", "body", "head", "method", "target")

    def __init__(self, method: str, target: str, body: bytes, head: bytes = b"") -> None:
        # As the compiled form does at the call.
        if not (isinstance(method, str) and isinstance(target, str)):  # type: ignore[redundant-expr]
            raise TypeError("a request's method and target are str")
        if not (isinstance(body, bytes) and isinstance(head, bytes)):  # type: ignore[redundant-expr]
            raise TypeError("a request's body and header lines are bytes")
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

    def mentions(self, text: bytes) -> bool:
        """Return whether the header lines contain ``text`` (in lower case) in any case."""
        # Not ``in``: see ``_breaks_line``.
        return self.head.lower().find(text) >= 0

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Decode canonical bytes.  Raises MessageError."""
        return cls(*_split_request(data))


def decode_request(data: bytes) -> Request:
    """Decode canonical bytes, as ``Request.decode`` does, but faster.  Raises MessageError."""
    method, target, body, lines = _split_request(data)
    return Request(method, target, body, lines)


def encode_request(
    method: Any,
    target: Any,
    headers: Iterable[tuple[str, str]] = (),
    body: Any = b"",
) -> bytes:
    """Return the canonical bytes of a request.

    ``target`` must be printable ASCII without spaces (percent-encode first).  Raises MessageError.
    """
    if not method.isascii() or not _is_token(method.encode()):
        raise MessageError(f"method {method!r} is not a token")
    if not target or not target.isascii() or not target.isprintable() or " " in target:
        raise MessageError(f"target {target!r} must be percent-encoded ASCII")
    return _join(f"{method} {target} HTTP/1.1\r\n", headers, body)


@mypyc_attr(allow_interpreted_subclasses=True)
class Reply:
    """A service's answer: a status from 200 to 599, a body and headers.

    Headers must be deterministic.  The front end adds Date and Server, outside the vote.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: Any = 200, body: Any = b"", headers: Any = ()) -> None:
        """``status``: int; ``body``: bytes or str; ``headers``: a mapping, or pairs of str."""
        self.status: Any = status
        self.body: Any = body.encode() if isinstance(body, str) else body
        self.headers: Any
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
        return cls(*_split_reply(data))


def encode_reply(reply: Any) -> bytes:
    """Return the bytes of a reply.  Raises MessageError if status or a header is invalid."""
    status = reply.status
    if not 200 <= status <= 599:
        raise MessageError(f"status {status} is not 200 to 599")
    line = _STATUS_LINES.get(status) or f"HTTP/1.1 {int(status)} Status\r\n"
    return _join(line, reply.headers, reply.body)
