"""Frames: the one byte format of links (voter to agent) and of native clients (client to voter).

Pure: bytes in, frames out; no I/O.  A frame is a 34-byte header and a payload::

    offset  size  field
         0     4  magic  D7 54 52 56
         4     1  kind   (FrameKind)
         5     1  flags
         6     4  payload length in bytes, big endian
        10     8  epoch  (random, chosen by the voter at each handshake)
        18     8  seq    (meaning depends on kind)
        26     4  CRC-32 of the payload
        30     4  CRC-32 of the 30 bytes before it

The header has its own checksum, so that a decoder never trusts a damaged length.  For any input a
decoder holds at most one frame of the largest allowed size.  After garbage or a truncated frame it
finds the next whole frame.  CRC-32 detects accidents; only the vote detects a lying guest.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

__all__ = [
    "EMPTY_HISTORY", "FETCH_AHEAD", "STATE_PIECE", "FLAG_LAST", "FLAG_ONCE", "FLAG_READ_ONLY",
    "FLAG_VOID", "HEADER_SIZE", "MAX_PAYLOAD", "NO_KEEPER", "PROTOCOL", "CheckpointPayload",
    "Decoder", "Frame", "FrameKind", "MOST_ORDERS", "Order", "REPLIES_SIZE", "REPLIES_TIME",
    "Welcome", "WireError", "count_replies", "decode_checkpoint", "decode_order", "decode_orders",
    "decode_replies", "decode_welcome", "encode", "encode_checkpoint", "encode_head",
    "encode_order", "encode_orders", "encode_replies", "encode_welcome",
]  # fmt: skip

PROTOCOL: Final = 3
"""Version of everything in this module; both sides send it at each handshake."""

MAGIC: Final = b"\xd7TRV"
HEADER_SIZE: Final = 34
MAX_PAYLOAD: Final = 1 << 20 | 1 << 16
"""Largest payload in bytes: a body of 1 MiB, and 64 KiB for headers and fields."""

FALSE_STARTS: Final = 4096
"""After so many offsets in one piece that look like a frame and are none, the decoder skips its
rest.
"""

FLAG_READ_ONLY: Final = 0x01  # an ORDER or REQUEST that changes nothing: it is not journaled
FLAG_LAST: Final = 0x04  # the last STATE of a state
FLAG_VOID: Final = 0x08  # an ORDER to skip: its request killed or hung too many replicas
FLAG_ONCE: Final = 0x10  # a REQUEST of the session: its payload begins with number and done

EMPTY_HISTORY: Final = bytes(8)
"""The hash of the history before the first write."""

NO_KEEPER: Final = 0xFF
"""In a MARKER: no replica must keep the state for a checkpoint."""

STATE_PIECE: Final = 1 << 16
"""Bytes of a state in a STATE frame; the last frame has the rest."""
FETCH_AHEAD: Final = 4
"""Pieces of a state that may be requested ahead.  More would delay the sender's replies; with one
at a time, round trips would be most of a transfer's time.
"""


MOST_ORDERS: Final = 64
"""Most requests in an ORDERS frame."""
REPLIES_SIZE, REPLIES_TIME = 1 << 16, 0.1
"""Bytes of replies and seconds of work after which an agent sends the replies that it has."""


class FrameKind:
    """The kinds of frame, as plain integers because the hot path compares them."""

    # voter to agent
    HELLO: Final = 1  # opens an epoch; payload: protocol version, index of this replica
    ORDER: Final = 2  # one ordered request; seq = its number
    MARKER: Final = 3  # checkpoint marker; payload: index of the replica that keeps it
    PING: Final = 4  # asks for a sign of life
    RESTORE: Final = 5  # begins a state; seq = its marker, payload: CheckpointPayload
    STATE: Final = 6  # a piece of a state, in either direction; FLAG_LAST on the last one
    FETCH: Final = 7  # requests a piece of the kept state; seq = marker, payload: offset
    ORDERS: Final = 8  # 2 to MOST_ORDERS ordered requests; seq = the first one's number
    # agent to voter
    HERE: Final = 16  # unrequested, epoch 0: a new incarnation waits for its HELLO
    WELCOME: Final = 17  # answer to HELLO; payload: Welcome
    REPLY: Final = 18  # seq = the request's number, payload: the service's reply bytes
    DIGEST: Final = 19  # seq = the marker's number, payload: digest of the state
    PONG: Final = 20  # answer to PING
    RESTORED: Final = 21  # seq = marker, payload: digest of the restored state
    REFUSED: Final = 22  # cannot apply seq here; payload: reason (text)
    REPLIES: Final = 23  # replies to consecutive requests of one ORDERS; seq = the first's
    # native clients
    OPEN: Final = 32  # client to voter; payload: protocol version (2 bytes)
    OPENED: Final = 33  # voter to client; payload: voter.native_protocol.OpenedPayload as JSON
    REQUEST: Final = 34  # seq = the client's number; payload: numbers if FLAG_ONCE, a request
    RESPONSE: Final = 35  # seq = the client's number; payload: result of the vote, reply bytes
    FAILURE: Final = 36  # seq = the client's number; payload: error code and text
    SESSION: Final = 37  # client: session to continue, or empty: a new one; voter: its name
    REQUESTS: Final = 38  # several REQUESTs; payload: voter.native_protocol
    RESPONSES: Final = 39  # several RESPONSEs and FAILUREs, to a client that has sent REQUESTS


class WireError(ValueError):
    """A payload does not have the form that its kind requires."""


class Frame(NamedTuple):
    """One decoded frame."""

    kind: int
    flags: int
    epoch: int
    seq: int
    payload: bytes


_HEADER: Final = struct.Struct(">4sBBIQQI")
_CHECKED_HEADER: Final = struct.Struct(">4sBBIQQII")  # the header and its checksum


def encode(kind: int, epoch: int, seq: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return the bytes of one frame.

    Raises ValueError if the payload is over MAX_PAYLOAD bytes.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD}")
    return encode_head(kind, epoch, seq, payload, crc32(payload), flags)


def encode_head(
    kind: int, epoch: int, seq: int, payload: bytes, payload_crc: int, flags: int = 0
) -> bytes:
    """Return the bytes of a frame whose payload's CRC-32 is known (one payload, many links)."""
    head = _HEADER.pack(MAGIC, kind, flags, len(payload), epoch, seq, payload_crc)
    return b"%b%b%b" % (head, crc32(head).to_bytes(4, "big"), payload)


class Decoder:
    """Decodes frames from a stream of bytes in arbitrary pieces, possibly damaged.

    It holds at most ``HEADER_SIZE + max_payload`` bytes in addition to the piece being fed.  Its
    work is linear in the number of bytes, for any input.  ``skipped`` counts bytes that belong to
    no frame, ``damaged`` frames with a wrong payload checksum.  ``max_payload`` may change between
    two feeds.
    """

    __slots__ = ("_buffer", "_doubt", "_need", "damaged", "max_payload", "skipped")

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_payload = max_payload
        self.skipped = 0
        self.damaged = 0
        self._buffer = bytearray()  # an incomplete frame, or a possible beginning of one
        self._need = 0  # bytes that the buffer must hold before decoding continues
        self._doubt = 0  # offset in the buffer of the end of a damaged frame

    @property
    def held(self) -> int:
        """Bytes held of an incomplete frame."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget an incomplete frame: the other side has restarted."""
        self.skipped += len(self._buffer)
        self._buffer = bytearray()
        self._need = self._doubt = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next piece of the stream; return the frames that it completes, in order."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
        size = len(data)
        frames: list[Frame] = []
        at = need = false_starts = 0
        unpack = _CHECKED_HEADER.unpack_from
        magic: bytes  # typed for mypyc: what struct returns is Any
        kind: int
        flags: int
        length: int
        epoch: int
        seq: int
        payload_crc: int
        head_crc: int
        while size - at >= HEADER_SIZE:
            magic, kind, flags, length, epoch, seq, payload_crc, head_crc = unpack(data, at)
            if magic != MAGIC or head_crc != crc32(data[at : at + 30]) or length > self.max_payload:
                at = self._skip(data, at, at + 1)
                false_starts += 1
                if false_starts > FALSE_STARTS:
                    self.skipped += size - at
                    at = size
                continue
            end = at + HEADER_SIZE + length
            if end > size:
                need = end - at
                break
            payload = data[at + HEADER_SIZE : end]
            if crc32(payload) != payload_crc:
                at = self._damage(data, at, end)
                continue
            # Not Frame(...): a NamedTuple's own constructor is a Python function.
            frames.append(tuple.__new__(Frame, (kind, flags, epoch, seq, payload)))
            at = end
        if size - at < HEADER_SIZE and not MAGIC.startswith(data[at : at + 4]):
            at = self._skip(data, at, at + 1)
        if at < size or self._buffer:
            self._buffer = bytearray(data[at:])
            self._need = need or (HEADER_SIZE if size - at >= len(MAGIC) else size - at + 1)
        if self._doubt:
            self._doubt = max(0, self._doubt - at)
        return frames

    def _damage(self, data: bytes, at: int, end: int) -> int:
        """Return the offset to continue at after a frame with a damaged payload.

        A truncated frame may contain the following frames in its supposed payload, so they are
        searched for.  A second damaged frame in it is skipped as a whole; otherwise malicious input
        would cost quadratic time.
        """
        self.damaged += 1
        if at < self._doubt:
            return self._skip(data, at, end)
        self._doubt = end
        return self._skip(data, at, at + 1)

    def _skip(self, data: bytes, at: int, start: int) -> int:
        """Return the offset from ``start`` on at which the next frame may begin.

        A tail that may be the beginning of a magic is kept.
        """
        found = data.find(MAGIC, start)
        if found < 0:
            found = len(data)
            for keep in (3, 2, 1):
                if found - keep >= start and data.endswith(MAGIC[:keep]):
                    found -= keep
                    break
        self.skipped += found - at
        return found


# ---------------------------------------------------------------- payloads


class Order(NamedTuple):
    """The payload of ORDER: a request, and everything that all replicas must agree on with it.

    ``prev`` and ``history`` are 8-byte hashes of the history of writes: before this request and,
    for a write, after it.  A replica with another history than ``prev`` must not apply the request.
    ``history`` also seeds the context's random source.  It is keyed by a secret of the node, so
    clients cannot predict it.
    """

    time_ns: int
    prev: bytes
    history: bytes
    caller: bytes
    request: bytes


_ORDER: Final = struct.Struct(">Q8s8sH")


def encode_order(time_ns: int, prev: bytes, history: bytes, caller: bytes, request: bytes) -> bytes:
    """Return the payload of an ORDER frame (``caller`` at most 65,535 bytes)."""
    return _ORDER.pack(time_ns, prev, history, len(caller)) + caller + request


def decode_order(payload: bytes) -> Order:
    """Decode an ORDER payload.  Raises WireError if it is too short."""
    if len(payload) < 26:
        raise WireError("ORDER payload is shorter than its fixed part")
    time_ns: int  # typed for mypyc: what struct returns is Any
    prev: bytes
    history: bytes
    caller_size: int
    time_ns, prev, history, caller_size = _ORDER.unpack_from(payload)
    split = 26 + caller_size
    if len(payload) < split:
        raise WireError("ORDER payload is shorter than its caller field")
    order = time_ns, prev, history, payload[26:split], payload[split:]
    return tuple.__new__(Order, order)


_ORDERS: Final = struct.Struct(">Q8sH")
_ITEM: Final = struct.Struct(">I8sBHI")

OrderItem = tuple[int, bytes, int, bytes, bytes]
"""A request in ORDERS: its number less the frame's, history, flags, caller, request."""


def encode_orders(time_ns: int, prev: bytes, items: Sequence[OrderItem]) -> bytes:
    """Return the payload of an ORDERS frame.

    ``prev``: the history before the first request.  That before a later one is the ``history`` of
    the last write before it.  The fields have the meaning that they have in ORDER.
    """
    pack = _ITEM.pack
    parts = [_ORDERS.pack(time_ns, prev, len(items))]
    parts += [
        pack(offset, history, flags, len(caller), len(request))
        for offset, history, flags, caller, request in items
    ]
    for item in items:
        parts += item[3:]
    return b"".join(parts)


def decode_orders(payload: bytes) -> tuple[int, bytes, list[OrderItem]]:
    """Decode an ORDERS payload: agreed time, history before it, requests.  Raises WireError."""
    if len(payload) < _ORDERS.size:
        raise WireError("ORDERS payload is shorter than its fixed part")
    time_ns: int  # typed for mypyc: what struct returns is Any
    prev: bytes
    count: int
    time_ns, prev, count = _ORDERS.unpack_from(payload)
    at: int = _ORDERS.size + count * _ITEM.size
    if not 0 < count <= MOST_ORDERS or len(payload) < at:
        raise WireError("ORDERS payload does not have its number of requests")
    items: list[OrderItem] = []
    last = -1
    offset: int
    history: bytes
    flags: int
    caller_size: int
    request_size: int
    for offset, history, flags, caller_size, request_size in _ITEM.iter_unpack(
        payload[_ORDERS.size : at]
    ):
        split = at + caller_size
        end = split + request_size
        if offset <= last:
            raise WireError("ORDERS requests are not in order")
        items.append((offset, history, flags, payload[at:split], payload[split:end]))
        last, at = offset, end
    if at != len(payload) or items[0][0]:
        raise WireError("ORDERS payload has the wrong size, or does not begin at its frame")
    return time_ns, prev, items


_SIZES: Final = [struct.Struct(f">H{count}I") for count in range(MOST_ORDERS + 1)]


def encode_replies(replies: Sequence[bytes]) -> bytes:
    """Return the payload of a REPLIES frame (1 to MOST_ORDERS replies)."""
    count = len(replies)
    return b"".join((_SIZES[count].pack(count, *map(len, replies)), *replies))


def count_replies(payload: bytes) -> int:
    """Return how many replies a REPLIES payload claims to have (0 if it has no count)."""
    return int.from_bytes(payload[:2])


def decode_replies(payload: bytes) -> list[bytes]:
    """Decode a REPLIES payload.  Raises WireError."""
    count = count_replies(payload)
    if not 0 < count <= MOST_ORDERS or len(payload) < _SIZES[count].size:
        raise WireError("REPLIES payload does not have its number of replies")
    at = _SIZES[count].size
    replies = []
    for size in _SIZES[count].unpack_from(payload)[1:]:
        replies.append(payload[at : at + size])
        at += size
    if at != len(payload):
        raise WireError("REPLIES payload has the wrong size")
    return replies


class CheckpointPayload(NamedTuple):
    """The payload of RESTORE: a state's history hash at its marker, size in bytes and digest."""

    history: bytes
    size: int
    digest: bytes


_CHECKPOINT: Final = struct.Struct(">8sQ32s")


def encode_checkpoint(checkpoint: CheckpointPayload) -> bytes:
    """Return the payload of a RESTORE frame."""
    return _CHECKPOINT.pack(checkpoint.history, checkpoint.size, checkpoint.digest)


def decode_checkpoint(payload: bytes) -> CheckpointPayload:
    """Decode a RESTORE payload.  Raises WireError if its size is wrong."""
    if len(payload) != _CHECKPOINT.size:
        raise WireError("RESTORE payload has the wrong size")
    return CheckpointPayload(*_CHECKPOINT.unpack(payload))


class Welcome(NamedTuple):
    """The payload of WELCOME: the state of an incarnation at a handshake.

    ``incarnation`` counts the starts of the service since the guest's boot.  ``fresh``: it has
    applied nothing yet.  ``last_seq`` and ``history``: the last write that it applied.
    ``replies_from``: it has its replies to all writes from this one on (0: to none).
    """

    protocol: int
    incarnation: int
    fresh: bool
    last_seq: int
    history: bytes
    replies_from: int
    state_format: int
    service: str
    build: str


_WELCOME: Final = struct.Struct(">HIBQ8sQHBB")


def encode_welcome(welcome: Welcome) -> bytes:
    """Return the payload of a WELCOME frame (names are truncated to 255 bytes, at a character)."""
    service, build = (
        name.encode()[:255].decode(errors="ignore").encode()
        for name in (welcome.service, welcome.build)
    )
    return _WELCOME.pack(*welcome[:7], len(service), len(build)) + service + build


def decode_welcome(payload: bytes) -> Welcome:
    """Decode a WELCOME payload.

    Raises WireError if it does not have this form; the error names the protocol if that differs.
    """
    if len(payload) < _WELCOME.size:
        raise _wrong_welcome(payload, "is shorter than its fixed part")
    *fixed, service_size, build_size = _WELCOME.unpack_from(payload)
    if len(payload) != _WELCOME.size + service_size + build_size or fixed[2] > 1:
        raise _wrong_welcome(payload, "has the wrong size")
    names = payload[_WELCOME.size :]
    try:
        service, build = names[:service_size].decode(), names[service_size:].decode()
    except UnicodeDecodeError as error:
        raise WireError("WELCOME names are not UTF-8") from error
    fixed[2] = bool(fixed[2])
    return Welcome._make((*fixed, service, build))


def _wrong_welcome(payload: bytes, problem: str) -> WireError:
    protocol = int.from_bytes(payload[:2])
    if len(payload) >= 2 and protocol != PROTOCOL:
        return WireError(f"the agent speaks protocol {protocol}, the voter {PROTOCOL}")
    return WireError(f"WELCOME payload {problem}")
