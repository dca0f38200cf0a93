"""The journal while it is written.

Theory of operation.  ``append`` collects entries.  ``flush``, at the end of a turn of the event
loop, writes them as one frame.  ``_sync`` gets the frame onto the disk, and ``on_synced`` reports
the position that is durable; only then does the engine release replies.

- *Who waits.*  A ``Settled`` has nobody who waits for it: the replicas can repeat it.  It is
  written with the next entry or sync, and with ``os`` durability possibly only after IDLE.  Every
  other entry makes its flush ``_pressing``: it is synced at once.
- *Proofs.*  A frame carries the number of the last frame that was synced before it.  If no entry
  comes for IDLE seconds, an empty frame is written that carries it.
- *Space.*  The next segment is set aside before the current one is full (``_keep_spare``), so that
  a full disk is noticed while there is still room to write.  Without it, a frame leaves RESERVE
  bytes free: if it does not fit, its segment grows first.  Where the disk has no room for that, the
  engine is told to take no more writes, and the frame may use the reserve.  So a voter that starts
  on a full disk can write what it must: a proof, a reservation of sequence numbers, and the
  results of writes that were under way.  A start takes about 200 bytes, a result up to 356, once.
- *Checkpoints* are written in the background, after the entries that they cover are on the disk.
  Then segments and checkpoints that neither of the last two needs are removed, or moved to the
  history (``history.py``).  Without room on the disk the oldest of the history is removed first.
- *Failure.*  After a write or sync that failed, nobody knows what is on the disk.  Nothing is tried
  again: every later call raises the same JournalError, and the voter ends.

This module uses only asyncio and the files handed in, so that a simulation can run this very code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, NoReturn

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
)
from voter.journal.history import NO_ROOM, History
from voter.journal.recovery import (
    RecoveredJournal,
    Segment,
    checkpoint_name,
    create_segment,
    write_identity,
)

__all__ = ["Durability", "Journal"]

Durability = Literal["fsync", "os"]

LARGEST = 4 << 20
"""Bytes of entries in a frame; more are split into several, unless one entry alone is larger."""
RESERVE = 2 << 20
"""Bytes at the end of the last segment that are written only while the disk is full: for starts,
and for the results of 4,096 writes under way (``Limits.pending``), of up to 356 bytes each."""
MANY = 64
"""Collected entries that are written and synced although nobody waits for them."""
IDLE = 0.05
"""Seconds without a write after which an empty frame carries what is synced."""
FIRST_WAIT, LONGEST_WAIT = 0.2, 2.0
"""Seconds between attempts while the disk is full: doubled from first to longest."""

_encode = msgspec.msgpack.Encoder().encode


class Journal:
    """A journal that is written; made by ``open_journal``.

    ``file`` is the segment that is written on, ``spare`` the empty one after it.
    """

    def __init__(  # noqa: PLR0913 - by keyword, from open_journal
        self,
        files: Files,
        found: RecoveredJournal,
        file: JournalFile,
        spare: tuple[JournalFile, Segment] | None,
        *,
        durability: Durability,
        segment_size: int,
        on_synced: Callable[[int], None],
        on_full: Callable[[bool, str], None],
        history: int,
    ) -> None:
        self._files = files
        self._identity = found.identity
        self._owner = found.identity.owner
        self._seed = self._owner.seed
        self._durability = durability
        self._segment_size = segment_size
        self._on_synced = on_synced
        self._on_full = on_full
        self._segments = found.segments
        self._file = file
        self._old: list[JournalFile] = []  # written full, not synced yet
        self._spare = spare
        self._free = found.segments[-1].size - found.segments[-1].at
        self._collected: list[Entry] = []
        self.position = 0
        """Entries appended since the start."""
        self._written = 0  # of these entries, handed to the operating system
        self._synced = 0  # of these entries, on the disk (durability os: written)
        self._frame = found.frames  # number of the last frame written
        self._check = found.check  # CRC of its head
        self._durable = found.frames  # number of the last frame on the disk
        self._proved = 0  # number of the last frame that a later one proves to be on the disk
        self._checkpoint = found.checkpoint
        self._history = History(files, history)
        self._logged = 0  # bytes of frames since files were last removed or moved to the history
        self._to_write: tuple[Base, bytes | bytearray, int] | None = None
        self._learned = False
        self.full = False
        self.reason = ""
        self._failure: JournalError | None = None
        self._urgent = False  # somebody waits for a sync
        self._pressing = False  # somebody waits for what is collected
        self._lagging = False  # something is written and not synced, and nobody waits for it
        self._timed = False  # the sync task wakes after IDLE in any case
        self._wake = asyncio.Event()  # wakes the sync task
        self._progress = asyncio.Event()  # a sync is done
        self._running = False
        self._low = asyncio.Event()  # a spare segment is needed, and there is none
        self._chore = asyncio.Event()  # the identity or a checkpoint is to be written
        self._sync_last = self._sync_longest = 0.0
        self._check_space()

    # ------------------------------------------------------------- writing

    def append(self, entry: Entry) -> None:
        """Collect an entry; it is written by the next flush (a ``Settled`` possibly later)."""
        self._collected.append(entry)
        self.position += 1
        if type(entry) is not Settled or len(self._collected) >= MANY:
            self._pressing = True

    def flush(self) -> None:
        """Write what was collected, as one frame (several if it is very large).

        Raises JournalError: then nothing that depends on it may be sent.
        """
        if self._failure is not None:
            raise self._failure
        lazy = self._durability == "os"
        while self._pressing or (self._collected and not lazy):  # also what on_synced appends
            pressing = self._pressing
            self._write_collected()  # the frame also proves what was synced before
            if lazy:
                self._on_synced(self._synced)
            elif pressing:
                self._sync_now()
            else:
                self._lagging = True
        if (self._collected or self._lagging) and not self._timed:
            self._wake.set()

    def _write_collected(self) -> None:
        self._pressing = False
        entries, self._collected = self._collected, []
        if entries:
            self._write(entries)
            self._written += len(entries)
            if self._durability == "os":
                self._synced = self._written

    def _write(self, entries: list[Entry]) -> None:
        payload, several = _encode(entries), len(entries) > 1
        if (several and len(payload) > LARGEST) or not self._put(payload, divisible=several):
            half = len(entries) // 2
            self._write(entries[:half])
            self._write(entries[half:])
            return
        seqs = (entry.seq for entry in entries if isinstance(entry, Record))
        self._segments[-1].last_seq = max(self._segments[-1].last_seq, *seqs, 0)

    def _put(self, payload: bytes, *, divisible: bool = False) -> bool:
        """Write one frame, in the next segment if it does not fit into this one.

        Return False, with nothing written, if it is ``divisible`` and too large for a full disk.
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
            self._make_room(len(frame))
        except OSError as error:
            if divisible and error.errno in NO_ROOM:
                return False
            self._fail("write", error)
        try:
            self._file.append(frame)
        except OSError as error:
            self._fail("write", error)
        self._frame += 1
        self._check = check
        self._proved = self._durable
        self._free -= len(frame)
        self._logged += len(frame)
        self._segments[-1].at += len(frame)
        self._check_space()
        return True

    def _make_room(self, size: int) -> None:
        """Let this segment grow if a frame does not fit or would use the reserve.

        Without room, let it use the reserve, but at most half of what is left of it.  A larger
        frame raises OSError: it is written in parts, or the voter ends with some reserve left.
        """
        more = size - self._free + (RESERVE if self._spare is None else 0)
        if more <= 0:
            return
        try:
            self._file.grow(more)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._low.set()  # so that room is noticed when there is some again
            self._set_full(error)
            if size > self._free // 2:
                raise
        else:
            self._free += more

    def _check_space(self) -> None:
        """Ask for a spare segment once a quarter of this one is full."""
        if self._spare is None and self._free < (self._segment_size * 3 + RESERVE) // 4:
            self._low.set()

    def _fail(self, what: str, error: OSError) -> NoReturn:
        """Remember the failure for all later calls, and raise it."""
        self._failure = JournalError(
            f"journal {self._files.where}: {what} failed: {error.strerror or error}: the voter"
            " ends, because what is on the disk is unknown; repair the disk and start it again",
            error_code="TV0216",
        )
        self._sync_now()
        raise self._failure from error

    def _sync_now(self) -> None:
        self._urgent = True
        self._wake.set()

    async def begin(self, copy: bytes) -> None:
        """Sync what was found; write a frame that proves it, and sync that.  Raises JournalError.

        ``copy`` is the last frame if only one copy of it is whole.  It is written once more if
        there is room: with the proof, damage to the other one is an error in any case.
        """
        if self._low.is_set():  # learn now whether the disk is full: no write is accepted before
            await self._set_aside()
        if copy and len(copy) <= self._free:
            self._file.append(copy)
            self._free -= len(copy)
            self._segments[-1].at += len(copy)
        await self._sync()
        if self._frame:
            self._put(b"")
            await self._sync()
        await self._history.trim()

    # ------------------------------------------------------------- running

    async def run(self) -> None:
        """Sync, set segments aside and write checkpoints, until cancelled.  Raises JournalError."""
        self._running = True
        if self.full:
            self._on_full(self.full, self.reason)
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
                self._wake.clear()
                unproved = self._proved < self._durable and self._frame == self._durable
                self._timed = unproved or self._lagging or bool(self._collected)
                try:
                    async with asyncio.timeout(IDLE if self._timed else None):
                        await self._wake.wait()
                    continue
                except TimeoutError:
                    if self._durability == "os" and self._collected:
                        self._write_collected()
                        self._on_synced(self._synced)
                        continue
                    if not self._lagging:
                        if self._proved < self._durable and self._frame == self._durable:
                            self._put(b"")  # proves what is synced; needs no sync itself
                        continue
                finally:
                    self._timed = False
            self._urgent = self._lagging = False
            await self._sync()
            if self._durability == "fsync":
                self._on_synced(self._synced)

    async def _sync(self) -> None:
        """Get all that was written by now onto the disk."""
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
        wait = FIRST_WAIT
        while True:
            await self._low.wait()
            await self._set_aside()
            if self.full:
                await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT) if self.full else FIRST_WAIT

    async def _set_aside(self) -> None:
        """Set the next segment aside, and report whether there is room if that has changed."""
        number = self._segments[-1].number + 1
        try:
            await self._history.make_room(self._create_spare, number)
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._fail("setting a segment aside", error)
            self._set_full(error)
        else:
            self._low.clear()
            self._set_full(None)

    async def _create_spare(self, number: int) -> None:
        made = create_segment(self._files, self._identity, number, self._segment_size)
        self._spare = await made

    def _set_full(self, error: OSError | None) -> None:
        """Report that there is no room for writes, or that there is again."""
        if (error is not None) != self.full:
            where, self.full = f"journal {self._files.where}", error is not None
            self.reason = f"{where}: {error.strerror}: make room there" if error else ""
            if self.full:
                log.warning("the journal is full", error_code="TV0219", reason=self.reason)
            else:
                log.info("the journal has room again")
            if self._running:
                self._on_full(self.full, self.reason)

    # ---------------------------------------------------------- checkpoints

    def checkpoint(self, base: Base, state: bytes | bytearray) -> None:
        """Write a checkpoint in the background, instead of one that is not yet begun.

        ``state`` is not copied: it must not be changed until it is written.
        """
        self._to_write = base, state, self._frame + 1  # frames before that one are in the base
        self._chore.set()

    def learn(self, service: str, state_format: int) -> None:
        """Remember which service's states these are; written in the background."""
        identity = self._identity
        if (identity.service, identity.state_format) != (service, state_format):
            self._identity = msgspec.structs.replace(
                identity, service=service, state_format=state_format
            )
            self._learned = True
            self._chore.set()

    async def _do_chores(self) -> None:
        """Write the identity and checkpoints.

        Without room they wait for it: until then the journal only grows, and ``_keep_spare``
        reports when there is no room for that.
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
                    await self._history.make_room(self._write_checkpoint, *self._to_write)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    self._fail("writing a checkpoint", error)
                if wait == FIRST_WAIT:
                    log.warning("no room for a checkpoint", error_code="TV0219", reason=str(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                self._chore.set()
            else:
                wait = FIRST_WAIT

    async def _write_checkpoint(self, base: Base, state: bytes | bytearray, since: int) -> None:
        """Write a checkpoint; frame ``since`` is the first that may hold what its base does not."""
        # First the entries that it covers: otherwise the journal could end before it begins.
        await self._synced_to(self._frame)
        needed = self._segments[0]
        for segment in self._segments:
            if segment.first > since:
                break
            needed = segment
            if segment.last_seq > base.seq:
                break
        keep = 0 if self._checkpoint is None else self._checkpoint[1]
        whose = FORMAT, self._owner.node, self._owner.journal
        where = needed.number, needed.first, self._durable
        pieces = checkpoint_pieces(CheckpointHead(*whose, *where, len(state), keep), base, state)
        await self._files.write_whole(checkpoint_name(base.seq), pieces)
        if self._to_write is not None and self._to_write[0] is base:
            self._to_write = None
        before, self._checkpoint = self._checkpoint, (base.seq, needed.number, len(state))
        if before is not None:
            await self._forget(before)

    async def _forget(self, before: tuple[int, int, int]) -> None:
        """Move what neither the last checkpoint nor the one before it needs to the history."""
        logged, self._logged = self._logged, 0
        try:
            await self._history.take(before[0], before[1], logged)
        except OSError as error:
            self._fail("removing what is no longer needed", error)
        self._segments = [s for s in self._segments if s.number >= before[1]]

    # -------------------------------------------------------------- closing

    async def close(self) -> None:
        """Write and sync what is left, and close the directory.  ``run`` must have ended.

        Raises JournalError if that fails; the directory is closed all the same.
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
        """Return the journal's status for operators; times in milliseconds."""
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
