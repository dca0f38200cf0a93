"""Log files of processes that write to them directly, kept bounded from outside."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import deque
from pathlib import Path
from typing import IO

__all__ = ["LogFile", "read_tail", "watch_logs"]

LIMIT = 4 << 20
"""Bytes after which a log becomes the old one; with that, a log takes twice as much on disk."""
LOOK_EVERY = 5.0
"""Seconds between looks at the sizes; a file gives no event for having grown."""


class LogFile:
    """A log at ``path``, the one before it at ``path`` + ``.1``.

    Writers hold it open for appending, so cutting it back to nothing is safe: they go on at its
    new end.
    """

    def __init__(self, path: Path, *, limit: int = LIMIT) -> None:
        self.path = path
        self._limit = limit

    def open(self) -> IO[bytes]:
        """Open it for a process to write to.  Raises OSError."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(fd, "wb", buffering=0)

    def trim(self) -> None:
        """Put its content aside if it has grown over the limit.  Raises OSError."""
        if self.path.exists() and self.path.stat().st_size > self._limit:
            shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
            os.truncate(self.path, 0)


async def watch_logs(logs: list[LogFile]) -> None:
    """Keep the logs bounded, until cancelled.  Raises OSError."""
    while True:
        for log in logs:
            log.trim()
        await asyncio.sleep(LOOK_EVERY)


def read_tail(path: Path, count: int) -> list[str]:
    """Return the last ``count`` lines of a text file; none if it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=count)]
