"""The format of the journal's files.  Pure.

A **segment** is a head (who wrote it, which one it is), then frames, then zeros.  The head is on
the disk before the first frame is written.

A **frame** is what one flush wrote::

    magic 4 | number 8 | synced 8 | before 4 | length 4 | CRC of the payload 4 |
    CRC of these 32 bytes 4 | payload

Each frame is written twice, one copy behind the other, by one write.  A reader takes the first
whole copy.  Without the second copy, a last frame with a flipped bit would look like a frame that
a power loss had torn, and an acknowledged write would be dropped without a message.

Frames are numbered from 1 on over all segments.  ``before`` is the head's CRC of the frame before
it, so a frame that was dropped once, and comes back from the disk behind others (after a sync that
failed), is not taken for their successor.  ``synced`` is the number of the last frame that
was known to be on the disk when this one was written.  The payload is a MessagePack array of
entries; an empty one only carries ``synced``.  Both CRCs start from a seed that is taken from the
journal's secret, so that no client can put a frame into its request.

A **checkpoint** is a head, the base in parts, a BLAKE2b of all that, then the state, whose own
BLAKE2b must be the digest in the base.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

import msgspec

from voter.core.entries import FORMAT, OLDEST_FORMAT, Base, Entry, ScopeBase
from voter.errors import ForeignJournal, JournalError

__all__ = [
    "COPIES",
    "FRAME_HEAD",
    "CheckpointHead",
    "DamagedError",
    "JournalFrame",
    "Owner",
    "blank",
    "check_format",
    "checkpoint_pieces",
    "decode_entries",
    "find_frame",
    "pack_frame",
    "pack_segment_head",
    "peek_checkpoint",
    "proved",
    "read_checkpoint",
    "read_segment_head",
    "segment_head_end",
]

_FRAME_MAGIC = b"\xf7TvF"
_SEGMENT_MAGIC = b"TrivSeg\n"
_CHECKPOINT_MAGIC = b"TrivChk\n"
_HEAD = struct.Struct(">4sQQIII")
_U32 = struct.Struct(">I")
FRAME_HEAD = _HEAD.size + _U32.size
"""Bytes of a frame besides its payload."""
COPIES = 2
"""Copies of each frame: one that is damaged leaves one that is whole."""
_PIECE = 1 << 20
_KEPT_IN_PART = 256
_ZEROS = bytes(_PIECE)

_encode = msgspec.msgpack.Encoder().encode
decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
_decode_base = msgspec.msgpack.Decoder(Base).decode
_decode_scopes = msgspec.msgpack.Decoder(list[ScopeBase]).decode


class DamagedError(Exception):
    """Bytes that are not what was written; the text says what is wrong."""


class Owner(NamedTuple):
    """The owner of a journal."""

    node: str
    journal: bytes  # 16 bytes, different for each journal
    seed: int  # start value of the CRCs of its frames

    @classmethod
    def of(cls, node: str, secret: bytes) -> Owner:
        """Return the owner of the journal that has this secret."""
        digest = blake2b(secret, digest_size=20, person=b"journal").digest()
        return cls(node, digest[:16], int.from_bytes(digest[16:]))


def blank(data: bytes, at: int = 0) -> bool:
    """Return whether there are only zeros from offset ``at`` on."""
    return all(
        data[start : start + _PIECE] == _ZEROS[: len(data) - start]
        for start in range(at, len(data), _PIECE)
    )


# ------------------------------------------------------------------- frames


class JournalFrame(NamedTuple):
    """A frame that checks: ``end`` is the offset behind it, ``check`` the CRC of its head."""

    number: int
    synced: int
    payload: memoryview
    end: int
    before: int
    check: int


def pack_frame(
    seed: int, number: int, synced: int, payload: bytes, before: int = 0
) -> tuple[bytes, int]:
    """Return the bytes of one copy of a frame, and the CRC of its head.

    ``before``: that of the frame before it; 0 for the first one.
    """
    head = _HEAD.pack(_FRAME_MAGIC, number, synced, before, len(payload), crc32(payload, seed))
    check = crc32(head, seed)
    return b"".join((head, _U32.pack(check), payload)), check


class _Head(NamedTuple):
    """A head that checks: the fields of a frame's first bytes, and their CRC."""

    number: int
    synced: int
    before: int
    length: int
    crc: int
    check: int


def _head_at(data: bytes, at: int, seed: int) -> _Head | None:
    """Return the head at ``at``, if one checks."""
    head = data[at : at + _HEAD.size]
    check = data[at + _HEAD.size : at + FRAME_HEAD]
    if len(check) < _U32.size or _U32.unpack(check)[0] != crc32(head, seed):
        return None
    magic, number, synced, before, length, crc = _HEAD.unpack(head)
    if magic != _FRAME_MAGIC:
        return None
    return _Head(number, synced, before, length, crc, _U32.unpack(check)[0])


def find_frame(
    data: bytes, at: int, seed: int, number: int, before: int | None
) -> tuple[JournalFrame | None, int]:
    """Find frame ``number`` at or behind ``at``, which follows the frame with the check ``before``
    (None: whichever comes before it).

    Return a whole copy (None: there is none) and how many copies are whole.  ``end`` of what is
    returned is the offset behind the last whole copy.
    """
    found: JournalFrame | None = None
    copies = 0
    while at >= 0:
        frame = _frame_at(data, at, seed)
        if frame is not None and frame.number == number and before in (None, frame.before):
            found, copies, at = frame, copies + 1, frame.end
            if copies == COPIES:
                break
        elif frame is not None and frame.number > number:
            break
        else:
            at = data.find(_FRAME_MAGIC, at + 1)
    return found, copies


def _frame_at(data: bytes, at: int, seed: int) -> JournalFrame | None:
    """Return the frame at ``at``, or None if there is none that checks."""
    head = _head_at(data, at, seed)
    if head is None:
        return None
    length = head.length
    end = at + FRAME_HEAD + length
    payload = memoryview(data)[at + FRAME_HEAD : end]
    if len(payload) < length or crc32(payload, seed) != head.crc:
        return None
    return JournalFrame(head.number, head.synced, payload, end, head.before, head.check)


def proved(data: bytes, at: int, seed: int) -> int | None:
    """Return the highest frame number that a head at or behind ``at`` says was synced; None if no
    head there checks.
    """
    best = None
    while (at := data.find(_FRAME_MAGIC, at)) >= 0:
        head = _head_at(data, at, seed)
        if head is not None:
            best = max(best or 0, head.synced)
        at += 1
    return best


# ----------------------------------------------------------------- segments


def pack_segment_head(owner: Owner, segment: int) -> bytes:
    """Return the head of a segment."""
    body = _encode([FORMAT, owner.node, owner.journal, segment])
    head = _SEGMENT_MAGIC + _U32.pack(len(body)) + body
    return head + _U32.pack(crc32(head))


def segment_head_end(data: bytes) -> int:
    """Return the offset behind a segment's head, as the head states it; 0 without a head."""
    if not data.startswith(_SEGMENT_MAGIC) or len(data) < len(_SEGMENT_MAGIC) + _U32.size:
        return 0
    length = int(_U32.unpack_from(data, len(_SEGMENT_MAGIC))[0])
    return len(_SEGMENT_MAGIC) + _U32.size + length + _U32.size


def read_segment_head(data: bytes, owner: Owner, segment: int, name: str) -> int:
    """Check a segment's head; return the offset behind it.

    Raises DamagedError, or JournalError if it is whole but of another journal.
    """
    end = segment_head_end(data) - _U32.size
    if end < 0:
        raise DamagedError("no head")
    if len(data) < end + _U32.size or crc32(data[:end]) != _U32.unpack_from(data, end)[0]:
        raise DamagedError("its head does not check")
    found = msgspec.msgpack.decode(data[len(_SEGMENT_MAGIC) + _U32.size : end])
    _check_owner(found, owner, name)
    if found[3] != segment:
        raise ForeignJournal(f"{name} is segment {found[3]} under another name: undo the renaming")
    return end + _U32.size


def check_format(found: object, name: str) -> None:
    """Raise JournalError if a file or directory has a format that this voter does not read."""
    if not (isinstance(found, int) and OLDEST_FORMAT <= found <= FORMAT):
        raise JournalError(
            f"{name} has format {found}, this voter reads formats {OLDEST_FORMAT} to {FORMAT}: use"
            " the version of trivisor that wrote it",
            error_code="TV0214",
        )


def _check_owner(found: list[object], owner: Owner, name: str) -> None:
    """Raise JournalError if [format, node, journal, ...] is of another owner."""
    check_format(found[0], name)
    if found[1] != owner.node:
        raise ForeignJournal(
            f"{name} is of node {found[1]!r}, not of {owner.node!r}: move it back to its journal"
        )
    if found[2] != owner.journal:
        raise ForeignJournal(
            f"{name} is of another journal of node {owner.node!r}: move it back to its own journal"
        )


# -------------------------------------------------------------- checkpoints


class CheckpointHead(msgspec.Struct, frozen=True, array_like=True):
    """The first fields are those of a segment's head."""

    format: int
    node: str
    journal: bytes
    segment: int  # the first segment that is needed to continue from here
    first: int  # number of its first frame
    synced: int  # number of the last frame that was on the disk before the checkpoint was
    size: int  # of the state, in bytes
    keep: int  # the first segment that the checkpoint before this one needs


def _base_parts(base: Base) -> Iterator[bytes]:
    """Encode a base in parts of bounded work: itself without scopes, then some scopes each."""
    yield _encode(msgspec.structs.replace(base, sessions=[]))
    part: list[ScopeBase] = []
    count = 0
    for scope in base.sessions:
        for at in range(0, len(scope.kept) or 1, _KEPT_IN_PART):
            kept = scope.kept[at : at + _KEPT_IN_PART]
            part.append(msgspec.structs.replace(scope, kept=kept))
            count += len(kept) + 1
            if count >= _KEPT_IN_PART:
                yield _encode(part)
                part, count = [], 0
    if part:
        yield _encode(part)


def checkpoint_pieces(
    head: CheckpointHead, base: Base, state: bytes | bytearray
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a checkpoint in pieces of about a megabyte at most.

    Raises JournalError in the end if the state does not hash to the digest in the base.
    """
    check = blake2b(digest_size=32)
    body = _encode(head)
    part: bytes = _CHECKPOINT_MAGIC + _U32.pack(len(body)) + body
    check.update(part)
    yield part
    for encoded in _base_parts(base):
        part = _U32.pack(len(encoded)) + encoded
        check.update(part)
        yield part
    check.update(_U32.pack(0))
    yield _U32.pack(0) + check.digest()
    digest = blake2b(digest_size=32)
    view = memoryview(state)
    for at in range(0, len(view), _PIECE):
        piece = view[at : at + _PIECE]
        digest.update(piece)
        yield piece
    if base.digest != (digest.digest() if state or base.digest is not None else None):
        raise JournalError(
            f"the state of checkpoint {base.seq} no longer has the digest that was voted: this"
            " machine's memory is not to be trusted; the checkpoint was not written",
            error_code="TV0217",
        )


def peek_checkpoint(data: bytes) -> tuple[CheckpointHead, Base | None]:
    """Return a checkpoint's head from its first bytes, and its base without sessions.

    The base is None if these bytes do not hold it.  No checksum is compared.  Raises DamagedError.
    """
    parts: list[bytes] = []
    at = len(_CHECKPOINT_MAGIC)
    while data.startswith(_CHECKPOINT_MAGIC) and len(parts) < 2:
        start = at + _U32.size
        at = start + int.from_bytes(data[at:start])
        parts.append(data[start:at])
    try:
        head = msgspec.msgpack.decode(parts[0], type=CheckpointHead)
        return head, _decode_base(parts[1]) if at <= len(data) else None
    except (msgspec.DecodeError, IndexError) as error:
        raise DamagedError(f"its head cannot be read: {error}") from error


def read_checkpoint(data: bytes, owner: Owner, name: str) -> tuple[CheckpointHead, Base, bytes]:
    """Return head, base and state.

    Raises DamagedError, or JournalError if it is whole but of another journal.
    """
    at = len(_CHECKPOINT_MAGIC)
    if not data.startswith(_CHECKPOINT_MAGIC):
        raise DamagedError("no head")
    parts = []
    while True:
        if len(data) < at + _U32.size:
            raise DamagedError("cut short")
        length = int(_U32.unpack_from(data, at)[0])
        at += _U32.size
        if not length:
            break
        parts.append(data[at : at + length])
        at += length
    if blake2b(memoryview(data)[:at], digest_size=32).digest() != data[at : at + 32]:
        raise DamagedError("its checksum does not match")
    _check_owner(msgspec.msgpack.decode(parts[0]), owner, name)
    try:
        head = msgspec.msgpack.decode(parts[0], type=CheckpointHead)
        base, scopes = _decode_base(parts[1]), [_decode_scopes(part) for part in parts[2:]]
    except (msgspec.DecodeError, IndexError) as error:
        raise DamagedError(f"it is whole, yet holds no checkpoint: {error}") from error
    for some in scopes:
        for scope in some:
            if base.sessions and base.sessions[-1].scope == scope.scope:
                base.sessions[-1].kept.extend(scope.kept)
            else:
                base.sessions.append(scope)
    state = data[at + 32 :]
    if len(state) != head.size:
        raise DamagedError(f"its state has {len(state)} bytes instead of {head.size}")
    if base.digest is not None and blake2b(state, digest_size=32).digest() != base.digest:
        raise DamagedError("its state does not have the digest that was voted")
    return head, base, state
