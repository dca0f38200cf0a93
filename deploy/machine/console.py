"""The last lines that a guest printed, in bounded memory."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable

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
        self._listeners: list[Callable[[str], None]] = []

    def feed(self, data: bytes) -> None:
        """Add bytes that the guest printed."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > _LONGEST_LINE:
            whole.append(self._partial[:_LONGEST_LINE])
            self._partial = self._partial[_LONGEST_LINE:]
        for line in whole:
            text = self._add(line)
            for callback in list(self._listeners):
                callback(text)

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

    def listen(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback` with each line the guest prints; the returned function ends that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Add what `reader` delivers until its end, then close `writer`."""
        try:
            while data := await reader.read(4096):
                self.feed(data)
        except ConnectionError as error:
            _log.debug("a console's connection broke", error=str(error))
        finally:
            writer.close()

    def _add(self, raw: bytes) -> str:
        line = _clean(raw)
        self._lines.append(line)
        # One byte more than its length, for its line end, so that empty lines are bounded too.
        self._bytes += len(line) + 1
        while self._bytes > self._limit:
            self._bytes -= len(self._lines.popleft()) + 1
        return line


def _clean(raw: bytes) -> str:
    return _UNPRINTABLE.sub("", raw.decode("ascii", errors="replace"))
