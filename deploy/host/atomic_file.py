"""Files that are there whole or not at all: written aside, onto the disk, renamed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

__all__ = ["aside_of", "write_json", "write_whole"]


def aside_of(path: Path) -> Path:
    """Return where ``path`` is written before it is renamed; a crash may leave it there."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, body: bytes, *, mode: int = 0o644) -> None:
    """Put ``body`` at ``path`` in one step: a reader sees the old file or the new one, never half.

    One writer at a time.  Raises OSError; the file is then as it was.
    """
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # else the new name may be lost with the power
    finally:
        os.close(directory)


def write_json(path: Path, document: object, *, mode: int = 0o644) -> None:
    """Put ``document`` at ``path`` as indented JSON, in one step.  Raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    write_whole(path, text + b"\n", mode=mode)
