"""Lies: how a proxy changes the bytes that come from a guest.  Pure functions of bytes and seed.

A lie that changes frames gives them valid checksums, so that only the vote detects it.  Of the
replies in one REPLIES frame it changes one, which its seed selects.  It begins at the first whole
frame that it sees.  When it ends, it passes on the frame that it has only in part.  So it damages
no other frame.
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
            if frame.kind == FrameKind.REPLY:
                out += [
                    encode(frame.kind, frame.epoch, seq, reply, frame.flags)
                    for seq, reply in self._change(frame.seq, frame.payload)
                ]
            elif frame.kind == FrameKind.REPLIES:
                out.append(self._change_one(frame))
            else:
                out.append(encode(frame.kind, frame.epoch, frame.seq, frame.payload, frame.flags))
        return b"".join(out)

    def end(self) -> bytes:
        """End the lie; return the bytes held back: the beginning of an unfinished frame."""
        tail, self._tail, self._decoder = self._tail, b"", None
        return tail

    def _change_one(self, frame: Frame) -> bytes:
        """Change one of the replies in a REPLIES frame; return the frames that replace it.

        Their numbers are taken to be consecutive, as they almost always are.
        """
        try:
            replies = decode_replies(frame.payload)
        except WireError:  # the guest is faulty itself
            return encode(frame.kind, frame.epoch, frame.seq, frame.payload, frame.flags)
        at = int.from_bytes(self._key(frame.seq)[-7:]) % len(replies)
        seq = (frame.seq + at) % (1 << 64)
        changed = self._change(seq, replies[at])
        if [number for number, _ in changed] == [seq]:
            replies[at] = changed[0][1]
            payload = encode_replies(replies)
            return encode(frame.kind, frame.epoch, frame.seq, payload, frame.flags)
        out = []
        if at:
            before = encode_replies(replies[:at])
            out.append(encode(frame.kind, frame.epoch, frame.seq, before, frame.flags))
        out += [
            encode(FrameKind.REPLY, frame.epoch, number, reply, frame.flags)
            for number, reply in changed
        ]
        if replies[at + 1 :]:
            after = encode_replies(replies[at + 1 :])
            out.append(encode(frame.kind, frame.epoch, (seq + 1) % (1 << 64), after, frame.flags))
        return b"".join(out)

    def _key(self, seq: int) -> bytes:
        """Return 16 bytes that are a function of the seed and a reply's number alone."""
        return blake2b(self._seed + seq.to_bytes(8), digest_size=16).digest()

    def _change(self, seq: int, reply: bytes) -> list[tuple[int, bytes]]:
        """Return the replies (number, content) that the voter gets instead of one; count them."""
        raise NotImplementedError


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


class CorruptReply(_FrameLie):
    """Changes one byte of each reply; of its body, if it is HTTP and has one.

    The byte and its new value are a function of the seed and the reply's number alone.
    """

    def _change(self, seq: int, reply: bytes) -> list[tuple[int, bytes]]:
        self.count += 1
        key = self._key(seq)
        if not reply:
            return [(seq, key[:1])]
        body = reply.find(b"\r\n\r\n") + 4
        first = body if 4 <= body < len(reply) else 0
        at = first + int.from_bytes(key[:8]) % (len(reply) - first)
        changed = reply[at] ^ (key[8] % 255 + 1)
        return [(seq, b"%b%c%b" % (reply[:at], changed, reply[at + 1 :]))]


class DropReply(_FrameLie):
    """Drops every reply."""

    def _change(self, seq: int, reply: bytes) -> list[tuple[int, bytes]]:
        self.count += 1
        return []


class StaleReply(_FrameLie):
    """Repeats the content of the first reply; counts the replies that this made wrong."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed)
        self._first: bytes | None = None

    def _change(self, seq: int, reply: bytes) -> list[tuple[int, bytes]]:
        if self._first is None:
            self._first = reply
        self.count += reply != self._first
        return [(seq, self._first)]


class WrongSeq(_FrameLie):
    """Gives each reply a number that is one too high."""

    def _change(self, seq: int, reply: bytes) -> list[tuple[int, bytes]]:
        self.count += 1
        return [((seq + 1) % (1 << 64), reply)]


class Flood(_FrameLie):
    """Sends hundreds of unrequested replies instead of each correct one; counts them."""

    COPIES = 256
    SIZE = 1024
    """Payload bytes of each."""

    def _change(self, seq: int, reply: bytes) -> list[tuple[int, bytes]]:
        self.count += self.COPIES
        noise = random.Random(self._seed + seq.to_bytes(8)).randbytes(self.SIZE)
        # The numbers are far beyond any that the voter may have assigned by now.
        return [((seq + (1 << 32) + number) % (1 << 64), noise) for number in range(self.COPIES)]


class Garbage:
    """Inserts 1 to 64 random bytes into each piece that passes; ``count`` is in bytes.

    It inserts them within the piece, never at its ends.  The first one differs from the byte before
    which it is inserted, and the last one from the byte after which the first is.  So a single
    reply is always damaged: no whole copy of it is left at either end.
    """

    def __init__(self, seed: bytes) -> None:
        self.count = 0
        self._random = random.Random(seed)

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the guest's bytes; return what the voter gets instead."""
        noise = self._random.randbytes(self._random.randint(1, 64))
        at = self._random.randint(1, max(1, len(data) - 1))
        while noise[:1] == data[at : at + 1] or noise[-1:] == data[at - 1 : at]:
            noise = self._random.randbytes(len(noise))
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
