"""What a proxy does to headers (RFC 9110 section 7.6), on the way in and on the way out.  Pure.

In: headers that are meant for this hop only are taken away, the rest goes to the replicas in
canonical form.  Out: the same for the voted reply, and what replicas cannot agree on or need not
vote on (Date, Server, Via, how it was voted, the connection's fate) is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus

from guests.message import REASONS, Reply
from voter.core.events import Release
from voter.frontend.http1 import HttpRequest

__all__ = ["HOP_BY_HOP", "canonical_request", "encode_response", "vote_header"]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one hop; Connection may name more."""
_TAKEN = frozenset(name.encode() for name in HOP_BY_HOP) | {b"content-length"}
_OURS = HOP_BY_HOP | {"content-length", "trivisor-vote"}
"""Headers of a reply that the front end decides on, whatever the service says."""
_NO_BODY = frozenset({204, 205, 304})
_NO_LENGTH = frozenset({204, 304})
_VIA = "Via: 1.1 trivisor\r\n"
_SERVER_VIA = "Server: trivisor\r\n" + _VIA


def canonical_request(request: HttpRequest) -> bytes:
    """Return the bytes that go to the replicas.

    What ``guests.message.encode_request`` would make of the same parts, but the reader has already
    checked them.
    """
    method, target, headers, nominated, body, _, _ = request
    taken = _TAKEN | nominated if nominated else _TAKEN
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] not in taken]
    if body:
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (
        method.encode(),
        target.encode(),
        b"".join(lines),
        body,
    )


def vote_header(release: Release, of: int, names: Sequence[str]) -> tuple[str, str]:
    """How a reply was voted, for example ``2/3; dissent=g3; seq=1042``."""
    value = f"{release.agreed}/{of}"
    if release.dissent:
        value += f"; dissent={','.join(names[index] for index in release.dissent)}"
    return "Trivisor-Vote", f"{value}; seq={release.seq}"


_PHRASES = {known.value: known.phrase for known in HTTPStatus} | REASONS
_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, 'Status')}\r\n" for status in range(200, 600)
}


def encode_response(
    reply: Reply,
    date: str,
    *,
    extra: Iterable[tuple[str, str]] = (),
    head_only: bool = False,
    keep_alive: bool = True,
    http10: bool = False,
) -> bytes:
    """Return the bytes of a response.

    The names of ``reply``'s headers are in lower case; ``date`` is the Date header's value now;
    ``head_only``: it answers HEAD.  The length is stated unless there can be no body, or the
    service gave none to a HEAD (then nobody knows it).
    """
    status, body, headers = reply.status, reply.body, reply.headers
    taken: frozenset[str] = _OURS
    lines = [_STATUS_LINES[status]]
    dated = served = False
    for name, value in headers:
        if name == "connection":
            taken = taken | {option.strip().lower() for option in value.split(",")}
    for name, value in headers:
        if name not in taken:
            lines.append(f"{name}: {value}\r\n")
            dated = dated or name == "date"
            served = served or name == "server"
    if not dated:
        lines.append(f"Date: {date}\r\n")
    lines.append(_VIA if served else _SERVER_VIA)
    for name, value in extra:
        lines.append(f"{name}: {value}\r\n")
    if status in _NO_BODY:
        body = b""
    if status not in _NO_LENGTH and (body or not head_only):
        lines.append(f"Content-Length: {len(body)}\r\n")
    if not keep_alive:
        lines.append("Connection: close\r\n")
    elif http10:
        lines.append("Connection: keep-alive\r\n")
    lines.append("\r\n")
    head = "".join(lines).encode("latin-1")
    return head if head_only else head + body
