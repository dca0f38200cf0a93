"""A directory in memory, with the faults of a disk, and a journal that runs on it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from unittest import mock

from guests.protocol.wire import EMPTY_HISTORY
from voter.core.entries import Entry, Record
from voter.core.order import history_after
from voter.journal import Files, Journal, RecoveredJournal, open_journal
from voter.journal import journal as journal_module
from voter.journal.format import COPIES

__all__ = ["Disk", "History", "Open", "opened"]

MAGIC = b"\xf7TvF"
SECTOR = 64
"""Bytes that are written all or not; small, so that frames are torn in many places."""


class Inode:
    """What is read from a file, and what is on the disk."""

    def __init__(self, data: bytes = b"") -> None:
        self.cached = bytearray(data)
        self.stored = bytearray(data)
        self.dirty: list[tuple[int, int]] = []

    def sync(self, upto: int) -> None:
        """Put the first ``upto`` writes onto the disk."""
        for start, end in self.dirty[:upto]:
            self.stored.extend(bytes(max(0, end - len(self.stored))))
            self.stored[start:end] = self.cached[start:end]
        del self.dirty[:upto]


class Segment:
    """A File."""

    def __init__(self, disk: Disk, inode: Inode, at: int) -> None:
        self._disk = disk
        self._inode = inode
        self._at = at

    def append(self, data: bytes) -> None:
        """Write behind what was written."""
        self._disk.check("write")
        end = self._at + len(data)
        inode = self._inode
        assert end <= len(inode.cached), "a write beyond the end may reach the disk in part"
        inode.cached[self._at : end] = data
        inode.dirty.append((self._at, end))
        self._at = end
        self._disk.writes += 1

    def grow(self, size: int) -> None:
        """Set more aside."""
        self._disk.take(size)
        end = len(self._inode.cached)
        self._inode.cached.extend(bytes(size))
        self._inode.dirty.append((end, end + size))

    async def sync(self) -> None:
        """Put it onto the disk, once the disk lets syncs through."""
        upto = len(self._inode.dirty)
        await self._disk.gate.wait()
        if self._disk.single:
            self._disk.gate.clear()
        await asyncio.sleep(0)
        self._disk.check("sync")
        self._inode.sync(upto)

    def close(self) -> None:
        """Let go."""


class Disk:
    """A Files whose faults are asked for by name.

    ``room``: bytes that may still be set aside (None: any number).  ``errors``: what fails how
    (``write``, ``sync``, ``create``).  ``gate``: syncs of segments wait for it; ``single``: it
    lets one through at a time.
    """

    where = "disk"

    def __init__(self) -> None:
        self.inodes: dict[str, Inode] = {}
        self.room: int | None = None
        self.errors: dict[str, int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.single = False
        self.writes = 0

    def check(self, what: str) -> None:
        """Raise what is planned."""
        if what in self.errors:
            code = self.errors[what]
            raise OSError(code, os.strerror(code))

    def take(self, size: int) -> None:
        """Use up room."""
        if self.room is not None:
            if size > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= size

    def names(self) -> list[str]:
        """Return all names."""
        return sorted(self.inodes)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a file, or its first bytes."""
        self.check("read " + name)
        return bytes(self.inodes[name].cached)[:most]

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return len(self.inodes[name].cached)

    async def create(self, name: str, size: int) -> Segment:
        """Set a segment aside."""
        await asyncio.sleep(0)
        self.check("create")
        self.take(size)
        self.inodes[name] = Inode(bytes(size))
        return Segment(self, self.inodes[name], 0)

    def reopen(self, name: str, at: int, rewrite_from: int) -> Segment:
        """Go on writing."""
        inode = self.inodes[name]
        inode.dirty.append((rewrite_from, at))
        end = len(inode.cached)
        inode.cached[at:] = bytes(end - at)
        inode.dirty.append((at, end))
        return Segment(self, inode, at)

    async def write_whole(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file."""
        data = bytearray()
        for piece in pieces:
            self.take(len(piece))
            data += piece
            await asyncio.sleep(0)
        self.inodes[name] = Inode(bytes(data))

    async def sync_names(self) -> None:
        """Have all names on the disk."""
        await asyncio.sleep(0)

    async def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        self.check("rename")
        self.inodes[new] = self.inodes.pop(old)

    async def remove(self, name: str) -> None:
        """Remove a file, and give its room back."""
        gone = self.inodes.pop(name)
        if self.room is not None:
            self.room += len(gone.cached)

    def close(self) -> None:
        """Give it up."""

    def copy(self) -> Disk:
        """Return a disk with the same files, all that was written on it (kill -9)."""
        other = Disk()
        other.inodes = {name: Inode(bytes(inode.cached)) for name, inode in self.inodes.items()}
        return other

    def lose_power(self, kept: Callable[[str, int], bool]) -> Disk:
        """Return a disk with what was synced, and of the other sectors those of which
        ``kept`` of name and offset says so.
        """
        other = Disk()
        for name, inode in self.inodes.items():
            image = bytearray(inode.stored)
            for start, end in inode.dirty:
                for sector in range(start // SECTOR, (end - 1) // SECTOR + 1):
                    first, last = max(start, sector * SECTOR), min(end, (sector + 1) * SECTOR)
                    if kept(name, first):
                        image.extend(bytes(max(0, last - len(image))))
                        image[first:last] = inode.cached[first:last]
            other.inodes[name] = Inode(bytes(image))
        return other

    def frames(self, name: str) -> list[int]:
        """Return the offsets of the frames in a segment, of the first copy of each."""
        parts = bytes(self.inodes[name].cached).split(MAGIC)
        ends = accumulate(len(part) + len(MAGIC) for part in parts[:-1])
        return [end - len(MAGIC) for end in ends][::COPIES]

    def flip_frame(self, name: str, at: int, offset: int) -> None:
        """Turn a bit ``offset`` bytes into each copy of the frame at ``at``."""
        data = bytes(self.inodes[name].cached)
        size = data.index(MAGIC, at + 1) - at
        for copy in range(COPIES):
            self.flip(name, at + copy * size + offset, 0)

    def flip(self, name: str, at: int, bit: int) -> None:
        """Turn one bit of a file."""
        for data in (self.inodes[name].cached, self.inodes[name].stored):
            data[at] ^= 1 << bit


@dataclass
class History:
    """Makes records whose hashes form a chain."""

    secret: bytes
    seq: int = 0
    history: bytes = EMPTY_HISTORY
    made: list[Record] = field(default_factory=list)

    def record(self, request: bytes = b"x") -> Record:
        """Return the next one."""
        prev, seq = self.history, self.seq + 1
        after = history_after(self.secret, prev, seq, seq, False, b"caller", request)
        record = Record(seq, request, b"caller", seq, prev, after, False)
        self.seq, self.history = seq, after
        self.made.append(record)
        return record


class Open:
    """A journal that runs."""

    def __init__(self, journal: Journal, recovery: RecoveredJournal, news: News) -> None:
        self.journal = journal
        self.recovery = recovery
        self.synced = news.synced
        self.full = news.full
        self._news = news
        self.task = asyncio.create_task(journal.run())
        records = [entry for entry in recovery.entries if isinstance(entry, Record)]
        last = records[-1] if records else None
        base = recovery.base
        self.history = History(
            recovery.identity.key,
            last.seq if last else base.seq,
            last.history if last else base.history,
        )

    def write(self, *entries: Entry) -> None:
        """Append and flush."""
        for entry in entries:
            self.journal.append(entry)
        self.journal.flush()

    def write_records(self, count: int, size: int = 1) -> list[Record]:
        """Write so many records, a frame each."""
        records = [self.history.record(bytes(size)) for _ in range(count)]
        for record in records:
            self.write(record)
        return records

    async def durable(self) -> None:
        """Wait until all that was appended is."""
        await self.until(lambda: bool(self.synced) and self.synced[-1] >= self.journal.position)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, which is looked at after each turn of the loop; after many turns
        more seldom, to leave real threads their share.
        """
        turns = 0
        async with asyncio.timeout(30):
            while not condition():
                if self.task.done():
                    self.task.result()
                turns += 1
                await asyncio.sleep(0 if turns < 100 else 0.001)

    async def stop(self) -> None:
        """End ``run``, as a voter does that ends."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class News:
    """What the journal reported."""

    def __init__(self) -> None:
        self.synced: list[int] = []
        self.full: list[tuple[bool, str]] = []


@asynccontextmanager
async def opened(
    files: Files, *, clean: bool = True, reserve: int = 0, **more: Any
) -> AsyncIterator[Open]:
    """Open a journal and run it; ``clean`` False: it dies in the end, with what is collected."""
    news = News()
    numbers = iter(range(1, 1000))
    options: dict[str, Any] = {
        "node": "n1",
        "vote": "2/3",
        "durability": "fsync",
        "segment_size": 4096,
        "random64": lambda: next(numbers) * 0x9E3779B97F4A7C15 % (1 << 64),
        "on_synced": news.synced.append,
        "on_full": lambda full, reason: news.full.append((full, reason)),
    } | more
    with mock.patch.object(journal_module, "RESERVE", reserve):
        journal, recovery = await open_journal(files, **options)
        run = Open(journal, recovery, news)
        try:
            yield run
        finally:
            await run.stop()
            if clean:
                await journal.close()
