"""A copy of each ordered request, for readers of the control socket; loaded at the first reader.

A reader has a queue of its own, bounded in requests and bytes.  What does not fit is dropped and
counted, and the reader gets a line that says so.  So a reader that is slow or hangs never delays
the voter.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from voter.core.entries import Record

__all__ = ["QUEUED", "QUEUED_BYTES", "RequestTap", "TapReader"]

QUEUED, QUEUED_BYTES = 8192, 16 << 20
"""Most requests that wait for one reader, and most bytes of them; more are dropped."""
_PIECE = 64 << 10


def _line(record: Record) -> bytes:
    """Return a request as a line of JSON; its bytes in base64."""
    document = {
        "seq": record.seq,
        "time": record.time_ns / 1e9,
        "caller": record.caller.decode(errors="replace"),
        "read_only": record.read_only,
        "request": record.request,
    }
    return msgspec.json.encode(document) + b"\n"


class TapReader:
    """One reader's queue."""

    def __init__(self) -> None:
        self._queue: deque[Record] = deque()
        self._bytes = 0
        self._missed = [0, 0, 0]  # how many, the first and the last one's sequence number
        self._news = asyncio.Event()

    def add(self, records: Sequence[Record]) -> None:
        """Queue requests that were ordered together, or count them as missed."""
        for record in records:
            if len(self._queue) >= QUEUED or self._bytes + len(record.request) > QUEUED_BYTES:
                self._missed = [self._missed[0] + 1, self._missed[1] or record.seq, record.seq]
            else:
                self._queue.append(record)
                self._bytes += len(record.request)
        self._news.set()

    async def next(self) -> bytes:
        """Wait for requests; return some of them as lines.

        What was missed is reported as ``{"missed": N, "first": SEQ, "last": SEQ}`` once the queue
        is empty: no request in between was queued.
        """
        await self._news.wait()
        lines, size = [], 0
        while self._queue and size < _PIECE:
            record = self._queue.popleft()
            self._bytes -= len(record.request)
            lines.append(_line(record))
            size += len(lines[-1])
        if not self._queue:
            self._news.clear()
            if self._missed[0]:
                gap = dict(zip(("missed", "first", "last"), self._missed, strict=True))
                lines.append(msgspec.json.encode(gap) + b"\n")
                self._missed = [0, 0, 0]
        return b"".join(lines)


class RequestTap:
    """Gives its readers each record of an order."""

    def __init__(self) -> None:
        self.readers: set[TapReader] = set()

    def __call__(self, records: Sequence[Record]) -> None:
        """Take the records of one order."""
        for reader in self.readers:
            reader.add(records)
