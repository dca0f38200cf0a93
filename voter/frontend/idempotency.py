"""``Idempotency-Key``: a request with a key is executed once, however often it is sent.  Pure.

This follows draft-ietf-httpapi-idempotency-key-header, with these choices:

- The key may be quoted (the draft's form) or bare (as most clients send it): it is the same key.
- A retry while the first request is under way waits for the same reply (the draft proposes 409).
- On safe methods (GET, HEAD, OPTIONS) the header has no meaning.
- A retry is the same request: method, target, body and the headers of SIGNIFICANT.  A client that
  got 412, corrected its If-Match and sends the same key again gets 422: it makes another request,
  and needs another key.  (The reply to the first one is 412, however often that is sent.)
- A key belongs to the caller, ``http:IP``.  Clients behind one proxy share their keys; a client
  with a new address is another caller.

The service gets the header as it was sent, with the one request that is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

from guests.protocol.message import MessageError
from voter.core.dedup import key_scope
from voter.core.entries import Once
from voter.frontend.request import HttpRequest

__all__ = ["HEADER", "LONGEST_KEY", "REPLAYED", "SIGNIFICANT", "find_key", "once_of"]

HEADER = b"idempotency-key"
REPLAYED = ("Idempotency-Replayed", "true")
"""Header of a reply that was released before; it is not voted on."""
SIGNIFICANT = frozenset(
    b"content-encoding content-language content-range content-type if-match if-modified-since"
    b" if-none-match if-range if-unmodified-since prefer range".split()
)
"""Headers that change what a request does.  Others may differ between a request and its retry:
Host, Authorization, Cookie, Date, User-Agent, trace ids, Accept.
"""
LONGEST_KEY = 255
"""Bytes of a key without quotes; a longer one is answered 400."""

_BARE = re.compile(rb"[!#-~][!-~]*")
_QUOTED = re.compile(rb'"((?:[!#-\[\]-~]|\\["\\])+)"')
_ESCAPED = re.compile(rb'\\(["\\])')


def find_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key of a request, or None.  Raises MessageError."""
    found = [value.strip(b" \t") for name, value in headers if name.lower() == HEADER]
    if not found:
        return None
    if len(found) > 1:
        raise MessageError("more than one Idempotency-Key")
    quoted = _QUOTED.fullmatch(found[0])
    key = _ESCAPED.sub(rb"\1", quoted[1]) if quoted else found[0]
    if not (quoted or _BARE.fullmatch(key)) or len(key) > LONGEST_KEY:
        raise MessageError(
            f"an Idempotency-Key is 1 to {LONGEST_KEY} visible ASCII characters, bare or quoted"
        )
    return key


def once_of(key: bytes, caller: bytes, request: HttpRequest) -> Once:
    """Return the identity of a request: its key, and a fingerprint of what it does."""
    lines = [b"%b: %b\n" % header for header in request.headers if header[0] in SIGNIFICANT]
    start = f"{request.method} {request.target}\n".encode() + b"".join(sorted(lines))
    content = b"%b\n%b" % (start, request.body)
    return Once(key_scope(caller), key, blake2b(content, digest_size=16).digest())
