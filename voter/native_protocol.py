"""Payloads of the native protocol: the voter's answers (RESPONSE, FAILURE, OPENED), and how a
client numbers its requests (REQUEST with FLAG_ONCE).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from guests.protocol.wire import WireError

__all__ = [
    "NUMBERS_SIZE",
    "READ_ONLY_METHODS",
    "SESSION_SIZE",
    "OpenedPayload",
    "Vote",
    "decode_failure",
    "decode_numbers",
    "decode_response",
    "encode_failure",
    "encode_numbers",
    "encode_response",
]

READ_ONLY_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that are safe in HTTP's sense: ordered and voted like others, but not journaled."""
SESSION_SIZE = 16
"""Bytes that name a session (payload of SESSION)."""

_RESPONSE = struct.Struct(">BQQ")
_NUMBERS = struct.Struct(">QQ")
NUMBERS_SIZE = _NUMBERS.size
"""Bytes before the request in a REQUEST with FLAG_ONCE."""


class OpenedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What a native client learns at the start (payload of OPENED, as JSON)."""

    protocol: int
    vote: str
    replicas: list[str]
    max_request: int  # bytes
    max_in_flight: int  # requests
    session_window: int = 1024  # unacknowledged requests of a session


class Vote(NamedTuple):
    """How a reply was voted: its sequence number, how many agreed, and a bit mask of who dissented.

    ``agreed`` is 0 for the repeated reply to a retry.
    """

    seq: int
    agreed: int
    dissent: int


def encode_response(seq: int, agreed: int, dissent: tuple[int, ...], reply: bytes) -> bytes:
    """Return the payload of a RESPONSE."""
    mask = 0
    for index in dissent:
        mask |= 1 << index
    return _RESPONSE.pack(agreed, seq, mask) + reply


def decode_response(payload: bytes) -> tuple[Vote, bytes]:
    """Take a RESPONSE apart.  Raises WireError."""
    if len(payload) < _RESPONSE.size:
        raise WireError("RESPONSE payload is too short")
    agreed, seq, mask = _RESPONSE.unpack_from(payload)
    return Vote(seq, agreed, mask), payload[_RESPONSE.size :]


def encode_numbers(done: int, number: int) -> bytes:
    """Return the bytes before the request in a REQUEST with FLAG_ONCE.

    ``number`` counts the requests of a session from 1.  The client needs no reply to any request up
    to ``done``.
    """
    return _NUMBERS.pack(done, number)


def decode_numbers(payload: bytes) -> tuple[int, int]:
    """Take the same apart: done and number.  Raises WireError."""
    if len(payload) < _NUMBERS.size:
        raise WireError("REQUEST payload is shorter than its numbers")
    done, number = _NUMBERS.unpack_from(payload)
    return done, number


def encode_failure(code: str, detail: str) -> bytes:
    """Return the payload of a FAILURE."""
    return f"{code}\n{detail}".encode()


def decode_failure(payload: bytes) -> tuple[str, str]:
    """Take a FAILURE apart: code and detail."""
    code, _, detail = payload.decode("utf-8", "replace").partition("\n")
    return code, detail
