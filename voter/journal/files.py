"""A directory of files for the journal.  Only this module uses the operating system and threads.

Two threads work in addition to the event loop.  One syncs segments, and every reply waits for it.
The other makes files (spare segments, checkpoints).  It syncs them in pieces as it writes, so that
its data never piles up in front of a sync of the first thread.
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

INCOMPLETE = ".new"
"""Suffix of the name of a file that is not complete yet."""
_LOCK = "lock"
_BELOW = "history"
_PIECE = 1 << 20
_SYNC_EACH = 4 << 20


class JournalFile(Protocol):
    """A segment that is written at its end.  All methods raise OSError."""

    def append(self, data: bytes) -> None:
        """Write behind what was written last, into the space that was set aside."""

    def grow(self, size: int) -> None:
        """Set ``size`` more bytes aside; they are on the disk with the next sync.

        Without room nothing that is written next may reach the disk in part.
        """

    async def sync(self) -> None:
        """Return once all that was appended before the call is on the disk."""

    def close(self) -> None:
        """Close it, after a sync that is under way."""


class Files(Protocol):
    """A directory that only one journal writes to.  All methods raise OSError.

    It is flat, but for names that begin with ``history/``: these files are below it.
    """

    where: str  # its name in error messages

    def names(self) -> list[str]:
        """Return the names of the files in it."""

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a whole file, or its first bytes: at most so many."""

    def size(self, name: str) -> int:
        """Return the bytes of a file."""

    async def create(self, name: str, size: int) -> JournalFile:
        """Make a file of ``size`` zeros, which is on the disk when this returns."""

    def reopen(self, name: str, at: int, rewrite_from: int) -> JournalFile:
        """Continue at offset ``at``; what is behind it becomes zeros (not synced yet).

        The bytes from ``rewrite_from`` to ``at`` are written again.  After a sync that failed,
        Linux marks their pages as clean: the next sync would succeed without writing them.
        """

    async def write_whole(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a file, all of it or nothing; it is on the disk when this returns.

        An exception of ``pieces`` is passed on; then nothing has changed under the name.
        """

    async def sync_names(self) -> None:
        """Get all names in it onto the disk."""

    async def rename(self, old: str, new: str) -> None:
        """Give a file another name, on the disk when this returns."""

    async def remove(self, name: str) -> None:
        """Remove a file; it cannot come back when this returns."""

    def close(self) -> None:
        """Close it, so that another voter may use it."""


def _write_all(fd: int, data: Piece) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Syncer:
    """A thread that syncs and closes segments, in the order of the calls.

    Thread and loop wake each other through eventfds.  That takes 50 us where an executor takes 130,
    and every reply waits for it.
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
                    # The data suffices: space and size were synced before the segment was used.
                    os.fdatasync(fd)
                except OSError as caught:
                    error = caught
                self._over.append((future, error))
                os.eventfd_write(self._done, 1)

    def _add_job(self, job: tuple[int, asyncio.Future[None] | None] | None) -> None:
        self._jobs.append(job)
        os.eventfd_write(self._go, 1)

    async def sync(self, fd: int) -> None:
        """Return once what was written to ``fd`` is on the disk."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._done, self._finish_jobs)
        future = self._loop.create_future()
        self._add_job((fd, future))
        await future

    def _finish_jobs(self) -> None:
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
        """Close a descriptor after its syncs: until then its number must not be reused."""
        self._add_job((fd, None))

    def shutdown(self) -> None:
        """End the thread after the jobs it has."""
        self._add_job(None)
        self._thread.join()
        if self._loop is not None:
            self._loop.remove_reader(self._done)
        os.close(self._go)
        os.close(self._done)


class _Segment:
    """A JournalFile of a Directory."""

    def __init__(self, fd: int, syncer: _Syncer) -> None:
        self._fd = fd
        self._syncer = syncer

    def append(self, data: bytes) -> None:
        done = os.write(self._fd, data)
        if done != len(data):  # the next write raises the reason
            _write_all(self._fd, memoryview(data)[done:])

    def grow(self, size: int) -> None:
        os.posix_fallocate(self._fd, os.fstat(self._fd).st_size, size)

    async def sync(self) -> None:
        await self._syncer.sync(self._fd)

    def close(self) -> None:
        self._syncer.close(self._fd)


class Directory:
    """Files on a real disk: created if missing, mode 0700, locked against other voters.

    Raises JournalError if the directory cannot be used.
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
            raise JournalError(_explain(path, error), error_code="TV0210") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            os.close(self._fd)
            raise JournalError(
                f"journal {path} is in use by another voter (process {holder}): end it, or give"
                " this one a journal.directory of its own",
                error_code="TV0211",
            ) from error
        with contextlib.suppress(OSError):  # for the error message of another voter only
            os.truncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
        self._lock = lock
        self._path = Path(f"/proc/self/fd/{self._fd}")  # follows the directory if it is moved
        self._syncer = _Syncer()
        self._maker = ThreadPoolExecutor(1, "journal files")

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted."""
        names = [name for name in os.listdir(self._path) if name not in (_LOCK, _BELOW)]
        with contextlib.suppress(FileNotFoundError):
            names += [f"{_BELOW}/{name}" for name in os.listdir(self._path / _BELOW)]
        return sorted(names)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a file, or its first bytes."""
        with (self._path / name).open("rb") as file:
            return file.read(most)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return (self._path / name).stat().st_size

    async def create(self, name: str, size: int) -> JournalFile:
        """Set a segment aside; see Files."""

        def set_aside(fd: int) -> None:
            os.posix_fallocate(fd, 0, size)  # fails at once if there is no room
            # It is written, too: later syncs have no metadata to write and take half the time.
            os.lseek(fd, 0, os.SEEK_SET)

        zeros = (bytes(min(_PIECE, size - at)) for at in range(0, size, _PIECE))
        await self._make(name, zeros, set_aside)
        return self._open(name, 0)

    def reopen(self, name: str, at: int, rewrite_from: int) -> JournalFile:
        """Continue a segment; see Files."""
        with (self._path / name).open("r+b", buffering=0) as file:
            for start in range(rewrite_from, at, _PIECE):
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
        """Write a file; see Files."""
        await self._make(name, pieces, lambda fd: None)

    async def _make(self, name: str, pieces: Iterable[Piece], begin: Callable[[int], None]) -> None:
        """Write a file under another name and rename it; each piece is a job in the thread."""
        incomplete = self._path / (name + INCOMPLETE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        fd = await self._in_thread(lambda: os.open(incomplete, flags, 0o600))
        iterator = iter(pieces)
        unsynced = 0

        def step() -> bool:
            nonlocal unsynced
            piece = next(iterator, None)
            if piece is None:
                os.fsync(fd)
                os.rename(incomplete, self._path / name)
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
            self._maker.submit(incomplete.unlink, missing_ok=True)
            raise
        finally:
            self._maker.submit(os.close, fd)  # after a job that a cancelled caller left

    async def _in_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._maker, job)

    async def sync_names(self) -> None:
        """Get all names onto the disk; see Files."""
        await self._in_thread(lambda: os.fsync(self._fd))

    async def rename(self, old: str, new: str) -> None:
        """Rename a file; see Files."""

        def move() -> None:
            below = (self._path / new).parent
            below.mkdir(mode=0o700, exist_ok=True)
            os.rename(self._path / old, self._path / new)
            # The new name first: no power loss leaves the file without a name.
            for path in (below, self._path):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

        await self._in_thread(move)

    async def remove(self, name: str) -> None:
        """Remove a file; see Files."""
        await self._in_thread((self._path / name).unlink)
        # One below the directory may come back: it is removed again when it is the oldest.
        await self.sync_names()

    def close(self) -> None:
        """End the threads after their jobs, and unlock the directory."""
        self._maker.shutdown()
        self._syncer.shutdown()
        os.close(self._fd)
        os.close(self._lock)


def _explain(path: Path, error: OSError) -> str:
    """Return why a directory cannot be used, and what to do."""
    remedy = {
        errno.EROFS: "mount it for writing, or give another journal.directory",
        errno.EACCES: "give the voter's user the right to it",
        errno.EPERM: "give the voter's user the right to it",
        errno.ENOTDIR: "it or something above it is a file: give another journal.directory",
        errno.EEXIST: "it is not a directory: give another journal.directory",
        errno.ENOSPC: "make room on its file system",
    }.get(error.errno or 0, "give another journal.directory")
    return f"journal {path} cannot be used: {error.strerror}: {remedy}"
