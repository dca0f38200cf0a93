"""The last lines that a guest printed, in bounded memory."""

from __future__ import annotations

import asyncio
import re
from collections import deque

import structlog

__all__ = ["Console"]

_LIMIT = 64 * 1024
_LONGEST_LINE = 1024

# What could control the terminal that shows it: a guest may print anything.
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\t]")

_log = structlog.get_logger(__name__)


class Console:
    """The last 64 KiB of a guest's console, in lines, across restarts of the VM.

    Control sequences and bytes that are not printable ASCII are removed.  A line longer than 1,024
    bytes is split into pieces of that length.
    """

    def __init__(self, *, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._partial = b""
        self._waiting: list[tuple[str, asyncio.Future[str]]] = []

    def feed(self, data: bytes) -> None:
        """Add bytes that the guest printed."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > _LONGEST_LINE:
            whole.append(self._partial[:_LONGEST_LINE])
            self._partial = self._partial[_LONGEST_LINE:]
        for line in whole:
            self._add(line)

    def mark(self, text: str) -> None:
        """Add a line of the host, for example that the guest was restarted."""
        if self._partial:
            self._add(self._partial)
            self._partial = b""
        self._add(f"--- {text} ---".encode())

    def tail(self, count: int = 20) -> list[str]:
        """Return the last `count` lines, oldest first, including an unfinished one."""
        lines = list(self._lines)
        if self._partial:
            lines.append(_clean(self._partial))
        return lines[-count:] if count > 0 else []

    def line(self, prefix: str) -> asyncio.Future[str]:
        """Return a future for the next line that starts with `prefix`; cancel it to stop."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((prefix, future))
        return future

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Add what `reader` delivers until its end, then close `writer`."""
        try:
            while data := await reader.read(4096):
                self.feed(data)
        except ConnectionError as error:
            _log.debug("a console's connection broke", error=str(error))
        finally:
            writer.close()

    def _add(self, raw: bytes) -> None:
        line = _clean(raw)
        self._lines.append(line)
        # One byte more than its length, for its line end, so that empty lines are bounded too.
        self._bytes += len(line) + 1
        while self._bytes > self._limit:
            self._bytes -= len(self._lines.popleft()) + 1
        for item in list(self._waiting):
            prefix, future = item
            if future.done():
                self._waiting.remove(item)
            elif line.startswith(prefix):
                future.set_result(line)
                self._waiting.remove(item)


def _clean(raw: bytes) -> str:
    return _UNPRINTABLE.sub("", raw.decode("ascii", errors="replace"))
