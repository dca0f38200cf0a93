"""The native protocol's payloads: how a verdict is told to a client (RESPONSE, FAILURE, OPENED)."""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from guests.wire import WireError

__all__ = [
    "Opened",
    "Vote",
    "decode_failure",
    "decode_response",
    "encode_failure",
    "encode_response",
]

_RESPONSE = struct.Struct(">BQQ")


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What the voter tells a native client at the start (payload of OPENED, as JSON)."""

    protocol: int
    vote: str
    replicas: list[str]
    max_request: int  # bytes
    max_in_flight: int  # requests


class Vote(NamedTuple):
    """How a reply was voted: place in the order, how many agreed, who (bit mask) said otherwise."""

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


def encode_failure(code: str, detail: str) -> bytes:
    """Return the payload of a FAILURE."""
    return f"{code}\n{detail}".encode()


def decode_failure(payload: bytes) -> tuple[str, str]:
    """Take a FAILURE apart: code and detail."""
    code, _, detail = payload.decode("utf-8", "replace").partition("\n")
    return code, detail
