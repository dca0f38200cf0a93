"""The model of a service: the service itself, run in this process.

A service is deterministic, so a reply is right if the model gives the same bytes for the same
request at the same place of the order.  Every oracle applies requests through this class.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Self

from guests.function import Authentication, guarded
from guests.protocol.message import Reply
from guests.protocol.wire import EMPTY_HISTORY
from guests.service import Context, Service, answer, load

__all__ = ["ServiceModel", "show_reply"]


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


def show_reply(reply: bytes) -> str:
    """Return a reply as text for a report."""
    try:
        decoded = Reply.decode(reply)
    except ValueError:
        return repr(reply[:60])
    return f"{decoded.status} {dict(decoded.headers)} {bytes(decoded.body)!r}"[:300]
