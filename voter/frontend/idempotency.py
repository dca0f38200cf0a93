"""``Idempotency-Key``: a request with one is executed once, however often it is sent.  Pure.

As in draft-ietf-httpapi-idempotency-key-header, with these choices: the key may be quoted (the
draft's form) or bare (as most clients send it), which is the same key; a retry while the first is
under way waits for the same reply, where the draft proposes 409; on methods that are safe (GET,
HEAD, OPTIONS) the header means nothing.  A key belongs to the caller, ``http:IP``: clients behind
one proxy share their keys, and one that comes from another address is another caller.  The service
gets the header as it came, with the one request that is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

from guests.protocol.message import MessageError
from voter.core.dedup import key_scope
from voter.core.entries import Once

__all__ = ["HEADER", "LONGEST_KEY", "REPLAYED", "find_key", "once_of"]

HEADER = b"idempotency-key"
REPLAYED = ("Idempotency-Replayed", "true")
"""Header of a reply that was released before; outside the vote."""
LONGEST_KEY = 255
"""Bytes, without quotes."""

_BARE = re.compile(rb"[!#-~][!-~]*")
_QUOTED = re.compile(rb'"((?:[!#-\[\]-~]|\\["\\])+)"')
_ESCAPED = re.compile(rb'\\(["\\])')


def find_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key that a request has, if it has one.  Raises MessageError."""
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


def once_of(key: bytes, caller: bytes, method: str, target: str, body: bytes) -> Once:
    """Return what makes a request be executed once: the same key stands for the same method, target
    and body.
    """
    start = f"{method} {target}\n".encode()
    return Once(key_scope(caller), key, blake2b(start + body, digest_size=16).digest())
