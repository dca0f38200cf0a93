"""The journal while it is written.

One request, in one sitting: ``append`` collects → ``flush``, at the end of the loop's turn, writes
one frame → ``_sync`` has it on the disk → ``on_synced`` says so.  Beside that ``run`` sets the next
segment aside before it is needed, and writes checkpoints.

Only asyncio, and the files handed in: a simulation can run this very code.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from voter import log
from voter.core.entries import FORMAT, Base, Entry, Record, Settled
from voter.errors import JournalError
from voter.journal.files import Files, JournalFile
from voter.journal.format import (
    COPIES,
    CheckpointHead,
    checkpoint_pieces,
    pack_frame,
    pack_segment_head,
)
from voter.journal.recovery import (
    IDENTITY,
    RecoveredJournal,
    Segment,
    VoterIdentity,
    checkpoint_name,
    numbers_of,
    segment_name,
)

__all__ = ["Durability", "Journal", "Tail", "create_segment", "write_identity"]

Durability = Literal["fsync", "os"]

LARGEST = 4 << 20
"""Bytes of entries in a frame, unless one entry alone is larger."""
MANY = 64
"""Entries that are written even if nobody waits for them."""
IDLE = 0.05
"""Seconds without a write after which a frame says what is synced."""
FIRST_WAIT, LONGEST_WAIT = 0.2, 2.0
"""Seconds between looks whether there is room again: from, to."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_encode = msgspec.msgpack.Encoder().encode


async def write_identity(files: Files, identity: VoterIdentity) -> None:
    """Put the identity file in its place.  Raises OSError."""
    await files.write_whole(
        IDENTITY, [msgspec.json.format(msgspec.json.encode(identity.checked()))]
    )


class Tail(NamedTuple):
    """The segment that is written on, and the empty one after it."""

    file: JournalFile
    spare: tuple[JournalFile, Segment] | None


class Journal:
    """Made by ``open_journal``.  A write or sync that fails raises JournalError and is the end:
    what is on the disk then is not known any more, and nothing is tried again.
    """

    def __init__(
        self,
        files: Files,
        identity: VoterIdentity,
        found: RecoveredJournal,
        tail: Tail,
        *,
        durability: Durability,
        segment_size: int,
        on_synced: Callable[[int], None],
        on_full: Callable[[bool, str], None],
    ) -> None:
        self._files = files
        self._identity = identity
        self._owner = identity.owner
        self._seed = self._owner.seed
        self._durability = durability
        self._segment_size = segment_size
        self._on_synced = on_synced
        self._on_full = on_full
        self._segments = found.segments
        self._file = tail.file
        self._old: list[JournalFile] = []  # written full, not synced yet
        self._spare = tail.spare
        self._free = found.segments[-1].size - found.segments[-1].at
        self._collected: list[Entry] = []
        self.position = 0
        """Entries appended since the start."""
        self._written = 0  # of them, handed to the operating system
        self._synced = 0  # of them, on the disk (durability os: written)
        self._frame = found.frames  # number of the last frame written
        self._check = found.check  # ... its head's CRC
        self._durable = found.frames  # ... of the last one on the disk
        self._said = 0  # ... of the last one that a frame says is
        self._checkpoint = found.checkpoint
        self._to_write: tuple[Base, bytes | bytearray, int] | None = None
        self._learned = False
        self.full = False
        self.reason = ""
        self._failure: JournalError | None = None
        self._urgent = False  # a sync is waited for
        self._pressing = False  # somebody waits for what is collected
        self._lags = False  # something is written that nobody waits for
        self._timed = False  # after IDLE something is done in any case
        self._stirred = asyncio.Event()
        self._progress = asyncio.Event()
        self._low = asyncio.Event()
        self._chore = asyncio.Event()
        self._sync_last = self._sync_longest = 0.0
        self._mind_space()

    # ------------------------------------------------------------- writing

    def append(self, entry: Entry) -> None:
        """Collect an entry; it is written by the next flush.

        A ``Settled`` needs no sync of its own, for nobody waits for it, and the replicas can tell
        it again; with durability "os" it is not even written before the next entry, or IDLE.
        """
        self._collected.append(entry)
        self.position += 1
        if type(entry) is not Settled or len(self._collected) >= MANY:
            self._pressing = True

    def flush(self) -> None:
        """Write what was collected, as one frame (more if it is very large).

        Raises JournalError; then nothing that depends on it may be sent.
        """
        if self._failure is not None:
            raise self._failure
        lazy = self._durability == "os"
        while self._pressing or (self._collected and not lazy):  # also what on_synced appends
            pressing = self._pressing
            self._write_collected()  # its frame also proves what was synced before
            if lazy:
                self._on_synced(self._synced)
            elif pressing:
                self._sync_now()
            else:
                self._lags = True
        if (self._collected or self._lags) and not self._timed:
            self._stirred.set()

    def _write_collected(self) -> None:
        self._pressing = False
        entries, self._collected = self._collected, []
        if entries:
            self._write(entries)
            self._written += len(entries)
            if self._durability == "os":
                self._synced = self._written

    def _write(self, entries: list[Entry]) -> None:
        payload = _encode(entries)
        if len(payload) > LARGEST and len(entries) > 1:
            half = len(entries) // 2
            self._write(entries[:half])
            self._write(entries[half:])
            return
        self._put(payload)
        seqs = (entry.seq for entry in entries if isinstance(entry, Record))
        self._segments[-1].last_seq = max(self._segments[-1].last_seq, *seqs, 0)

    def _put(self, payload: bytes) -> None:
        """Write one frame.  One that does not fit goes to the next segment; only where that has
        not been set aside in time, this one grows.
        """
        if self._failure is not None:
            raise self._failure
        frame, check = pack_frame(self._seed, self._frame + 1, self._durable, payload, self._check)
        frame *= COPIES
        if len(frame) > self._free and self._spare is not None:
            self._old.append(self._file)
            self._file, segment = self._spare
            self._spare = None
            segment.first = self._frame + 1
            self._segments.append(segment)
            self._free = segment.size - segment.at
            self._sync_now()
        try:
            self._file.append(frame)
        except OSError as error:
            self._fail("write", error)
        self._frame += 1
        self._check = check
        self._said = self._durable
        self._free -= len(frame)
        self._segments[-1].at += len(frame)
        self._mind_space()

    def _mind_space(self) -> None:
        if self._spare is None and self._free < self._segment_size * 3 // 4:
            self._low.set()

    def _fail(self, what: str, error: OSError) -> NoReturn:
        """Remember that it is over, and raise."""
        self._failure = JournalError(
            f"journal {self._files.where}: {what} failed: {error.strerror or error}: the voter"
            " ends, for what is on the disk is not known any more; start it again once the disk is"
            " well"
        )
        self._sync_now()
        raise self._failure from error

    def _sync_now(self) -> None:
        self._urgent = True
        self._stirred.set()

    async def prove(self) -> None:
        """Write a frame that says that all frames before it are on the disk, and sync it.

        From then on none of them can be mistaken for a torn tail, even if both copies are damaged.
        Raises JournalError.
        """
        self._put(b"")
        await self._sync()

    # ------------------------------------------------------------- running

    async def run(self) -> None:
        """Sync, set segments aside and write checkpoints, until cancelled.  Raises JournalError."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_synced(), name="journal sync")
                group.create_task(self._keep_spare(), name="journal spare")
                group.create_task(self._do_chores(), name="journal checkpoints")
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _keep_synced(self) -> None:
        while True:
            if not self._urgent:
                self._stirred.clear()
                untold = self._said < self._durable and self._frame == self._durable
                self._timed = untold or self._lags or bool(self._collected)
                try:
                    async with asyncio.timeout(IDLE if self._timed else None):
                        await self._stirred.wait()
                    continue
                except TimeoutError:
                    if self._durability == "os" and self._collected:
                        self._write_collected()
                        self._on_synced(self._synced)  # there may be a request among them
                        continue
                    if not self._lags:
                        if self._said < self._durable and self._frame == self._durable:
                            self._put(b"")  # says what is synced; needs no sync itself
                        continue
                finally:
                    self._timed = False
            self._urgent = self._lags = False
            await self._sync()
            if self._durability == "fsync":
                self._on_synced(self._synced)

    async def _sync(self) -> None:
        """Have all that was written by now on the disk."""
        if self._failure is not None:
            raise self._failure
        written, frame, file = self._written, self._frame, self._file
        old, self._old = self._old, []
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            for each in (*old, file):
                await each.sync()
        except OSError as error:
            self._fail("sync", error)
        for each in old:
            each.close()
        self._sync_last = loop.time() - began
        self._sync_longest = max(self._sync_longest, self._sync_last)
        self._durable = frame
        self._synced = max(self._synced, written)
        self._progress.set()
        self._progress.clear()

    async def _synced_to(self, frame: int) -> None:
        while self._durable < frame:
            self._sync_now()
            await self._progress.wait()

    # ------------------------------------------------------- room ahead

    async def _keep_spare(self) -> None:
        while True:
            await self._low.wait()
            self._low.clear()
            if self._spare is None:
                number = self._segments[-1].number + 1
                await self._with_room(lambda n=number: self._set_aside(n))  # type: ignore[misc]

    async def _set_aside(self, number: int) -> None:
        self._spare = await create_segment(self._files, self._identity, number, self._segment_size)

    async def _with_room(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do work that needs room; while there is none, say so and try again."""
        wait = FIRST_WAIT
        while True:
            try:
                await work()
                break
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    self._fail("setting a segment aside", error)
                self._tell_full(
                    True, f"journal {self._files.where}: {error.strerror}: make room there"
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        self._tell_full(False, "")

    def _tell_full(self, full: bool, reason: str) -> None:
        if full != self.full:
            self.full, self.reason = full, reason
            log.info("the journal is full" if full else "the journal has room again", reason=reason)
            self._on_full(full, reason)

    # ---------------------------------------------------------- checkpoints

    def checkpoint(self, base: Base, state: bytes | bytearray) -> None:
        """Write a checkpoint in the background; one that has not been begun yet gives way to it.

        ``state`` is not copied: it must not be changed until it is written.
        """
        self._to_write = base, state, self._frame + 1  # frames before that one are in the base
        self._chore.set()

    def learn(self, service: str, state_format: int) -> None:
        """Remember whose state it is; written in the background."""
        identity = self._identity
        if (identity.service, identity.state_format) != (service, state_format):
            self._identity = msgspec.structs.replace(
                identity, service=service, state_format=state_format
            )
            self._learned = True
            self._chore.set()

    async def _do_chores(self) -> None:
        """Write the identity and checkpoints.  Where there is no room they wait for it: without
        them the journal only grows, and it says itself when there is no room for that.
        """
        wait = FIRST_WAIT
        while True:
            await self._chore.wait()
            self._chore.clear()
            try:
                if self._learned:
                    await write_identity(self._files, self._identity)
                    self._learned = False
                if self._to_write is not None:
                    await self._write_checkpoint(*self._to_write)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    self._fail("writing a checkpoint", error)
                if wait == FIRST_WAIT:
                    log.info("no room for a checkpoint", reason=str(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                self._chore.set()
            else:
                wait = FIRST_WAIT

    async def _write_checkpoint(self, base: Base, state: bytes | bytearray, since: int) -> None:
        """Write a checkpoint; frame ``since`` is the first that may hold what its base does not."""
        # Were it there before the entries it covers, the journal could end before it begins.
        await self._synced_to(self._frame)
        needed = self._segments[0]
        for segment in self._segments:
            if segment.first > since:
                break
            needed = segment
            if segment.last_seq > base.seq:
                break
        head = CheckpointHead(
            FORMAT,
            self._owner.node,
            self._owner.journal,
            needed.number,
            needed.first,
            self._durable,
            len(state),
            0 if self._checkpoint is None else self._checkpoint[1],
        )
        await self._files.write_whole(
            checkpoint_name(base.seq), checkpoint_pieces(head, base, state)
        )
        if self._to_write is not None and self._to_write[0] is base:
            self._to_write = None
        before, self._checkpoint = self._checkpoint, (base.seq, needed.number, len(state))
        if before is not None:
            await self._forget(before)

    async def _forget(self, before: tuple[int, int, int]) -> None:
        """Remove what neither the last checkpoint nor the one before it needs."""
        try:
            names = self._files.names()
            for seq in numbers_of(names, "checkpoint"):
                if seq < before[0]:
                    await self._files.remove(checkpoint_name(seq))
            for number in numbers_of(names, "segment"):
                if number < before[1]:
                    await self._files.remove(segment_name(number))
        except OSError as error:
            self._fail("removing what is no longer needed", error)
        self._segments = [s for s in self._segments if s.number >= before[1]]

    # -------------------------------------------------------------- the end

    async def close(self) -> None:
        """Write and sync what is left, and give the directory up.  ``run`` must have ended.

        Raises JournalError if that fails; the directory is given up all the same.
        """
        try:
            if self._failure is None:
                self._write_collected()
                await self._sync()
                self._put(b"")
        finally:
            spare = [] if self._spare is None else [self._spare[0]]
            for file in (*self._old, self._file, *spare):
                file.close()
            self._files.close()

    def status(self) -> dict[str, Any]:
        """Return what operators want to know; times in milliseconds."""
        checkpoint = self._checkpoint
        return {
            "durability": self._durability,
            "directory": self._files.where,
            "segments": len(self._segments),
            "bytes": sum(segment.at for segment in self._segments),
            "position": self.position,
            "synced": self._synced,
            "full": self.full,
            "reason": self.reason,
            "sync_last_ms": round(self._sync_last * 1000, 3),
            "sync_longest_ms": round(self._sync_longest * 1000, 3),
            "checkpoint_seq": checkpoint[0] if checkpoint else 0,
            "checkpoint_bytes": checkpoint[2] if checkpoint else 0,
        }


async def create_segment(
    files: Files, identity: VoterIdentity, number: int, size: int
) -> tuple[JournalFile, Segment]:
    """Set a segment aside, its head on the disk."""
    head = pack_segment_head(identity.owner, number)
    file = await files.create(segment_name(number), size)
    file.append(head)
    await file.sync()
    return file, Segment(number, 0, len(head), size)
