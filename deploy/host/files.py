"""Files: atomic replacement, logs of bounded size, room on the disk, paths a node can use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import unicodedata
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from deploy.errors import CannotRunHere, PathTooLong, PathUnusable

__all__ = [
    "LINK_PLACES",
    "SOCKET_PATH_LIMIT",
    "LogFile",
    "check_path",
    "check_socket_paths",
    "lack_of_room",
    "read_tail",
    "short_link",
    "sweep_links",
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

LINK_PLACES = ("/run", "/tmp")
"""Where `short_link` makes links: not in a session's directory, which a node may outlive."""

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


def share_socket(path: Path) -> None:
    """Let the group of a set-group-ID directory connect to a unix socket in it.

    The directories of the node that systemd runs are such (deploy/package); others are their
    owner's alone.  Libvirt lets the group connect to its sockets itself.  Raises OSError.
    """
    if path.parent.stat().st_mode & stat.S_ISGID:
        path.chmod(0o660)


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
            _log.error(
                "a process runs without a log",
                path=str(self.path),
                reason=str(error),
                error_code="TV0730",
            )
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
    """Raise PathUnusable if a path has characters that XML or a line of text cannot carry.

    Libvirt's XML carries any other character, and so do its URI and QEMU's options once encoded.
    """
    for character in os.fspath(path):
        code = ord(character)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or code in _NO_XML:
            what = (
                "bytes that are not UTF-8" if 0xDC80 <= code <= 0xDCFF
                else f"the character U+{code:04X}"
            )  # fmt: skip
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


def short_link(path: Path) -> Path:
    """Return a symbolic link to an absolute path, made if it is missing: about 40 plain characters.

    It is in the first of `LINK_PLACES` where this user can make one.  Its name follows from path
    and user, so it needs no record.  A link that another user made, or could replace, is not used.
    Raises CannotRunHere.
    """
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    for place in LINK_PLACES:
        link = Path(place, f"{_link_prefix()}{name}")
        try:
            if not _is_guarded(os.stat(place)):
                continue
            with contextlib.suppress(FileExistsError):
                link.symlink_to(path)
            if link.lstat().st_uid == os.geteuid() and os.readlink(link) == os.fspath(path):
                return link
        except OSError:
            continue  # read-only, or something else has this name
    raise CannotRunHere(
        f"libvirt needs a short name without commas for {path}, and this user cannot make a "
        f"symbolic link {name} in {' or '.join(LINK_PLACES)}",
        remedy="choose a directory (--dir) of at most 60 bytes without commas and equals signs",
        error_code="TV0703",
    )


def sweep_links() -> None:
    """Remove this user's links of `short_link` whose path does not exist any more.

    Also remove a directory with such a name: libvirt makes it where its link is missing.
    """
    for place in map(Path, LINK_PLACES):
        for link in place.glob(_link_prefix() + "?" * 16):
            with contextlib.suppress(OSError):  # gone already, or its path is out of reach now
                if link.lstat().st_uid != os.geteuid():
                    continue
                if not link.is_symlink():
                    shutil.rmtree(link)
                    continue
                try:
                    link.stat()
                except (FileNotFoundError, NotADirectoryError):
                    link.unlink()


def _link_prefix() -> str:
    return f"trivisor-{os.geteuid()}-"


def _is_guarded(place: os.stat_result) -> bool:
    """Return whether no other user but root can replace what this user makes in a directory."""
    shared = place.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return place.st_uid in (0, os.geteuid()) and (not shared or bool(place.st_mode & stat.S_ISVTX))
