"""Recovery: what a journal's directory holds, trusted only where its checksums prove it.

Theory of operation.  ``recover`` reads a directory in four steps.

1. It takes the newest checkpoint that is whole.  A damaged one is renamed to ``*.bad`` and the one
   before it is used, whose segments are still there.
2. From the segment that the checkpoint names it reads frames in order.  The next frame must have
   the next number and must name the checksum of the frame before it.  Of the two copies of a frame
   the first whole one counts.
3. Where the frames end, it asks whether that end can be the end.  Every whole frame head behind it,
   and the checkpoint, carries the number of a frame that was on the disk by then.  If any of these
   numbers is at or behind the first missing frame, an acknowledged entry is lost: recovery fails
   and names file and offset.  If none is, what follows is a *torn tail*: it was written and never
   synced, so nobody was promised it.  It is dropped and logged.
4. The segment after the last one in use becomes the spare segment; what it holds of a torn tail is
   overwritten (a full disk may have no room for another one).  Those behind it are removed.

The records' hash chain is checked on the way (``_check_chain``).

A frame that was read may still be in the page cache only, for the previous voter may have been
killed before its sync.  ``Segment.proved`` is the offset up to which a later frame or checkpoint
proves that the bytes were synced; ``open_journal`` writes the rest again before it syncs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from guests.protocol.wire import EMPTY_HISTORY
from voter.core.entries import Base, Entry, Record, Settled, Void
from voter.core.order import history_after
from voter.errors import ForeignJournal, JournalDamaged, JournalError
from voter.journal.files import INCOMPLETE, Files, JournalFile
from voter.journal.format import (
    COPIES,
    FRAME_HEAD,
    DamagedError,
    Owner,
    blank,
    check_format,
    decode_entries,
    find_frame,
    pack_segment_head,
    proved,
    read_checkpoint,
    read_segment_head,
    segment_head_end,
)

__all__ = [
    "IDENTITY", "RecoveredJournal", "VoterIdentity", "Segment", "checkpoint_name",
    "create_segment", "numbers_of", "parse_identity", "read_identity", "recover", "segment_name",
    "write_identity",
]  # fmt: skip

IDENTITY = "identity.json"
_BAD = ".bad"
_RESTORE = (
    "restore the file from a copy, or give another journal.directory and let the voter start empty"
    " (its guests then lose their state)"
)


def segment_name(number: int) -> str:
    """Return the name of a segment's file."""
    return f"segment-{number:010d}"


def checkpoint_name(seq: int) -> str:
    """Return the name of the file of the checkpoint at sequence number ``seq``."""
    return f"checkpoint-{seq:020d}"


def numbers_of(names: list[str], kind: str) -> list[int]:
    """Return the numbers of a kind of files (``segment``, ``checkpoint``), ascending."""
    found = (name.partition("-") for name in names)
    return sorted(int(number) for what, _, number in found if what == kind and number.isdigit())


class VoterIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a journal, in a file of its own that any version can read."""

    format: int
    node: str
    vote: str
    secret: str  # 32 bytes in hex; keys the hash of the history
    service: str | None = None
    state_format: int | None = None
    check: str = ""  # over all the others

    def checked(self) -> VoterIdentity:
        """Return a copy with its checksum."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, check=""))
        return msgspec.structs.replace(self, check=blake2b(plain, digest_size=8).hexdigest())

    @property
    def key(self) -> bytes:
        """The secret that keys the hash of the history."""
        return bytes.fromhex(self.secret)

    @property
    def owner(self) -> Owner:
        """What the heads and checksums of the files are checked against."""
        return Owner.of(self.node, self.key)


def read_identity(files: Files, node: str, vote: str) -> VoterIdentity | None:
    """Read the identity file; return None if no journal was started here.

    Raises JournalError if it is of another node, policy or version.
    """
    where = files.where
    names = files.names()
    if IDENTITY not in names:
        kinds = ("segment-", "checkpoint-")
        begun = [name for name in names if name.startswith(kinds) and not name.endswith(INCOMPLETE)]
        # The identity is written before anything follows the head of the first segment.
        first = files.read(begun[0]) if begun else b""
        empty = blank(first, segment_head_end(first))
        if begun and (begun != [segment_name(1)] or not empty):
            raise JournalDamaged(f"journal {where} has no {IDENTITY}: {_RESTORE}")
        return None
    identity = parse_identity(files.read(IDENTITY), where)
    if identity.node != node:
        raise ForeignJournal(
            f"journal {where} is of node {identity.node!r}, not of {node!r}: give"
            " journal.directory or journal.node as they belong together"
        )
    if identity.vote != vote:
        raise JournalError(
            f"journal {where} was written under vote {identity.vote!r}, not {vote!r}: configure"
            f" vote = {identity.vote!r}, or another journal.directory",
            error_code="TV0213",
        )
    return identity


def parse_identity(text: bytes, where: str) -> VoterIdentity:
    """Return what an identity file holds.  Raises JournalError."""
    try:
        data = msgspec.json.decode(text, type=dict[str, object])
        check_format(data.get("format"), f"journal {where}")
        identity = msgspec.convert(data, VoterIdentity)
        if identity != identity.checked():
            raise ValueError("its check does not match")
    except (msgspec.DecodeError, ValueError) as error:
        raise JournalDamaged(
            f"journal {where}: {IDENTITY} is damaged ({error}): {_RESTORE}"
        ) from error
    return identity


class Segment(msgspec.Struct):
    """What is known of a segment in use."""

    number: int
    first: int  # number of its first frame
    at: int  # offset behind its last frame
    size: int  # of the space that was set aside
    proved: int = 0  # up to this offset its bytes are proved to have been synced
    last_seq: int = 0  # of the last Record in it; 0: it holds none


class RecoveredJournal(msgspec.Struct):
    """What a directory holds."""

    identity: VoterIdentity
    base: Base = msgspec.field(default_factory=Base)
    state: bytes = b""
    entries: list[Entry] = []  # after the base, in order
    segments: list[Segment] = []  # those in use, ascending; the last one is written on
    spare: Segment | None = None  # the one after them, which is empty
    frames: int = 0  # number of the last frame
    check: int = 0  # CRC of its head
    copy: bytes = b""  # the last frame, if only one copy of it is whole: it is written once more
    checkpoint: tuple[int, int, int] | None = None  # seq, segment it needs, size of its state
    notes: list[str] = []  # what was damaged or dropped


async def write_identity(files: Files, identity: VoterIdentity) -> None:
    """Write the identity file.  Raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(identity.checked()))
    await files.write_whole(IDENTITY, [text])


async def create_segment(
    files: Files, identity: VoterIdentity, number: int, size: int
) -> tuple[JournalFile, Segment]:
    """Set a segment aside and sync its head."""
    head = pack_segment_head(identity.owner, number)
    file = await files.create(segment_name(number), size)
    file.append(head)
    await file.sync()
    return file, Segment(number, 0, len(head), size)


async def recover(
    files: Files, identity: VoterIdentity, report: Callable[[str], None], *, keep: bool = False
) -> RecoveredJournal:
    """Read all that is needed to continue; remove the segments of a torn tail.

    The last segment of the result must still be reopened at its ``at``, and synced.  ``report``
    gets what was damaged or dropped.  ``keep``: leave segments that are no longer needed, for the
    history.  Raises JournalError if anything that was promised is missing.
    """
    await files.sync_names()  # a voter that was killed may have left some that are not on the disk
    for name in files.names():
        if name.endswith(INCOMPLETE):
            await files.remove(name)
    return await _Reader(files, identity, report, keep=keep).read()


class _Reader:
    """Reads a directory once."""

    def __init__(
        self,
        files: Files,
        identity: VoterIdentity,
        report: Callable[[str], None],
        *,
        keep: bool,
    ) -> None:
        self._files = files
        self._keep_old = keep
        self._owner = identity.owner
        self._key = identity.key
        self._report = report
        self._found = RecoveredJournal(identity)
        self._before: int | None = None  # CRC of the head of the last frame that was read
        self._frame = 1  # number of the next frame
        self._synced = 0  # number of the last frame that is proved to have been synced
        self._keep = 0  # no kept checkpoint needs the segments before this one
        self._last: Record | None = None

    def _name(self, name: str) -> str:
        return f"{self._files.where}/{name}"

    async def read(self) -> RecoveredJournal:
        numbers = numbers_of(self._files.names(), "segment")
        first = await self._read_checkpoint()
        numbers = [number for number in numbers if number >= first]
        for expected in range(first, max(numbers, default=first) + 1):
            if expected not in numbers:
                raise JournalDamaged(
                    f"journal {self._files.where}: {segment_name(expected)} is missing: {_RESTORE}"
                )
        self._read_segments(numbers)
        self._found.spare = await self._cut(numbers)
        for number in numbers_of(self._files.names(), "segment"):
            # A voter was killed while it removed them.
            if number < self._keep and not self._keep_old:
                await self._files.remove(segment_name(number))
        self._found.frames, self._found.check = self._frame - 1, self._before or 0
        return self._found

    # --------------------------------------------------------- checkpoints

    async def _read_checkpoint(self) -> int:
        """Take the newest checkpoint that is whole; return the first segment to read after it."""
        names = self._files.names()
        for seq in reversed(numbers_of(names, "checkpoint")):
            name = checkpoint_name(seq)
            try:
                data = self._files.read(name)
                head, base, state = read_checkpoint(data, self._owner, self._name(name))
            except (DamagedError, OSError) as error:
                for old in names:
                    if old.endswith(_BAD):
                        await self._files.remove(old)  # keep only the last one
                names = [old for old in names if not old.endswith(_BAD)]
                await self._files.rename(name, name + _BAD)
                self._report(
                    f"checkpoint {self._name(name)} is dropped ({error}), the one before it is"
                    f" used; it is kept as {name}{_BAD}"
                )
                continue
            self._found.base, self._found.state = base, state
            self._found.checkpoint = seq, head.segment, len(state)
            self._frame, self._synced, self._keep = head.first, head.synced, head.keep
            return head.segment
        segments = numbers_of(names, "segment")
        if segments and segments[0] != 1:
            raise JournalDamaged(
                f"journal {self._files.where} has no whole checkpoint, and its segments begin"
                f" with {segments[0]}, not at the start: {_RESTORE}"
            )
        return 1

    # ------------------------------------------------------------ segments

    def _open(self, number: int) -> tuple[bytes, int | None]:
        """Return a segment's bytes and where its frames begin (None: it was never begun)."""
        data = self._files.read(segment_name(number))
        name = self._name(segment_name(number))
        try:
            return data, read_segment_head(data, self._owner, number, name)
        except DamagedError as error:
            # The head is on the disk before the first frame is written.
            if not self._found.segments or proved(data, 0, self._owner.seed) is not None:
                raise JournalDamaged(f"{name}, offset 0: {error}: {_RESTORE}") from error
            return data, None

    def _read_segments(self, numbers: list[int]) -> None:
        """Read the frames that follow each other, from the checkpoint on."""
        seed, segments = self._owner.seed, self._found.segments
        unproved: deque[tuple[int, Segment, int]] = deque()  # number, segment, where it begins
        starts: dict[int, int] = {}  # where the frames of each segment begin
        damaged: list[tuple[int, int, int]] = []  # segment, offset and number of such a frame
        for number in numbers:
            data, at = self._open(number)
            frame, copies = None, 0
            if at is not None:
                frame, copies = find_frame(data, at, seed, self._frame, self._before)
            if segments and frame is None:
                break
            segment = Segment(number, self._frame, at or 0, len(data))
            starts[number] = segment.at
            segments.append(segment)
            while frame is not None:
                self._before, self._found.copy = frame.check, b""
                if copies < COPIES:
                    damaged.append((number, segment.at, self._frame))
                    start = frame.end - len(frame.payload) - FRAME_HEAD
                    self._found.copy = data[start : frame.end]
                try:
                    entries = decode_entries(frame.payload) if frame.payload else []
                except msgspec.DecodeError as error:
                    raise JournalError(
                        f"{self._name(segment_name(number))}, offset {segment.at}: frame"
                        f" {self._frame} is whole, yet holds no entries ({error}): a defect, please"
                        " report it",
                        error_code="TV0218",
                    ) from error
                self._take(entries, segment)
                unproved.append((self._frame, segment, segment.at))
                self._synced = max(self._synced, frame.synced)
                while unproved and unproved[0][0] <= self._synced:
                    unproved.popleft()
                segment.at = frame.end
                self._frame += 1
                frame, copies = find_frame(data, segment.at, seed, self._frame, self._before)
        for number, at, damaged_frame in damaged:
            self._report(
                f"{self._name(segment_name(number))}, offset {at}: one copy of frame"
                f" {damaged_frame} is damaged, the other one is used"
            )
        for segment in segments:
            segment.proved = segment.at
        for _, segment, at in reversed(unproved):
            segment.proved = at
        for segment in segments:
            # Without a proved frame the head need not be on the disk either: its sync may have
            # failed.
            if segment.proved <= starts[segment.number]:
                segment.proved = 0

    async def _cut(self, numbers: list[int]) -> Segment | None:
        """Make sure that the next frame and what follows it was never promised.

        Of the segments behind the last one in use, return the first, which becomes the spare one,
        and remove the others.
        """
        last, frame = self._found.segments[-1], self._frame
        name = self._name(segment_name(last.number))
        data, _ = self._open(last.number)
        seed = self._owner.seed
        torn = not blank(data, last.at)
        claims = [self._synced, proved(data, last.at, seed) or 0 if torn else 0]
        spare: Segment | None = None
        dropped = []
        for number in numbers[numbers.index(last.number) + 1 :]:
            data, at = self._open(number)
            claims.append(proved(data, at or 0, seed) or 0)
            torn = torn or not blank(data, at or 0)
            if at is not None and number == last.number + 1:
                spare = Segment(number, 0, at, len(data))
            else:
                dropped.append(number)
        if max(claims) >= frame:
            raise JournalDamaged(
                f"{name}, offset {last.at}: frame {frame} is damaged or missing, yet it was on the"
                f" disk once (frames up to {max(claims)} were): {_RESTORE}"
            )
        for number in reversed(dropped):
            await self._files.remove(segment_name(number))
        if torn and not (self._found.copy and not claims[1]):
            self._report(
                f"{name}, offset {last.at}: torn tail: what was written from here on (frame"
                f" {frame}) was cut short before it was synced, and is dropped"
            )
        return spare

    def _take(self, entries: list[Entry], segment: Segment) -> None:
        """Check the records' chain, and keep what is not in the base."""
        seq = self._found.base.seq
        for entry in entries:
            if type(entry) is Record:
                segment.last_seq = max(segment.last_seq, entry.seq)
                self._check_chain(entry)
            if not isinstance(entry, Record | Settled | Void) or entry.seq > seq:
                self._found.entries.append(entry)

    def _check_chain(self, record: Record) -> None:
        """Raise JournalError unless a record continues the history of the one before it."""
        last, base = self._last, self._found.base
        self._last = record
        if last is not None and (last.seq > base.seq or record.seq <= base.seq):
            before: bytes | None = last.history
        elif record.seq > base.seq:
            before = base.history
        else:
            before = EMPTY_HISTORY if self._found.segments[0].number == 1 else None
        r = record
        history = history_after(
            self._key, r.prev, r.seq, r.time_ns, r.read_only, r.caller, r.request
        )
        wrong = record.seq == base.seq and record.history != base.history
        if (
            wrong
            or history != record.history
            or (before is not None and record.prev != before)
            or (last is not None and record.seq <= last.seq)
        ):
            raise JournalDamaged(
                f"journal {self._files.where}: the request with sequence number {record.seq}"
                f" does not continue the history before it: {_RESTORE}"
            )
