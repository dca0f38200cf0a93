"""Reading a journal without opening it: for `trivisor replay` and other programs beside the voter.

A reader takes no lock and changes nothing, so the voter may run or not.  It reads the journal and
its history as one.  A running voter moves files to the history and removes the oldest: a file is
looked for in both places when it is read.  The end of the last segment may be half a frame, which
is where reading ends.

Everything read is checked: frames by their checksums and by the one before them, records by the
chain of their hashes, checkpoints by their digests.  Memory is bounded by one segment, or by one
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from guests.protocol.wire import EMPTY_HISTORY
from voter.core.entries import Base, Entry, Record
from voter.core.order import history_after
from voter.errors import JournalError
from voter.journal.format import (
    CheckpointHead,
    DamagedError,
    decode_entries,
    find_frame,
    peek_checkpoint,
    proved,
    read_checkpoint,
    read_segment_head,
)
from voter.journal.history import HISTORY
from voter.journal.recovery import (
    IDENTITY,
    VoterIdentity,
    checkpoint_name,
    numbers_of,
    parse_identity,
    segment_name,
)

__all__ = ["JournalReader", "KeptCheckpoint", "ReadableFiles"]

_PEEK = 1 << 20
"""Bytes of a checkpoint that hold its head and its base without sessions."""


class KeptCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint from which the log can be read on; seq 0: the empty state at the start.

    Sizes are bytes.  ``time_ns``: agreed time.
    """

    seq: int
    time_ns: int
    size: int  # of the state
    digest: bytes | None
    history: bytes  # hash of the history up to it
    segment: int  # the segment that holds the first entry after it
    first: int  # number of that segment's first frame


class _Place(msgspec.Struct):
    """Where reading has arrived."""

    frame: int  # number of the next frame
    before: int | None  # CRC of the head of the last frame
    history: bytes


class ReadableFiles(Protocol):
    """What a reader needs of the files of a journal."""

    def names(self) -> list[str]:
        """Return the names of all files, those of the history without their prefix."""

    def read(self, name: str, most: int = -1) -> tuple[bytes, str] | None:
        """Return a file's bytes (or the first ones) and its place; None if there is none."""


class _Directory:
    """The files of a journal on a real disk.  Methods raise JournalError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        names: set[str] = set()
        for below in (self._path, self._path / HISTORY):
            try:
                names.update(path.name for path in below.iterdir())
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(below, error) from error
        return sorted(names)

    def read(self, name: str, most: int = -1) -> tuple[bytes, str] | None:
        # The voter moves files from the first place to the second.
        for path in (self._path / name, self._path / HISTORY / name):
            try:
                with path.open("rb") as file:
                    return file.read(most), str(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(path, error) from error
        return None


class JournalReader:
    """A reader of the journal in a directory; ``files``: its files, if they are elsewhere.

    Raises JournalError if there is none, or if it is damaged, of another version, or not readable.
    """

    def __init__(self, directory: Path, files: ReadableFiles | None = None) -> None:
        self.directory = directory
        self._files = files or _Directory(directory)
        found = self._files.read(IDENTITY)
        if found is None:
            raise JournalError(
                f"there is no journal in {directory}: nothing was acknowledged there, or the node"
                " runs with durability none",
                error_code="TV0258",
            )
        self.identity: VoterIdentity = parse_identity(found[0], str(directory))

    # ------------------------------------------------------------ checkpoints

    def checkpoints(self) -> list[KeptCheckpoint]:
        """Return the checkpoints whose log is there up to the end of the journal, oldest first.

        Their checksums are compared only when they are loaded.
        """
        names = self._files.names()
        segments = numbers_of(names, "segment")
        first = segments[-1] if segments else 0
        while first - 1 in segments:
            first -= 1
        found = []
        if first == 1:
            found.append(_EMPTY)
        for seq in numbers_of(names, "checkpoint"):
            read = self._files.read(checkpoint_name(seq), _PEEK)
            if read is None:
                continue
            try:
                head, base = peek_checkpoint(read[0])
            except DamagedError:
                continue  # the voter keeps an older one
            if head.segment >= first and base is not None and base.seq == seq:
                found.append(_kept(head, base))
        return found

    def load(self, checkpoint: KeptCheckpoint) -> tuple[Base, bytes]:
        """Return the base and the state of a checkpoint.  Raises JournalError."""
        if checkpoint.seq == 0:
            return Base(), b""
        name = checkpoint_name(checkpoint.seq)
        read = self._files.read(name)
        if read is None:
            raise self._gone(f"checkpoint {checkpoint.seq}")
        data, path = read
        try:
            _, base, state = read_checkpoint(data, self.identity.owner, path)
        except DamagedError as error:
            raise _damaged(path, 0, str(error)) from error
        return base, state

    def _gone(self, what: str) -> JournalError:
        kept = self.checkpoints()
        now = f"kept from {kept[0].seq} on" if kept else "nothing is kept"
        return JournalError(
            f"journal {self.directory}: {what} is not kept ({now}): keep more with"
            " `trivisor up --keep-history MIB`",
            error_code="TV0256",
        )

    # ---------------------------------------------------------------- entries

    def entries(self, start: KeptCheckpoint) -> Iterator[Entry]:
        """Yield the entries after a checkpoint in their order, up to the end of the journal.

        Some that the checkpoint holds come first, without their Record.  If the journal was
        reverted (``voter.journal.revert``), what was undone comes before what follows the new
        checkpoint, whose ``history`` is then not that of the record before.  Raises JournalError.
        """
        place = _Place(start.first, None, start.history)
        number = start.segment
        while True:
            read = self._files.read(segment_name(number))
            if read is None:
                if number == start.segment or number < max(
                    numbers_of(self._files.names(), "segment")
                ):
                    raise self._gone(f"segment {number}")
                return
            data, path = read
            try:
                at = read_segment_head(data, self.identity.owner, number, path)
            except DamagedError as error:
                if not any(data) and number > start.segment:
                    return  # it was set aside, and is not in use
                raise _damaged(path, 0, str(error)) from error
            frame = place.frame
            yield from self._segment(data, at, path, place, start.seq)
            if place.frame == frame:
                return
            number += 1

    def _segment(
        self, data: bytes, at: int, path: str, place: _Place, after: int
    ) -> Iterator[Entry]:
        """Yield the entries of a segment, whose frames begin at ``at``."""
        seed, begin = self.identity.owner.seed, at
        while True:
            frame, _ = find_frame(data, at, seed, place.frame, place.before)
            if frame is None and at == begin:  # after a revert it names none before it
                frame, _ = find_frame(data, at, seed, place.frame, 0)
            if frame is None:
                if (proved(data, at, seed) or 0) < place.frame:
                    return
                read = self._files.read(path.rpartition("/")[2])  # written to while it was read?
                if read is None or read[0] == data:
                    raise _damaged(path, at, f"frame {place.frame} is damaged or missing")
                data, path = read
                continue
            place.frame, place.before, at = frame.number + 1, frame.check, frame.end
            try:
                entries = decode_entries(frame.payload) if frame.payload else []
            except msgspec.DecodeError as error:
                raise _damaged(path, at, f"frame {frame.number}: {error}") from error
            for entry in entries:
                if isinstance(entry, Record):
                    if entry.seq <= after:
                        continue
                    if entry.prev != place.history and self._is_reverted(entry):
                        place.history = entry.prev
                    self._check_chain(entry, place.history, path)
                    place.history = entry.history
                yield entry

    def _is_reverted(self, record: Record) -> bool:
        """Return whether a record continues a checkpoint to which the journal was reverted."""
        kept = self.checkpoints()
        return any(each.history == record.prev and 0 < each.seq < record.seq for each in kept)

    def _check_chain(self, r: Record, history: bytes, path: str) -> None:
        """Raise JournalError unless a record continues the history before it."""
        key = self.identity.key
        found = history_after(key, r.prev, r.seq, r.time_ns, r.read_only, r.caller, r.request)
        if r.prev != history or found != r.history:
            raise JournalError(
                f"{path}: the request with sequence number {r.seq} does not continue the history"
                " before it: start at a later checkpoint",
                error_code="TV0257",
            )


_EMPTY = KeptCheckpoint(
    seq=0, time_ns=0, size=0, digest=None, history=EMPTY_HISTORY, segment=1, first=1
)


def _kept(head: CheckpointHead, base: Base) -> KeptCheckpoint:
    return KeptCheckpoint(
        seq=base.seq,
        time_ns=base.time_ns,
        size=head.size,
        digest=base.digest,
        history=base.history,
        segment=head.segment,
        first=head.first,
    )


def _unreadable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"{path} cannot be read: {error.strerror}: only root, the node's owner and the voter's user"
        " may read a journal",
        error_code="TV0258",
    )


def _damaged(path: str, at: int, why: str) -> JournalError:
    return JournalError(
        f"{path}, offset {at}: {why}: start at a later checkpoint", error_code="TV0257"
    )
