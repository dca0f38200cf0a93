"""A reproducible writer of cpio archives in the "newc" format of an initramfs.

The same entries give the same bytes: names are sorted, every owner is root, every time is zero, and
inode numbers count up from 1.  The kernel unpacks several archives in a row, each with a trailer.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from guests.image.host import ImageError

__all__ = ["ALIGNMENT", "ArchiveEntry", "device", "directory", "file", "pack", "symlink"]

ALIGNMENT = 4
"""Bytes: headers and bodies start on a multiple of this, and so does every archive in a row."""

_TRAILER = "TRAILER!!!"
_LARGEST = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One file of an archive.  ``mode``: type and permissions.  ``device``: (major, minor)."""

    name: str
    mode: int
    body: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, body: bytes, *, executable: bool = False) -> ArchiveEntry:
    """Return a regular file that everybody may read."""
    return ArchiveEntry(name, stat.S_IFREG | (0o755 if executable else 0o644), body)


def directory(name: str) -> ArchiveEntry:
    """Return a directory that only root may write."""
    return ArchiveEntry(name, stat.S_IFDIR | 0o755)


def symlink(name: str, target: str) -> ArchiveEntry:
    """Return a symbolic link to ``target``, which need not exist."""
    return ArchiveEntry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int) -> ArchiveEntry:
    """Return a character device that only root may open."""
    return ArchiveEntry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def pack(entries: Iterable[ArchiveEntry]) -> bytes:
    """Return the archive of ``entries`` and of every directory above them.

    Raises ImageError for a name that is absolute, contains "..", or names two different files.
    """
    named: dict[str, ArchiveEntry] = {}
    for entry in entries:
        path = PurePosixPath(entry.name)
        if not entry.name or path.is_absolute() or ".." in path.parts or str(path) != entry.name:
            raise ImageError(
                f"{entry.name!r} cannot name a file of an image: give a plain relative path",
                error_code="TV0416",
            )
        if named.setdefault(entry.name, entry) != entry:
            raise ImageError(
                f"{entry.name!r} is twice in an image, with different contents: keep one",
                error_code="TV0416",
            )
    for name in list(named):
        for parent in PurePosixPath(name).parents:
            if parent.name:
                above = named.setdefault(str(parent), directory(str(parent)))
                if not stat.S_ISDIR(above.mode):
                    raise ImageError(
                        f"{name!r} lies below {above.name!r}, which is not a directory",
                        error_code="TV0416",
                    )
    # Sorted by parts, a directory comes before what is in it: the kernel needs that order.
    ordered = sorted(named.values(), key=lambda entry: PurePosixPath(entry.name).parts)
    out = bytearray()
    for inode, entry in enumerate(ordered, start=1):
        _append(out, inode, entry)
    _append(out, 0, ArchiveEntry(_TRAILER, 0))
    return bytes(out)


def _append(out: bytearray, inode: int, entry: ArchiveEntry) -> None:
    if len(entry.body) > _LARGEST:
        raise ImageError(
            f"{entry.name!r} is too large for an image: 4 GiB is the most a cpio file can be",
            error_code="TV0416",
        )
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # inode, mode, uid, gid, links, time, size, device (two), special device (two), name, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.body), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08x" % field for field in fields)
    out += name
    out += bytes(-len(out) % ALIGNMENT)
    out += entry.body
    out += bytes(-len(out) % ALIGNMENT)
