"""A directory of files, as the journal needs it; only here are the operating system and threads.

Two threads work beside the loop: one syncs segments, the other makes files (space set aside,
checkpoints), in pieces that are synced as they are written, so that it never piles up much that
the first would have to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Protocol, TypeVar

from voter.errors import JournalError

__all__ = ["Directory", "JournalFile", "Files"]

T = TypeVar("T")
Piece = bytes | memoryview

ASIDE = ".new"
"""Ending of the name of a file that is not complete yet."""
_LOCK = "lock"
_PIECE = 1 << 20
_SYNC_EACH = 4 << 20


class JournalFile(Protocol):
    """A segment that is written to at its end.  All raise OSError."""

    def append(self, data: bytes) -> None:
        """Write behind what was written last (it may go beyond the size that was set aside)."""

    async def sync(self) -> None:
        """Return once all that was appended before the call is on the disk."""

    def close(self) -> None:
        """Let go of it; a sync that is under way ends first."""


class Files(Protocol):
    """A flat directory that only we write to.  All raise OSError."""

    where: str  # what error texts call it

    def names(self) -> list[str]:
        """Return the names of the files in it."""

    def read(self, name: str) -> bytes:
        """Return a whole file."""

    async def create(self, name: str, size: int) -> JournalFile:
        """Set ``size`` bytes of zeros aside, on the disk under their name when this returns."""

    def reopen(self, name: str, at: int, again: int) -> JournalFile:
        """Go on writing at offset ``at``; what is behind it becomes zeros (not synced yet).

        What is between ``again`` and ``at`` is written again: after a sync that failed Linux takes
        it for clean, and the next sync would say that all is well and write nothing.
        """

    async def write_whole(self, name: str, pieces: Iterable[Piece]) -> None:
        """Put a file under its name, all of it or nothing, on the disk when this returns.

        What ``pieces`` raises is passed on; then there is nothing new under the name.
        """

    async def sync_names(self) -> None:
        """Have all names in it on the disk."""

    async def rename(self, old: str, new: str) -> None:
        """Give a file another name, on the disk when this returns."""

    async def remove(self, name: str) -> None:
        """Remove a file; it cannot come back when this returns."""

    def close(self) -> None:
        """Give the directory up to others."""


def _write_all(fd: int, data: Piece) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Syncer:
    """A thread that syncs and closes segments, in the order it is asked to.

    It is woken and heard through eventfds: that takes 50 us where an executor takes 130, and every
    reply waits for it.
    """

    def __init__(self) -> None:
        self._go = os.eventfd(0)
        self._done = os.eventfd(0, os.EFD_NONBLOCK)
        self._jobs: deque[tuple[int, asyncio.Future[None] | None] | None] = deque()
        self._over: deque[tuple[asyncio.Future[None], OSError | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread(target=self._work, name="journal sync", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            os.eventfd_read(self._go)
            while self._jobs:
                job = self._jobs.popleft()
                if job is None:
                    return
                fd, future = job
                if future is None:
                    os.close(fd)
                    continue
                error = None
                try:
                    # The data alone: its space and size were synced before it was used.
                    os.fdatasync(fd)
                except OSError as caught:
                    error = caught
                self._over.append((future, error))
                os.eventfd_write(self._done, 1)

    def _ask(self, job: tuple[int, asyncio.Future[None] | None] | None) -> None:
        self._jobs.append(job)
        os.eventfd_write(self._go, 1)

    async def sync(self, fd: int) -> None:
        """Return once what was written to ``fd`` is on the disk."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._done, self._hear)
        future = self._loop.create_future()
        self._ask((fd, future))
        await future

    def _hear(self) -> None:
        os.eventfd_read(self._done)
        while self._over:
            future, error = self._over.popleft()
            if future.done():  # its caller was cancelled
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def close(self, fd: int) -> None:
        """Close a descriptor behind its syncs: until then it must not become another file's."""
        self._ask((fd, None))

    def shutdown(self) -> None:
        """End the thread, once it has done what it was asked."""
        self._ask(None)
        self._thread.join()
        if self._loop is not None:
            self._loop.remove_reader(self._done)
        os.close(self._go)
        os.close(self._done)


class _Segment:
    """A File of a Directory."""

    def __init__(self, fd: int, syncer: _Syncer) -> None:
        self._fd = fd
        self._syncer = syncer

    def append(self, data: bytes) -> None:
        done = os.write(self._fd, data)
        if done != len(data):  # then the next write says why
            _write_all(self._fd, memoryview(data)[done:])

    async def sync(self) -> None:
        await self._syncer.sync(self._fd)

    def close(self) -> None:
        self._syncer.close(self._fd)


class Directory:
    """The real one: made if it is not there, for its owner alone, locked against other voters.

    Raises JournalError if it cannot be had.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.listdir(path)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise JournalError(_explain(path, error)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            os.close(self._fd)
            raise JournalError(
                f"journal {path} is in use by another voter (process {holder}): end it, or give"
                " this one a journal.directory of its own"
            ) from error
        with contextlib.suppress(OSError):  # whose it is, for those who are refused: no more
            os.truncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
        self._lock = lock
        self._syncer = _Syncer()
        self._maker = ThreadPoolExecutor(1, "journal files")

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted."""
        return sorted(name for name in os.listdir(self._path) if name != _LOCK)

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        return (self._path / name).read_bytes()

    async def create(self, name: str, size: int) -> JournalFile:
        """Set a segment aside; see Files."""

        def set_aside(fd: int) -> None:
            os.posix_fallocate(fd, 0, size)  # says at once if there is no room
            # Written, too: then a sync later has no metadata to write, and takes half the time.
            os.lseek(fd, 0, os.SEEK_SET)

        zeros = (bytes(min(_PIECE, size - at)) for at in range(0, size, _PIECE))
        await self._make(name, zeros, set_aside)
        return self._open(name, 0)

    def reopen(self, name: str, at: int, again: int) -> JournalFile:
        """Go on writing a segment; see Files."""
        with (self._path / name).open("r+b", buffering=0) as file:
            for start in range(again, at, _PIECE):
                data = os.pread(file.fileno(), min(_PIECE, at - start), start)
                os.pwrite(file.fileno(), data, start)
            file.seek(at)
            while data := file.read(_PIECE):
                if data != bytes(len(data)):
                    os.pwrite(file.fileno(), bytes(len(data)), file.tell() - len(data))
        return self._open(name, at)

    def _open(self, name: str, at: int) -> JournalFile:
        fd = os.open(self._path / name, os.O_RDWR)
        os.lseek(fd, at, os.SEEK_SET)
        return _Segment(fd, self._syncer)

    async def write_whole(self, name: str, pieces: Iterable[Piece]) -> None:
        """Put a file under its name; see Files."""
        await self._make(name, pieces, lambda fd: None)

    async def _make(self, name: str, pieces: Iterable[Piece], begin: Callable[[int], None]) -> None:
        """Write a file aside and rename it; each piece is a job of its own in the thread."""
        aside = self._path / (name + ASIDE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        fd = await self._in_thread(lambda: os.open(aside, flags, 0o600))
        iterator = iter(pieces)
        unsynced = 0

        def step() -> bool:
            nonlocal unsynced
            piece = next(iterator, None)
            if piece is None:
                os.fsync(fd)
                os.rename(aside, self._path / name)
                os.fsync(self._fd)
                return False
            _write_all(fd, piece)
            unsynced += len(piece)
            if unsynced >= _SYNC_EACH:
                os.fdatasync(fd)
                unsynced = 0
            return True

        try:
            await self._in_thread(lambda: begin(fd))
            while await self._in_thread(step):
                pass
        except BaseException:
            self._maker.submit(aside.unlink, missing_ok=True)
            raise
        finally:
            self._maker.submit(os.close, fd)  # behind a job that a cancelled caller left

    async def _in_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._maker, job)

    async def sync_names(self) -> None:
        """Have all names in it on the disk; see Files."""
        await self._in_thread(lambda: os.fsync(self._fd))

    async def rename(self, old: str, new: str) -> None:
        """Give a file another name; see Files."""
        await self._in_thread(lambda: os.rename(self._path / old, self._path / new))
        await self.sync_names()

    async def remove(self, name: str) -> None:
        """Remove a file; see Files."""
        await self._in_thread((self._path / name).unlink)
        await self.sync_names()

    def close(self) -> None:
        """End the threads, once their work is done, and unlock the directory."""
        self._maker.shutdown()
        self._syncer.shutdown()
        os.close(self._fd)
        os.close(self._lock)


def _explain(path: Path, error: OSError) -> str:
    """Say why a directory cannot be used, and what helps."""
    remedy = {
        errno.EROFS: "mount it for writing, or give another journal.directory",
        errno.EACCES: "give the voter's user the right to it",
        errno.EPERM: "give the voter's user the right to it",
        errno.ENOTDIR: "it or something above it is a file: give another journal.directory",
        errno.EEXIST: "it is not a directory: give another journal.directory",
        errno.ENOSPC: "make room on its file system",
    }.get(error.errno or 0, "give another journal.directory")
    return f"journal {path} cannot be used: {error.strerror}: {remedy}"
