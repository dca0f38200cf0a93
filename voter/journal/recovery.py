"""What a directory holds, believed only where it checks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from voter.core.entries import FORMAT, Base, Entry, Record, Settled, Void
from voter.core.order import EMPTY_HISTORY, history_after
from voter.errors import JournalError
from voter.journal.files import ASIDE, Files
from voter.journal.format import (
    COPIES,
    FRAME_HEAD,
    DamagedError,
    Owner,
    blank,
    decode_entries,
    find_frame,
    proved,
    read_checkpoint,
    read_segment_head,
    segment_head_end,
)

__all__ = [
    "IDENTITY",
    "RecoveredJournal",
    "VoterIdentity",
    "Segment",
    "checkpoint_name",
    "find",
    "numbers_of",
    "read_identity",
    "segment_name",
]

IDENTITY = "identity.json"
_BAD = ".bad"
_RESTORE = (
    "restore the file from a copy, or empty the directory and let the voter begin anew (its"
    " guests then lose their state)"
)


def segment_name(number: int) -> str:
    """Return the name of a segment's file."""
    return f"segment-{number:010d}"


def checkpoint_name(seq: int) -> str:
    """Return the name of the file of the checkpoint at place ``seq``."""
    return f"checkpoint-{seq:020d}"


def numbers_of(names: list[str], kind: str) -> list[int]:
    """Return the numbers of a kind of files (``segment``, ``checkpoint``), ascending."""
    found = (name.partition("-") for name in names)
    return sorted(int(number) for what, _, number in found if what == kind and number.isdigit())


class VoterIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose journal it is, in a file of its own that any version can read."""

    format: int
    node: str
    vote: str
    secret: str  # 32 bytes in hex; keys the hash of the history
    service: str | None = None
    state_format: int | None = None
    check: str = ""  # over all the others

    def checked(self) -> VoterIdentity:
        """Return the same with the check that belongs to it."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, check=""))
        return msgspec.structs.replace(self, check=blake2b(plain, digest_size=8).hexdigest())

    @property
    def owner(self) -> Owner:
        """What the files' heads and CRCs are checked against."""
        return Owner.of(self.node, bytes.fromhex(self.secret))


def read_identity(files: Files, node: str, vote: str) -> VoterIdentity | None:
    """Read the identity file; None if no journal has been begun here.

    Raises JournalError if it is not this node's, policy's and version's.
    """
    where = files.where
    names = files.names()
    if IDENTITY not in names:
        kinds = ("segment-", "checkpoint-")
        begun = [name for name in names if name.startswith(kinds) and not name.endswith(ASIDE)]
        # Nothing is written behind a segment's head before the identity is there.
        first = files.read(begun[0]) if begun else b""
        empty = blank(first, segment_head_end(first))
        if begun and (begun != [segment_name(1)] or not empty):
            raise JournalError(f"journal {where} has no {IDENTITY}: {_RESTORE}")
        return None
    try:
        data = msgspec.json.decode(files.read(IDENTITY), type=dict[str, object])
        if data.get("format") != FORMAT:
            raise JournalError(
                f"journal {where} has format {data.get('format')}, this voter reads format"
                f" {FORMAT}: use the version of trivisor that wrote it, or another directory"
            )
        identity = msgspec.convert(data, VoterIdentity)
        if identity != identity.checked():
            raise ValueError("its check does not match")
    except (msgspec.DecodeError, ValueError) as error:
        raise JournalError(
            f"journal {where}: {IDENTITY} is damaged ({error}): {_RESTORE}"
        ) from error
    if identity.node != node:
        raise JournalError(
            f"journal {where} is of node {identity.node!r}, not of {node!r}: give"
            " journal.directory or journal.node as they belong together"
        )
    if identity.vote != vote:
        raise JournalError(
            f"journal {where} was written under vote {identity.vote!r}, not {vote!r}: go on with"
            f" vote = {identity.vote!r}, or give another journal.directory"
        )
    return identity


class Segment(msgspec.Struct):
    """What is known of a segment in use."""

    number: int
    first: int  # number of its first frame
    at: int  # where its frames end
    size: int  # of the space that was set aside
    proved: int = 0  # up to here it is proved to have been synced once
    last_seq: int = 0  # of the last Record in it; 0: it holds none


class RecoveredJournal(NamedTuple):
    """What a directory holds."""

    base: Base
    state: bytes
    entries: list[Entry]
    segments: list[Segment]  # those in use, ascending; the last one is written on
    spare: Segment | None  # the one after them, which is empty
    frames: int  # number of the last frame
    check: int  # CRC of its head
    copy: bytes  # the last frame, if only one copy of it is whole: it must be written once more
    checkpoint: tuple[int, int, int] | None  # seq, segment it needs, size of its state


async def find(
    files: Files, identity: VoterIdentity, tell: Callable[[str], None]
) -> RecoveredJournal:
    """Read all that is needed to go on; cut a torn tail's segments away.

    The last segment of the answer must still be reopened at its ``at``, and synced.  ``tell`` is
    told what was dropped.  Raises JournalError if anything that was promised is not there.
    """
    await files.sync_names()  # a voter that was killed may have left some that are not on the disk
    for name in files.names():
        if name.endswith(ASIDE):
            await files.remove(name)
    return await _Reader(files, identity, tell).read()


class _Reader:
    """Reads a directory once."""

    def __init__(self, files: Files, identity: VoterIdentity, tell: Callable[[str], None]) -> None:
        self._files = files
        self._owner = identity.owner
        self._secret = bytes.fromhex(identity.secret)
        self._tell = tell
        self._segments: list[Segment] = []
        self._entries: list[Entry] = []
        self._base = Base()
        self._check: int | None = None  # of the last frame that was read
        self._copy = b""
        self._keep = 0  # segments before this one are needed by no checkpoint that is kept
        self._last: Record | None = None

    def _name(self, name: str) -> str:
        return f"{self._files.where}/{name}"

    async def read(self) -> RecoveredJournal:
        numbers = numbers_of(self._files.names(), "segment")
        state, checkpoint, first, frame, synced = await self._read_checkpoint()
        if not numbers or first not in numbers:
            raise JournalError(
                f"journal {self._files.where}: {segment_name(first)} is missing: {_RESTORE}"
            )
        numbers = numbers[numbers.index(first) :]
        for number, expected in zip(numbers, range(first, first + len(numbers)), strict=True):
            if number != expected:
                raise JournalError(
                    f"journal {self._files.where}: {segment_name(expected)} is missing between"
                    f" others: {_RESTORE}"
                )
        frame = self._read_segments(numbers, frame, synced)
        spare = await self._cut(numbers, frame, synced)
        for number in numbers_of(self._files.names(), "segment"):
            if number < self._keep:  # a voter was killed while it removed them
                await self._files.remove(segment_name(number))
        return RecoveredJournal(
            self._base,
            state,
            self._entries,
            self._segments,
            spare,
            frame - 1,
            self._check or 0,
            self._copy,
            checkpoint,
        )

    # --------------------------------------------------------- checkpoints

    async def _read_checkpoint(self) -> tuple[bytes, tuple[int, int, int] | None, int, int, int]:
        """Take the newest checkpoint that is whole; return state, facts, and where to read on:
        the segment, the number of its first frame, the last frame that was synced by then.
        """
        names = self._files.names()
        for seq in reversed(numbers_of(names, "checkpoint")):
            name = checkpoint_name(seq)
            try:
                data = self._files.read(name)
                head, self._base, state = read_checkpoint(data, self._owner, self._name(name))
            except (DamagedError, OSError) as error:
                for old in names:
                    if old.endswith(_BAD):
                        await self._files.remove(old)  # so that they do not pile up
                names = [old for old in names if not old.endswith(_BAD)]
                await self._files.rename(name, name + _BAD)
                self._tell(
                    f"checkpoint {self._name(name)} is dropped ({error}), the one before it is"
                    f" used; it is kept as {name}{_BAD}"
                )
                continue
            self._keep = head.keep
            return state, (seq, head.segment, len(state)), head.segment, head.first, head.synced
        segments = numbers_of(names, "segment")
        if segments and segments[0] != 1:
            raise JournalError(
                f"journal {self._files.where} has no whole checkpoint, and its segments begin"
                f" with {segments[0]}, not at the start: {_RESTORE}"
            )
        return b"", None, 1, 1, 0

    # ------------------------------------------------------------ segments

    def _open(self, number: int) -> tuple[bytes, int | None]:
        """Return a segment's bytes and where its frames begin (None: it was never begun)."""
        data = self._files.read(segment_name(number))
        name = self._name(segment_name(number))
        try:
            return data, read_segment_head(data, self._owner, number, name)
        except DamagedError as error:
            # The head is on the disk before the first frame is written.
            if not self._segments or proved(data, 0, self._owner.seed) is not None:
                raise JournalError(f"{name}, offset 0: {error}: {_RESTORE}") from error
            return data, None

    def _read_segments(self, numbers: list[int], frame: int, synced: int) -> int:
        """Read the frames that follow each other from number ``frame`` on; return the next one.

        Frames up to ``synced`` are known to have been synced.
        """
        seed = self._owner.seed
        doubtful: deque[tuple[int, Segment, int]] = deque()  # number, segment, where it begins
        heads: dict[int, int] = {}  # where the frames of each segment begin
        damaged: list[tuple[int, int, int]] = []  # segment, offset and number of such a frame
        for number in numbers:
            data, at = self._open(number)
            found, copies = None, 0
            if at is not None:
                found, copies = find_frame(data, at, seed, frame, self._check)
            if self._segments and found is None:
                break
            segment = Segment(number, frame, at or 0, len(data))
            heads[number] = segment.at
            self._segments.append(segment)
            while found is not None:
                self._check, self._copy = found.check, b""
                if copies < COPIES:
                    damaged.append((number, segment.at, frame))
                    start = found.end - len(found.payload) - FRAME_HEAD
                    self._copy = data[start : found.end]
                try:
                    entries = decode_entries(found.payload) if found.payload else []
                except msgspec.DecodeError as error:
                    raise JournalError(
                        f"{self._name(segment_name(number))}, offset {segment.at}: frame {frame} is"
                        f" whole, yet holds no entries ({error}): a defect, please report it"
                    ) from error
                self._take(entries, segment)
                doubtful.append((frame, segment, segment.at))
                synced = max(synced, found.synced)
                while doubtful and doubtful[0][0] <= synced:
                    doubtful.popleft()
                segment.at = found.end
                frame += 1
                found, copies = find_frame(data, segment.at, seed, frame, self._check)
        for number, at, damaged_frame in damaged:
            self._tell(
                f"{self._name(segment_name(number))}, offset {at}: one copy of frame"
                f" {damaged_frame} is damaged, the other one is used"
            )
        for segment in self._segments:
            segment.proved = segment.at
        for _, segment, at in reversed(doubtful):
            segment.proved = at
        for segment in self._segments:
            # Where no frame is proved the head need not be on the disk either: its sync may have
            # failed.
            if segment.proved <= heads[segment.number]:
                segment.proved = 0
        return frame

    async def _cut(self, numbers: list[int], frame: int, synced: int) -> Segment | None:
        """Make sure that frame ``frame`` and what is behind it was never promised, and remove the
        segments behind the last one in use; but one that is empty is the spare: return it.
        """
        last = self._segments[-1]
        name = self._name(segment_name(last.number))
        data, _ = self._open(last.number)
        seed = self._owner.seed
        torn = not blank(data, last.at)
        claims = [synced, proved(data, last.at, seed) or 0 if torn else 0]
        spare: Segment | None = None
        doomed = []
        for number in numbers[numbers.index(last.number) + 1 :]:
            data, at = self._open(number)
            if at is not None and number == last.number + 1 and blank(data, at):
                spare = Segment(number, 0, at, len(data))
            else:
                claims.append(proved(data, 0, seed) or 0)
                torn = torn or not blank(data)
                doomed.append(number)
        if max(claims) >= frame:
            raise JournalError(
                f"{name}, offset {last.at}: frame {frame} is damaged or missing, yet it was on the"
                f" disk once (frames up to {max(claims)} were): {_RESTORE}"
            )
        for number in reversed(doomed):
            await self._files.remove(segment_name(number))
        if torn and not (self._copy and not claims[1]):
            self._tell(
                f"{name}, offset {last.at}: torn tail: what was written from here on (frame"
                f" {frame}) was cut short before it was synced, and is dropped"
            )
        return spare

    def _take(self, entries: list[Entry], segment: Segment) -> None:
        """Check the records' chain, and keep what is not in the base."""
        seq = self._base.seq
        for entry in entries:
            if type(entry) is Record:
                segment.last_seq = max(segment.last_seq, entry.seq)
                self._check_chain(entry)
                if entry.seq > seq:
                    self._entries.append(entry)
            elif not isinstance(entry, Settled | Void) or entry.seq > seq:
                self._entries.append(entry)

    def _check_chain(self, record: Record) -> None:
        """Raise JournalError unless a record goes on from the one before it."""
        last, base = self._last, self._base
        self._last = record
        if last is not None and (last.seq > base.seq or record.seq <= base.seq):
            before: bytes | None = last.history
        elif record.seq > base.seq:
            before = base.history
        else:
            before = EMPTY_HISTORY if self._segments[0].number == 1 else None
        history = history_after(
            self._secret,
            record.prev,
            record.seq,
            record.time_ns,
            record.read_only,
            record.caller,
            record.request,
        )
        wrong = record.seq == base.seq and record.history != base.history
        if (
            wrong
            or history != record.history
            or (before is not None and record.prev != before)
            or (last is not None and record.seq <= last.seq)
        ):
            raise JournalError(
                f"journal {self._files.where}: the request at place {record.seq} does not go on"
                f" from the history before it: {_RESTORE}"
            )
