"""Requests to a service as the agent sends them: canonical bytes in, reply bytes out."""

from __future__ import annotations

from collections.abc import Mapping

from guests.answer import answer
from guests.protocol.message import Reply, encode_request
from guests.service import Context, Service

__all__ = ["ask"]


def ask(
    service: Service,
    method: str,
    target: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return the service's reply to one request."""
    data = encode_request(method, target, (headers or {}).items(), body)
    return Reply.decode(answer(service, data, Context(1, 1_000_000_007, b"seed", "alice")))
