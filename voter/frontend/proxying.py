"""What a proxy does to headers (RFC 9110, section 7.6), in both directions.  Pure.

In: headers of this hop are removed, and the rest goes to the replicas in canonical form.  Out: the
same for the voted reply; headers that replicas cannot agree on or need not vote on (Date, Server,
Via, how it was voted, Connection) are added.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from guests.protocol.message import REASONS, MessageError, Reply
from voter.core.events import Release

__all__ = ["HOP_BY_HOP", "canonical_request", "encode_response", "origin_form", "vote_header"]

HOP_BY_HOP = frozenset(
    ["connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authentication-info",
     "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"]
)  # fmt: skip
"""Headers of one hop; Connection may name others."""
_REMOVED = frozenset(name.encode() for name in HOP_BY_HOP) | {b"content-length"}
_OURS = HOP_BY_HOP | {"content-length", "idempotency-replayed", "trivisor-vote", "x-request-id"}
"""Headers of a reply that the front end sets, whatever the service sends."""
_NO_LENGTH = frozenset({204, 304})
_NO_BODY = _NO_LENGTH | {205}
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | REASONS
_ABSOLUTE = re.compile(r"https?://([^/?#]+)(.*)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def origin_form(target: str) -> tuple[str, str | None]:
    """Return a target as the replicas get it, and the authority that it named (or None).

    Raises MessageError.
    """
    if not target.isascii() or not target.isprintable():
        raise MessageError("the target holds bytes that must be percent-encoded")
    if target.startswith("/") or target == "*":
        return target, None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise MessageError("the target is not a path that begins with /")
    return absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}", absolute[1]


def canonical_request(
    method: str,
    target: str,
    headers: Iterable[tuple[bytes, bytes]],
    authority: str | None,
    body: bytes,
) -> bytes:
    """Return the bytes that go to the replicas.

    They are what ``guests.protocol.message.encode_request`` makes of the same parts, which the
    parser has already checked.  Names of ``headers`` are in lower case.  ``authority``, if there is
    one, takes the place of Host (RFC 9112, section 3.2.2).
    """
    taken = _REMOVED
    for name, value in headers:
        if name == b"connection":
            taken = taken | {option.strip().lower() for option in value.split(b",")}
    if authority is not None:
        taken = taken | {b"host"}
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] not in taken]
    if authority is not None:
        lines.insert(0, b"host: %b\r\n" % authority.encode())
    if body:
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (
        method.encode(),
        target.encode(),
        b"".join(lines),
        body,
    )


def vote_header(release: Release, of: int, names: Sequence[str]) -> tuple[str, str]:
    """Return the header that says how a reply was voted: ``2/3; dissent=g3; seq=1042``.

    For a retry only the sequence number is known: ``replayed; seq=1042``.
    """
    value = "replayed" if release.replayed else f"{release.agreed}/{of}"
    if release.dissent:
        value += f"; dissent={','.join(names[index] for index in release.dissent)}"
    return "Trivisor-Vote", f"{value}; seq={release.seq}"


def encode_response(
    reply: Reply, *extra: tuple[str, str], head: bool = False, connection: str = ""
) -> bytes:
    """Return the bytes of the response that a reply is sent as, with these headers added.

    ``head``: it answers HEAD; ``connection``: the value of Connection.  The names of ``reply``'s
    headers are in lower case.  Raises MessageError for a header that cannot be sent.
    """
    status, body = reply.status, reply.body
    taken: frozenset[str] = _OURS
    for name, value in reply.headers:
        if name == "connection":
            taken = taken | {option.strip().lower() for option in value.split(",")}
    headers = [header for header in reply.headers if header[0] not in taken]
    for _, value in headers:
        if not value.isprintable() and _CONTROL.search(value):
            raise MessageError("a control character in a header")
    names = {name for name, _ in headers}
    if "server" not in names:
        headers.append(("Server", "trivisor"))
    if "date" not in names:
        headers.append(("Date", _date(int(time.time()))))
    if status in _NO_BODY:
        body = b""
    elif body and "content-type" not in names:
        headers.append(("Content-Type", "application/octet-stream"))
    headers += [("Via", "1.1 trivisor"), *extra]
    # A reply to HEAD without a body does not say how long the body would have been.
    if status not in _NO_LENGTH and (body or not head):
        headers.append(("Content-Length", str(len(body))))
    if connection:
        headers.append(("Connection", connection))
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    start = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n{''.join(lines)}\r\n"
    return start.encode("latin-1") + (b"" if head else body)


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
