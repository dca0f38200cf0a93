"""The model of a service: the service itself, run in this process.

A service is deterministic, so a reply is right if the model gives the same bytes for the same
request at the same place of the order.  Every oracle applies requests through this class.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Self

from guests.answer import answer
from guests.function import Authentication, guarded
from guests.protocol.message import Reply
from guests.protocol.wire import EMPTY_HISTORY
from guests.service import Context, Service, load

__all__ = ["ServiceModel", "is_believed", "show_reply", "status_of"]

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) ")
_BELIEVED_REFUSALS = frozenset({401, 403, 404, 409, 410, 412, 416})
"""Statuses from 400 on that state something about the service's data or the client's rights.  A
client acts on them: it takes a 404 for "there is no such key"."""


class ServiceModel:
    """A service and its state."""

    def __init__(self, service: str = "kv", key: bytes = b"") -> None:
        """``key``: requests must be signed with it.  Raises ServiceError for an unknown service."""
        kind = load(service)
        if key:
            kind = guarded(kind, Authentication(key))
        self.service: Service = kind()

    def apply(
        self,
        request: bytes,
        seq: int,
        *,
        read_only: bool = False,
        time_ns: int = 0,
        history: bytes = EMPTY_HISTORY,
        caller: str = "model",
    ) -> bytes:
        """Apply a request at a place of the order; return the reply."""
        return answer(self.service, request, Context(seq, time_ns, history, caller, read_only))

    def state(self) -> bytes:
        """Return the whole state."""
        return b"".join(self.service.snapshot())

    def copy(self) -> Self:
        """Return a model with an equal state."""
        return deepcopy(self)


def status_of(reply: bytes) -> int:
    """Return the status in a reply's first bytes; 0 if a client can read no status line there."""
    found = _STATUS_LINE.match(reply)
    return int(found[1]) if found else 0


def is_believed(reply: bytes) -> bool:
    """Return whether a client would believe a reply, of which the first bytes suffice.

    It does not believe a 5xx, a 4xx that calls its correct request malformed (such as 400, 405 or
    413), and bytes without a readable status line: these declare an error.  Only the status line is
    judged, so a damaged header or body counts as believed.
    """
    status = status_of(reply)
    return 200 <= status < 400 or status in _BELIEVED_REFUSALS


def show_reply(reply: bytes) -> str:
    """Return a reply as text for a report."""
    try:
        decoded = Reply.decode(reply)
    except ValueError:
        return repr(reply[:60])
    return f"{decoded.status} {dict(decoded.headers)} {bytes(decoded.body)!r}"[:300]
