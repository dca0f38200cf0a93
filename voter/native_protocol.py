"""Payloads of the native protocol: the voter's answers (RESPONSE, FAILURE, OPENED), and how a
client numbers its requests (REQUEST with FLAG_ONCE).

REQUESTS and RESPONSES hold the payloads of several such frames, as they would be on their own::

    count u16, then count heads: number u64, tag u8, payload size u32; then the payloads

The tag is a request's flags, or an answer's kind (RESPONSE or FAILURE).  The frame's number is the
first one's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import msgspec

from guests.protocol.wire import WireError

__all__ = [
    "MOST_TOGETHER",
    "NUMBERS_SIZE",
    "READ_ONLY_METHODS",
    "SESSION_SIZE",
    "OpenedPayload",
    "Vote",
    "decode_failure",
    "decode_numbers",
    "decode_response",
    "decode_several",
    "encode_failure",
    "encode_numbers",
    "encode_response",
    "encode_several",
    "split",
]

READ_ONLY_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that are safe in HTTP's sense: ordered and voted like others, but not journaled."""
SESSION_SIZE = 16
"""Bytes that name a session (payload of SESSION)."""

MOST_TOGETHER = 64
"""Most requests in REQUESTS and most answers in RESPONSES."""
TOGETHER_SIZE = 1 << 16
"""Bytes of payloads that are sent in one frame; a larger payload is sent on its own."""

Item = tuple[int, int, bytes]
"""A payload in REQUESTS or RESPONSES: number, tag, payload."""

_COUNT = struct.Struct(">H")
_HEAD = struct.Struct(">QBI")
_RESPONSE = struct.Struct(">BQQ")
_NUMBERS = struct.Struct(">QQ")
NUMBERS_SIZE = _NUMBERS.size
"""Bytes before the request in a REQUEST with FLAG_ONCE."""


class OpenedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What a native client learns at the start (payload of OPENED, as JSON)."""

    protocol: int  # version of the protocol
    vote: str  # the policy, as "2/3"
    replicas: list[str]  # their names, in the order of their bits in `dissent`
    max_request: int  # bytes of a request
    max_in_flight: int  # requests of one connection under way
    session_window: int = 1024  # requests of a session that the client has not acknowledged


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


def split(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Divide items, in order, into groups that are sent in one frame each."""
    group: list[Item] = []
    size = 0
    for item in items:
        size += len(item[2])
        if group and (size > TOGETHER_SIZE or len(group) == MOST_TOGETHER):
            yield group
            group, size = [], len(item[2])
        group.append(item)
    if group:
        yield group


def encode_several(items: Sequence[Item]) -> bytes:
    """Return the payload of REQUESTS or RESPONSES, with 1 to MOST_TOGETHER items."""
    heads = starmap(_HEAD.pack, [(number, tag, len(payload)) for number, tag, payload in items])
    return b"".join([_COUNT.pack(len(items)), *heads, *[item[2] for item in items]])


def decode_several(payload: bytes) -> list[Item]:
    """Take REQUESTS or RESPONSES apart.  Raises WireError unless all sizes add up."""
    count = int.from_bytes(payload[: _COUNT.size])
    at = _COUNT.size + count * _HEAD.size
    if not 0 < count <= MOST_TOGETHER or len(payload) < at:
        raise WireError(f"a frame holds 1 to {MOST_TOGETHER} payloads, each with a head")
    items: list[Item] = []
    for number, tag, size in _HEAD.iter_unpack(payload[_COUNT.size : at]):
        items.append((number, tag, payload[at : at + size]))
        at += size
    if at != len(payload):
        raise WireError("the sizes of the payloads in a frame do not add up")
    return items
