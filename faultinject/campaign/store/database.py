"""The database file of a results directory: opening, the writer's lock, error messages."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import lzma
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guests.errors import CodedError

__all__ = [
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "closing_on_error",
    "connect",
    "connect_to_read",
    "is_locked",
    "store_errors",
    "take_lock",
    "transaction",
    "unpack",
]

LOCK = "lock"
_JOURNAL, _WAL, _NO_WAL = slice(18, 20), b"\2\2", b"\1\1"
"""The header's bytes for the journal mode (SQLite's file format, section 1.3.3)."""
_COPIES = 5
"""Attempts to copy a database that another process writes to."""
FULL_BELOW = 1 << 20
"""Free bytes below which an input/output error is reported as a full disk."""


FULL = "{}: the disk is full: free disk space, then resume"


class StoreError(CodedError):
    """A results directory cannot be used; the message says what to do."""

    error_code = "TV0522"


class StoreFull(StoreError):
    """The disk is full.  Nothing is lost: with free space the campaign can be resumed."""

    error_code = "TV0523"


class StoreBusy(StoreError):
    """Another process writes to this directory."""

    error_code = "TV0524"


def connect(path: Path) -> sqlite3.Connection:
    """Open the database; each statement is its own transaction, unless one was begun."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit reaches the log at once.  Only a power cut may lose the last commits, as a whole.
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened as a campaign's results: {error}") from error
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open the database to read it.

    Where SQLite cannot keep its log beside it (a read-only mount, another user's directory), open a
    copy in memory, which holds what was committed so far.  Raises StoreError.
    """
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return connect(path)
    log = path.with_name(f"{path.name}-wal")
    try:
        with tempfile.TemporaryDirectory(prefix="trivisor-campaign-") as folder:
            copy = Path(folder, path.name)
            for _ in range(_COPIES):
                before = _state(path, log)
                shutil.copyfile(path, copy)
                if log.exists():
                    shutil.copyfile(log, copy.with_name(log.name))
                if _state(path, log) == before:
                    break
            else:
                raise StoreError(
                    f"{path}: it changes while it is copied: try again later", error_code="TV0524"
                )
            memory = sqlite3.connect(":memory:", isolation_level=None)
            with contextlib.closing(sqlite3.connect(copy)) as connection:
                connection.backup(memory)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be read as a campaign's results: {error}") from error
    memory.row_factory = sqlite3.Row
    return memory


def _state(*paths: Path) -> list[tuple[int, int]]:
    """Return sizes and times of change: the same ones mean the same contents."""
    found = [path.stat() for path in paths if path.exists()]
    return [(each.st_size, each.st_mtime_ns) for each in found]


def unpack(path: Path) -> sqlite3.Connection:
    """Open a copy, in memory, of a database that was packed with xz.  Raises StoreError."""
    try:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.row_factory = sqlite3.Row
        data = bytearray(lzma.decompress(path.read_bytes()))
        if data[_JOURNAL] == _WAL:  # a database in memory has no log, and a closed one is empty
            data[_JOURNAL] = _NO_WAL
        connection.deserialize(data)
        connection.execute("SELECT count(*) FROM sqlite_schema")  # the first access to the data
    except (OSError, lzma.LZMAError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be read as a packed campaign: {error}") from error
    return connection


def take_lock(directory: Path) -> int:
    """Take the writer's lock, which ends with the process; return its descriptor."""
    try:
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"{directory}: cannot be written: {error.strerror}", error_code="TV0525"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreBusy(
            f"{directory}: another process runs this campaign: wait until it ends, or end it"
        ) from error
    return lock


def is_locked(directory: Path) -> bool:
    """Return whether a process holds the writer's lock."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # no run yet, or no permission
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def closing_on_error(lock: int | None) -> Iterator[None]:
    """Release the lock if the block fails."""
    try:
        yield
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the block, or roll it back if it fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def store_errors(directory: Path) -> Iterator[None]:
    """Turn errors of SQLite and the system into the store's own."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        failed = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
        if code == sqlite3.SQLITE_FULL or (
            failed and shutil.disk_usage(directory).free < FULL_BELOW
        ):
            raise StoreFull(FULL.format(directory)) from error
        raise StoreError(f"{directory}: cannot be written: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(FULL.format(directory)) from error
        raise StoreError(
            f"{directory}: cannot be written: {error.strerror}", error_code="TV0525"
        ) from error
