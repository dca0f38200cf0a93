"""The writes of a journal in their order, each with what was decided about it.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from voter.core.entries import Entry, Record, Settled, Void

__all__ = ["LOOKAHEAD", "LOOKAHEAD_BYTES", "LoggedWrite", "logged_writes"]

LOOKAHEAD = 16_384
"""Writes that may wait for their results.  At most 4,096 are under way in a voter
(``Limits.pending``); a result that does not come is that of a vote without a majority."""
LOOKAHEAD_BYTES = 128 << 20
"""The same in bytes of requests."""


class LoggedWrite(msgspec.Struct):
    """A write, and what the voter decided about it.

    ``tag`` is that of the released reply (``voter.core.order.tag``); None if the journal has no
    result.  ``reply``: the reply, if the journal has it.  ``void``: all replicas skipped it.
    """

    record: Record
    tag: bytes | None = None
    reply: bytes | None = None
    void: bool = False


def logged_writes(
    entries: Iterable[Entry], until: int | None = None, *, lookahead: int = LOOKAHEAD
) -> Iterator[LoggedWrite]:
    """Yield the writes in ``entries`` up to sequence number ``until`` (None: to the end).

    A result follows its write at a distance.  So a write is yielded once its result is known, or
    once ``lookahead`` more writes, or LOOKAHEAD_BYTES of them, have been read.
    """
    waiting: deque[LoggedWrite] = deque()
    by_seq: dict[int, LoggedWrite] = {}
    size = beyond = 0
    for entry in entries:
        if isinstance(entry, Record):
            if until is None or entry.seq <= until:
                waiting.append(LoggedWrite(entry, void=entry.void))
                by_seq[entry.seq] = waiting[-1]
                size += len(entry.request)
            else:
                beyond += 1
        elif isinstance(entry, Settled | Void) and (found := by_seq.get(entry.seq)) is not None:
            if isinstance(entry, Void):
                found.void = True
            else:
                found.tag, found.reply = entry.tag, entry.reply
        while waiting and (
            waiting[0].tag is not None or len(waiting) > lookahead or size > LOOKAHEAD_BYTES
        ):
            write = waiting.popleft()
            del by_seq[write.record.seq]
            size -= len(write.record.request)
            yield write
        if beyond and (not waiting or beyond > lookahead):
            break
    yield from waiting
