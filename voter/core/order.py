"""The order: sequence numbers, agreed time, the hash of the history, and the log.

All replicas apply the same requests in the same order, and get the same time and random numbers.
So each request gets, in its Record:

- a sequence number.  Reads, markers and admissions use one too, but only writes enter the log.
- the agreed time of the last tick (engine_time.py), never earlier than that of a request before.
- two hashes of the history.  ``prev`` covers all writes before it: an agent applies a request only
  if its own history is the same.  ``history`` also covers the request itself, and seeds its random
  numbers.  It is keyed with a secret, so that clients cannot predict the seeds.

The log holds the writes since the last checkpoint.  Missing writes are sent to a replica from the
log.  A replica whose state the log does not continue is sent the checkpoint first.

``tag`` is what replicas vote on.  A short reply is its own tag; a long one is represented by a hash
that is longer than any short reply.  So equal tags mean equal replies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from msgspec.structs import replace

from guests.protocol.wire import EMPTY_HISTORY
from voter.core.entries import Once, Record

__all__ = [
    "ENTRY_OVERHEAD", "TAG_SIZE", "Checkpoint", "LogEntry", "OrderLog", "history_after", "tag",
]  # fmt: skip

ENTRY_OVERHEAD = 400
"""Bytes of memory of an entry, besides its request and caller (estimate)."""
TAG_SIZE = 64
"""Bytes of a hash.  Shorter replies are their own tags."""


def tag(reply: bytes) -> bytes:
    """Return the tag of a reply: itself if it is shorter than TAG_SIZE, otherwise its hash."""
    return reply if len(reply) < TAG_SIZE else blake2b(reply).digest()


def history_after(
    secret: bytes,
    prev: bytes,
    seq: int,
    time_ns: int,
    read_only: bool,
    caller: bytes,
    request: bytes,
) -> bytes:
    """Return the 8-byte hash of the history ``prev`` followed by one more request."""
    head = b"%b%d %d %d %d " % (prev, seq, time_ns, read_only, len(caller))
    return blake2b(head + caller + request, digest_size=8, key=secret).digest()


@dataclass(slots=True)
class Checkpoint:
    """A voted state after all writes up to ``seq``; at first the empty one (``digest`` None)."""

    seq: int
    history: bytes
    digest: bytes | None
    state: bytes | bytearray


@dataclass(slots=True)
class LogEntry:
    """A write in the log; ``tag`` is that of its reply, once its vote is won.

    ``killed`` and ``killed_again`` are bit masks of the replicas that were lost while this write
    was under way and not settled: once, and again while it was the only one.
    """

    record: Record
    size: int
    tag: bytes | None = None
    killed: int = 0
    killed_again: int = 0


class OrderLog:
    """The order up to now, and the writes since the last voted checkpoint."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._entries: list[LogEntry] = []
        self.seq = 0  # last sequence number used
        self.time_ns = 0  # last agreed time
        self.history = EMPTY_HISTORY
        self.checkpoint = Checkpoint(0, EMPTY_HISTORY, None, b"")
        self.bytes = 0  # of the entries
        self.voided: list[int] = []  # voided writes, by sequence number
        self.writes = 0  # added so far

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_write(self) -> int:
        """Sequence number of the last write, or of the checkpoint if there is none since."""
        return self._entries[-1].record.seq if self._entries else self.checkpoint.seq

    def order(
        self,
        request: bytes,
        caller: bytes,
        read_only: bool,
        now_ns: int,
        once: Once | None = None,
        *,
        void: bool = False,
    ) -> tuple[Record, LogEntry | None]:
        """Give a request its sequence number, time and history; add a write to the log."""
        seq = self.seq = self.seq + 1
        time_ns = self.time_ns = max(now_ns, self.time_ns)
        prev = self.history
        history = history_after(self._secret, prev, seq, time_ns, read_only, caller, request)
        record = Record(seq, request, caller, time_ns, prev, history, read_only, void, once)
        return record, None if read_only else self.add(record)

    def take_seq(self) -> int:
        """Use up one sequence number for something that is not a request; return it."""
        self.seq += 1
        return self.seq

    def begin_at(self, checkpoint: Checkpoint, time_ns: int) -> None:
        """Start the order at a checkpoint.  Only before the first request."""
        self.checkpoint, self.time_ns = checkpoint, time_ns
        self.seq, self.history = checkpoint.seq, checkpoint.history

    def advance(self, *, seq: int = 0, time_ns: int = 0) -> None:
        """Never again assign a sequence number up to ``seq``, or an earlier time."""
        self.seq = max(self.seq, seq)
        self.time_ns = max(self.time_ns, time_ns)

    def token(self, seq: int) -> bytes:
        """Return 8 bytes that belong to a sequence number and cannot be guessed."""
        return blake2b(b"session %d" % seq, digest_size=8, key=self._secret).digest()

    def add(self, record: Record) -> LogEntry:
        """Add a write that has its sequence number (a new one, or one from the journal)."""
        self.seq = record.seq
        self.time_ns = record.time_ns
        self.history = record.history
        entry = LogEntry(record, len(record.request) + len(record.caller) + ENTRY_OVERHEAD)
        self._entries.append(entry)
        self.bytes += entry.size
        self.writes += 1
        return entry

    def void(self, entry: LogEntry) -> Record:
        """Mark a write that all replicas must skip; return its new record."""
        entry.record = replace(entry.record, void=True)
        self.voided.append(entry.record.seq)
        return entry.record

    def __iter__(self) -> Iterator[LogEntry]:
        return iter(self._entries)

    def _index_after(self, seq: int) -> int:
        return bisect_right(self._entries, seq, key=lambda entry: entry.record.seq)

    def after(self, seq: int, most: int) -> list[LogEntry]:
        """Return the first ``most`` writes after ``seq``."""
        start = self._index_after(seq)
        return self._entries[start : start + most]

    def count_after(self, seq: int) -> int:
        """Return how many writes there are after ``seq``."""
        return len(self._entries) - self._index_after(seq)

    def find(self, seq: int) -> LogEntry | None:
        """Return the write at ``seq``, if it is in the log."""
        at = self._index_after(seq) - 1
        if at >= 0 and self._entries[at].record.seq == seq:
            return self._entries[at]
        return None

    def continues(self, last_seq: int, history: bytes) -> bool:
        """Whether the log continues a state with this last write and history."""
        if last_seq <= self.checkpoint.seq:
            return history == self.checkpoint.history
        entry = self.find(last_seq)
        return entry is not None and entry.record.history == history

    def truncate(self, checkpoint: Checkpoint) -> None:
        """Drop all writes up to a checkpoint, which is the start of the log from now on."""
        keep = self._index_after(checkpoint.seq)
        self.bytes -= sum(entry.size for entry in self._entries[:keep])
        del self._entries[:keep]
        self.checkpoint = checkpoint
        self.voided = [seq for seq in self.voided if seq > checkpoint.seq]
