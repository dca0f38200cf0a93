"""What a proxy does to headers (RFC 9110 section 7.6), on the way in and on the way out.  Pure.

In: headers that are meant for this hop only are taken away, the rest goes to the replicas in
canonical form.  Out: the same for the voted reply, and what replicas cannot agree on or need not
vote on (Date, Server, Via, how it was voted, the connection's fate) is added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from aiohttp import web

from guests.protocol.message import REASONS, MessageError, Reply
from voter.core.events import Release

__all__ = ["HOP_BY_HOP", "canonical_request", "origin_form", "to_response", "vote_header"]

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
_OURS = HOP_BY_HOP | {"content-length", "idempotency-replayed", "trivisor-vote"}
"""Headers of a reply that the front end decides on, whatever the service says."""
_NO_BODY = frozenset({204, 205, 304})
_ABSOLUTE = re.compile(r"https?://([^/?#]+)(.*)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def origin_form(target: str) -> tuple[str, str | None]:
    """Return a target as the replicas get it, and the authority that it named, if it did.

    Raises MessageError.
    """
    # There is no space in it, so printable ASCII is all that may be in it.
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

    What ``guests.protocol.message.encode_request`` would make of the same parts, but the parser
    has already
    checked them.  ``authority``, if there is one, takes the place of Host (RFC 9112 section 3.2.2).
    """
    headers = [(name.lower(), value) for name, value in headers]
    taken = _TAKEN
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
    """How a reply was voted, for example ``2/3; dissent=g3; seq=1042``.

    Of one that is told again only its place is kept: ``replayed; seq=1042``.
    """
    value = "replayed" if release.replayed else f"{release.agreed}/{of}"
    if release.dissent:
        value += f"; dissent={','.join(names[index] for index in release.dissent)}"
    return "Trivisor-Vote", f"{value}; seq={release.seq}"


def to_response(reply: Reply, *extra: tuple[str, str]) -> web.Response:
    """Return the response that a reply is sent as, with these headers besides.

    The names of ``reply``'s headers are in lower case.  aiohttp adds the length, Date and what
    becomes of the connection.  Raises MessageError for a header that cannot be sent.
    """
    taken: frozenset[str] = _OURS
    for name, value in reply.headers:
        if name == "connection":
            taken = taken | {option.strip().lower() for option in value.split(",")}
    headers = [(name, _sent(value)) for name, value in reply.headers if name not in taken]
    if not any(name == "server" for name, _ in headers):
        headers.append(("Server", "trivisor"))
    return web.Response(
        status=reply.status,
        reason=REASONS.get(reply.status),
        body=None if reply.status in _NO_BODY else reply.body,
        headers=[*headers, ("Via", "1.1 trivisor"), *extra],
    )


def _sent(value: str) -> str:
    """A header's value so that aiohttp, which writes UTF-8, writes the bytes that were voted for.

    They are changed if they are not UTF-8: Latin-1 becomes UTF-8.  Raises MessageError.
    """
    if value.isascii() and value.isprintable():
        return value
    if _CONTROL.search(value):
        raise MessageError("a control character in a header")
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return value
