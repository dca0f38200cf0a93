"""Lies: how a proxy changes the bytes that come from a guest.  Pure functions of bytes and seed.

A lie that changes frames gives them valid checksums, so that only the vote detects it.  It begins
at the first whole frame that it sees.  When it ends, it passes on the frame that it has only in
part.  So it damages no other frame.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Protocol
from zlib import crc32

from guests.protocol.wire import (
    HEADER_SIZE,
    MAGIC,
    Decoder,
    Frame,
    FrameKind,
    WireError,
    decode_replies,
    encode,
    encode_replies,
)

__all__ = [
    "KINDS",
    "CorruptReply",
    "Delay",
    "DropReply",
    "Flood",
    "Garbage",
    "Lie",
    "StaleReply",
    "WrongSeq",
    "make",
]


class Lie(Protocol):
    """Changes a stream as it passes; ``count`` is how often it has done so."""

    count: int

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the guest's bytes; return what the voter gets instead."""

    def end(self) -> bytes:
        """End the lie; return the bytes held back: the beginning of an unfinished frame."""


class _FrameLie:
    """Decodes the stream into frames, changes the replies, and passes on the rest unchanged."""

    def __init__(self, seed: bytes) -> None:
        self.count = 0
        self._seed = seed
        self._decoder: Decoder | None = None
        self._tail = b""  # the last bytes, not passed on yet

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the guest's bytes; return what the voter gets instead."""
        before = b""
        if self._decoder is None:
            data = self._tail + data
            start = _frame_start(data)
            before, data = data[:start], data[start:]
            if not _has_header(data):
                self._tail = data  # at most one header's length less one byte
                return before
            self._decoder, self._tail = Decoder(), b""
        frames = self._decoder.feed(data)
        self._tail = (self._tail + data)[-held:] if (held := self._decoder.held) else b""
        out = [before]
        for frame in frames:
            if frame.kind in (FrameKind.REPLY, FrameKind.REPLIES):
                out.append(self._change(frame))
            else:
                out.append(encode(frame.kind, frame.epoch, frame.seq, frame.payload, frame.flags))
        return b"".join(out)

    def end(self) -> bytes:
        """End the lie; return the bytes held back: the beginning of an unfinished frame."""
        tail, self._tail, self._decoder = self._tail, b"", None
        return tail

    def _change(self, frame: Frame) -> bytes:
        raise NotImplementedError

    def _send(self, frame: Frame, payload: bytes, *, seq: int | None = None) -> bytes:
        self.count += 1
        seq = frame.seq if seq is None else seq
        return encode(frame.kind, frame.epoch, seq, payload, frame.flags)


def _has_header(data: bytes) -> bool:
    """Return whether ``data`` begins with a frame's header that has a valid checksum."""
    return (
        len(data) >= HEADER_SIZE
        and data.startswith(MAGIC)
        and int.from_bytes(data[HEADER_SIZE - 4 : HEADER_SIZE]) == crc32(data[: HEADER_SIZE - 4])
    )


def _frame_start(data: bytes) -> int:
    """Return the offset where the first frame begins, or may begin once more bytes arrive."""
    at = data.find(MAGIC)
    while at >= 0:
        if len(data) - at < HEADER_SIZE or _has_header(data[at:]):
            return at
        at = data.find(MAGIC, at + 1)
    for size in range(len(MAGIC) - 1, 0, -1):
        if data.endswith(MAGIC[:size]):
            return len(data) - size
    return len(data)


class _ReplyLie(_FrameLie):
    """Changes replies one by one, also those that come together in one frame."""

    def _change(self, frame: Frame) -> bytes:
        if frame.kind == FrameKind.REPLY:
            payload = self._alter(frame.seq, frame.payload)
        else:
            try:
                replies = decode_replies(frame.payload)
            except WireError:  # the guest is faulty itself
                payload = frame.payload
            else:
                altered = [self._alter(*each) for each in enumerate(replies, frame.seq)]
                payload = encode_replies(altered)
        return encode(frame.kind, frame.epoch, frame.seq, payload, frame.flags)

    def _alter(self, seq: int, reply: bytes) -> bytes:
        """Return what the voter gets instead of a reply; count it if it differs."""
        raise NotImplementedError


class CorruptReply(_ReplyLie):
    """Changes one byte of each reply; of its body, if it is HTTP and has one.

    The byte and its new value are a function of the seed and the reply's number alone.
    """

    def _alter(self, seq: int, reply: bytes) -> bytes:
        self.count += 1
        key = blake2b(self._seed + seq.to_bytes(8), digest_size=16).digest()
        if not reply:
            return key[:1]
        body = reply.find(b"\r\n\r\n") + 4
        first = body if 4 <= body < len(reply) else 0
        at = first + int.from_bytes(key[:8]) % (len(reply) - first)
        changed = reply[at] ^ (key[8] % 255 + 1)
        return b"%b%c%b" % (reply[:at], changed, reply[at + 1 :])


class DropReply(_FrameLie):
    """Drops every reply."""

    def _change(self, frame: Frame) -> bytes:
        self.count += 1
        return b""


class StaleReply(_ReplyLie):
    """Repeats the content of the first reply; counts the replies that this made wrong."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed)
        self._first: bytes | None = None

    def _alter(self, seq: int, reply: bytes) -> bytes:
        if self._first is None:
            self._first = reply
        self.count += reply != self._first
        return self._first


class WrongSeq(_FrameLie):
    """Gives each reply, or frame of replies, a number that is one too high."""

    def _change(self, frame: Frame) -> bytes:
        return self._send(frame, frame.payload, seq=(frame.seq + 1) % (1 << 64))


class Flood(_FrameLie):
    """Sends hundreds of unrequested replies instead of each correct one; counts them."""

    COPIES = 256
    SIZE = 1024
    """Payload bytes of each."""

    def _change(self, frame: Frame) -> bytes:
        noise = random.Random(self._seed + frame.seq.to_bytes(8)).randbytes(self.SIZE)
        # The numbers are far beyond any that the voter may have assigned by now.
        return b"".join(
            self._send(frame, noise, seq=(frame.seq + (1 << 32) + number) % (1 << 64))
            for number in range(self.COPIES)
        )


class Garbage:
    """Inserts 1 to 64 random bytes into each piece that passes; ``count`` is in bytes.

    It inserts them within the piece, never at its ends, so that a single reply is always damaged.
    """

    def __init__(self, seed: bytes) -> None:
        self.count = 0
        self._random = random.Random(seed)

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the guest's bytes; return what the voter gets instead."""
        noise = self._random.randbytes(self._random.randint(1, 64))
        at = self._random.randint(1, max(1, len(data) - 1))
        self.count += len(noise)
        return data[:at] + noise + data[at:]

    def end(self) -> bytes:
        """Return nothing: no bytes are held back."""
        return b""


class Delay:
    """Changes nothing, but says how late each piece must arrive; ``count`` is in pieces."""

    SHORTEST, LONGEST = 0.05, 0.25
    """Least and greatest delay, in seconds."""

    def __init__(self, seed: bytes) -> None:
        self.count = 0
        self._random = random.Random(seed)

    def feed(self, data: bytes) -> bytes:
        """Return the next piece of the guest's bytes unchanged."""
        return data

    def late(self) -> float:
        """Return the delay of the next piece, in seconds."""
        self.count += 1
        return self._random.uniform(self.SHORTEST, self.LONGEST)

    def end(self) -> bytes:
        """Return nothing: the proxy holds the delayed pieces."""
        return b""


KINDS: dict[str, type[_FrameLie] | type[Garbage] | type[Delay]] = {
    "corrupt-reply": CorruptReply,
    "delay": Delay,
    "flood": Flood,
    "garbage": Garbage,
    "drop-reply": DropReply,
    "stale-reply": StaleReply,
    "wrong-seq": WrongSeq,
}
"""The lies by their kind of fault (described in ``faults.CATALOGUE``)."""


def make(kind: str, seed: bytes) -> Lie:
    """Return a new lie of this kind.  Raises ValueError if the kind is unknown."""
    if kind not in KINDS:
        raise ValueError(f"no lie {kind!r}: give one of {', '.join(KINDS)}")
    return KINDS[kind](seed)
