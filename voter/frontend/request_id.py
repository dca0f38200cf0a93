"""Ids by which an HTTP request can be traced (``trivisor trace``).  Pure.

A client may give its own: ``X-Request-Id``, or the trace id of a ``traceparent`` (W3C Trace
Context, section 3.2).  A malformed one is ignored, as that standard demands: the request is
executed all the same, and the voter makes an id.  An id of nothing but digits counts as malformed,
because it could not be told from a sequence number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["HEADER", "find_ids"]

HEADER = "X-Request-Id"
"""Header of each reply that names its request; the client's own id, if it gave one."""

_ID = re.compile(rb"(?![0-9]+\Z)[A-Za-z0-9._~:+=@-]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""Version, trace id, and what only later versions than 00 may have."""


def find_ids(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """Return the ids that a client gave to its request; names of ``headers`` are in lower case."""
    given = trace = None
    for name, value in headers:
        if name == b"x-request-id":
            given = value if given is None else b""
        elif name == b"traceparent":
            trace = value if trace is None else b""
    if given is None and trace is None:
        return ()
    found = [given.decode()] if given and _ID.fullmatch(given) else []
    parent = _TRACEPARENT.fullmatch(trace) if trace else None
    if parent and (parent[3] is None or parent[1] != b"00"):
        found.append(parent[2].decode())
    return tuple(found)
