"""Answers to requests: what the agent makes of a service, whatever that service does.

This module is compiled (``guests.compiled``).  What the service returns is ``Any`` here, so that
both forms make the same reply of it.
"""

from __future__ import annotations

from typing import Any, Final

from guests.context import Context
from guests.protocol.message import MessageError, Reply, decode_request, encode_reply
from guests.protocol.wire import MAX_PAYLOAD
from guests.service import Service

__all__ = ["MAX_REPLY", "answer"]

MAX_REPLY: Final = MAX_PAYLOAD - (1 << 15)
"""Largest reply in bytes with its headers: 1 MiB and 32 KiB; frames need the rest."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def answer(service: Service, request_bytes: bytes, context: Context) -> bytes:
    """Apply a request in canonical bytes; return the reply's bytes.  Never raises.

    An invalid request gives a 400.  An exception of the service gives a 500 that names only its
    class: its text may hold addresses, which differ between replicas.  A reply over MAX_REPLY gives
    a 500.  A request marked read-only must have a safe method: its changes would be missing from
    every state that is rebuilt from the log.
    """
    try:
        request = decode_request(request_bytes)
        if context.read_only and request.method not in _SAFE_METHODS:
            raise MessageError(f"method {request.method} in a request that is marked read-only")
    except MessageError as invalid:
        return _plain(400, f"{invalid}\n")
    try:
        untyped: Any = service  # with its type, the compiled form would check the reply's
        reply = untyped.apply(request, context)
    except MessageError as invalid:  # headers are decoded only when the service uses them
        return _plain(400, f"{invalid}\n")
    except Exception as error:  # noqa: BLE001 - an error of the service must not end the replica
        return _plain(500, f"service failed: {type(error).__name__}\n")
    try:
        reply_bytes = encode_reply(reply)
    except Exception as error:  # noqa: BLE001 - the service may return anything
        return _plain(500, f"service's reply is invalid: {type(error).__name__}\n")
    if len(reply_bytes) > MAX_REPLY:
        return _plain(500, f"service's reply is over {MAX_REPLY} bytes\n")
    return reply_bytes


def _plain(status: int, text: str) -> bytes:
    return encode_reply(Reply(status, text))
