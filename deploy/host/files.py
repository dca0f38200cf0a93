"""Files: atomic replacement, logs of bounded size, room on the disk, paths a node can use."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from deploy.errors import PathTooLong, PathUnusable

__all__ = [
    "SOCKET_PATH_LIMIT",
    "LogFile",
    "check_path",
    "check_socket_paths",
    "lack_of_room",
    "read_tail",
    "sync_directory",
    "temporary_name",
    "write_json",
    "write_whole",
]

LOG_LIMIT = 4 << 20
"""Bytes.  A longer log is moved to ``NAME.1``, so a log uses twice as much disk at most."""
_NO_XML = frozenset({0xFFFE, 0xFFFF})
"""Code points that XML excludes, in addition to control characters and surrogates."""
SOCKET_PATH_LIMIT = 107
"""Bytes in a unix socket's path: 108 in the kernel's structure, with the closing zero."""


ROOM = 1 << 20
"""Bytes that must be free for the small files of a node: records, sockets, libvirt's own."""

# ---- atomic replacement


def temporary_name(path: Path) -> Path:
    """Return where ``path`` is written before it is renamed; a crash may leave that file."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, body: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``body`` atomically and durably.

    A reader sees the old content or the new one.  One writer at a time.  Writes nothing if the
    content is the same, so that this also succeeds on a full disk.  Raises OSError; the old content
    is then unchanged.
    """
    if path.exists() and path.stat().st_size == len(body) and path.read_bytes() == body:
        return
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, document: object, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``document`` as indented JSON, as `write_whole` does.

    Raises OSError, and ValueError for a number that JSON does not have: msgspec would write null,
    which no reader expects.
    """
    plain = msgspec.to_builtins(document, str_keys=True)
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=2)
    write_whole(path, text.encode() + b"\n", mode=mode)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable.  Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- logs


class LogFile:
    """A log at ``path``; what was trimmed last is at ``path`` + ``.1``.

    Writers open it for appending, so they continue at its start after it was truncated.
    """

    def __init__(self, path: Path, *, limit: int = LOG_LIMIT) -> None:
        self.path = path
        self._limit = limit

    def open(self) -> IO[bytes]:
        """Open it for a process to write to; if that fails, the process runs without a log."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags | os.O_CREAT, 0o600)
        except OSError as error:
            import structlog  # noqa: PLC0415 - slow, rarely needed

            _log = structlog.get_logger(__name__)
            _log.error("a process runs without a log", path=str(self.path), reason=str(error))
            fd = os.open(os.devnull, flags)
        return os.fdopen(fd, "wb", buffering=0)

    def trim(self) -> None:
        """Move its content to ``.1`` if it has grown over the limit.  Raises OSError."""
        if self.path.exists() and self.path.stat().st_size > self._limit:
            shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
            os.truncate(self.path, 0)


def read_tail(path: Path, count: int) -> list[str]:
    """Return the last ``count`` lines of a log, also of what was trimmed; none without a file."""
    lines: deque[str] = deque(maxlen=count)
    for each in (path.with_name(path.name + ".1"), path):
        if each.exists():
            with each.open(encoding="utf-8", errors="replace", newline="\n") as file:
                lines.extend(line.rstrip("\n") for line in file)
    return list(lines)


# ---- room


def lack_of_room(directory: Path, room: int = ROOM) -> str:
    """Return why ``room`` bytes cannot be written below a directory, as text; empty if they can.

    A quota or a failing disk only shows when something is written.
    """
    try:
        found = os.statvfs(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if found.f_flag & os.ST_RDONLY:
        return f"{directory}: the file system is mounted read-only"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{directory}: no permission to write"
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    if free < room:
        return f"{directory}: {free >> 20} MiB are free, and {-(-room >> 20)} MiB may be needed"
    if found.f_files and not found.f_ffree:
        return f"{directory}: the file system has no free inode"
    return ""


# ---- paths


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise PathUnusable if a node's path has characters that libvirt cannot carry.

    XML carries no control characters.  Libvirt 9 asks QEMU for its capabilities through a socket
    below the path, and does not escape "," and "=" in that option.  It carries all others.
    """
    for character in os.fspath(path):
        code = ord(character)
        unescaped = character in ",="
        if (
            unescaped
            or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
            or code in _NO_XML
        ):
            what = f"the character U+{code:04X}"
            if unescaped:
                what = f"a {character!r}"
            elif 0xDC80 <= code <= 0xDCFF:
                what = "bytes that are not UTF-8"
            raise PathUnusable(
                f"the path {os.fspath(path)!r} has {what}, which libvirt cannot carry",
                remedy="choose a path without it",
            )


def check_socket_paths(paths: Iterable[str]) -> None:
    """Raise PathTooLong for the longest of the paths if it is too long for a unix socket."""
    longest = max(paths, key=lambda path: len(os.fsencode(path)), default="")
    excess = len(os.fsencode(longest)) - SOCKET_PATH_LIMIT
    if excess > 0:
        raise PathTooLong(longest, excess=excess)
