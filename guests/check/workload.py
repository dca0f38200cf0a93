"""The requests that ``guests.check`` sends when it is given none: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from guests.protocol.message import encode_request

__all__ = ["make_workload"]

_METHODS = ("GET", "GET", "GET", "POST", "POST", "PUT", "PUT", "DELETE", "HEAD", "PATCH")
_NAMES = ("a", "b", "c", "alice", "bob", "1", "2", "17", "x/y", "%C3%A9", "index.html")
_QUERIES = ("", "", "", "?", "?limit=3", "?n=1", "?amount=5&to=bob", "?q=%00")
_BODIES = (b"", b"1", b"-5", b"hello", b"a=1&b=2", b'{"amount": 3, "to": "bob"}', b"\x00\xff\x80")


def make_workload(
    seed: int, count: int, own: Sequence[bytes] = (), paths: Sequence[str] = ()
) -> list[bytes]:
    """Return ``count`` requests as canonical bytes.

    ``own``: requests that a service's file gives for this; all of them come first and in order,
    the rest is mostly drawn from them.  ``paths``: paths that the service's source speaks of;
    without ``own`` the requests go to these, to names below them, and to a few paths of any
    service.
    """
    chance = random.Random(seed)
    requests = list(own[:count])
    while len(requests) < count:
        if own and chance.random() < 0.8:
            requests.append(chance.choice(own))
        else:
            requests.append(_make_request(chance, paths))
    return requests


def _make_request(chance: random.Random, paths: Sequence[str]) -> bytes:
    path = chance.choice(paths) if paths and chance.random() < 0.8 else "/"
    if path.endswith("/") and chance.random() < 0.7:
        path += chance.choice(_NAMES)
    elif chance.random() < 0.2:
        path += "/" + chance.choice(_NAMES)
    query = "" if "?" in path else chance.choice(_QUERIES)
    method = chance.choice(_METHODS)
    body = chance.choice(_BODIES) if method in ("POST", "PUT", "PATCH") else b""
    if chance.random() < 0.05:
        body = chance.randbytes(chance.randrange(5000))
    headers = [("content-type", "application/json")] if body.startswith(b"{") else []
    return encode_request(method, path + query, headers, body)
