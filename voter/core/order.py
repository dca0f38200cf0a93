"""The order: who is next, the agreed time, the hash of the history, and the log since the last
voted checkpoint.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from msgspec.structs import replace

from voter.core.entries import Once, Record

__all__ = [
    "EMPTY_HISTORY",
    "TAG_SIZE",
    "Checkpoint",
    "LogEntry",
    "OrderLog",
    "history_after",
    "tag",
]

EMPTY_HISTORY = bytes(8)
ENTRY_OVERHEAD = 400
"""Bytes of memory reckoned for an entry besides its request and caller."""


TAG_SIZE = 64


def tag(reply: bytes) -> bytes:
    """Return what stands for a reply in a vote: itself if shorter than 64 bytes, else its hash.

    The hash is of 64 bytes, so that no short reply is ever taken for a long one.
    """
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
    """Return the 8-byte hash of the history ``prev`` with one more request at its end.

    It is keyed: the seeds of requests, which it gives, are not to be foreseen by clients.
    """
    place = b"%b%d %d %d %d " % (prev, seq, time_ns, read_only, len(caller))
    return blake2b(place + caller + request, digest_size=8, key=secret).digest()


@dataclass(slots=True)
class Checkpoint:
    """A voted state: the state after the write ``seq``, at first the empty one (digest None)."""

    seq: int
    history: bytes
    digest: bytes | None
    state: bytes | bytearray


@dataclass(slots=True)
class LogEntry:
    """A write in the log; ``tag`` is known once its vote is won.

    ``killed`` and ``killed_again`` are bit masks of the replicas that were lost once, and again,
    with this write under way and not settled.
    """

    record: Record
    size: int
    tag: bytes | None = None
    killed: int = 0
    killed_again: int = 0


class OrderLog:
    """Writes since the last voted checkpoint, in order.  Reads take a place in the order, not
    in the log.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._entries: list[LogEntry] = []
        self.seq = 0  # last place given
        self.time_ns = 0  # last agreed time
        self.history = EMPTY_HISTORY
        self.checkpoint = Checkpoint(0, EMPTY_HISTORY, None, b"")
        self.bytes = 0
        self.voided: list[int] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_write(self) -> int:
        """Place of the last write, or of the checkpoint if there is none since."""
        return self._entries[-1].record.seq if self._entries else self.checkpoint.seq

    def order(
        self,
        request: bytes,
        caller: bytes,
        read_only: bool,
        wall_ns: int,
        once: Once | None = None,
    ) -> tuple[Record, LogEntry | None]:
        """Give a request its place, time and history; a write also enters the log."""
        seq = self.seq = self.seq + 1
        time_ns = self.time_ns = max(wall_ns, self.time_ns)
        prev = self.history
        history = history_after(self._secret, prev, seq, time_ns, read_only, caller, request)
        record = Record(seq, request, caller, time_ns, prev, history, read_only, False, once)
        return record, None if read_only else self.add(record)

    def token(self, seq: int) -> bytes:
        """Return 8 bytes that go with a place and cannot be guessed."""
        return blake2b(b"session %d" % seq, digest_size=8, key=self._secret).digest()

    def add(self, record: Record) -> LogEntry:
        """Enter a write that has its place (a new one, or one of the journal)."""
        self.seq = record.seq
        self.time_ns = record.time_ns
        self.history = record.history
        entry = LogEntry(record, len(record.request) + len(record.caller) + ENTRY_OVERHEAD)
        self._entries.append(entry)
        self.bytes += entry.size
        return entry

    def void(self, entry: LogEntry) -> Record:
        """Mark a write as one that all replicas skip."""
        entry.record = replace(entry.record, void=True)
        self.voided.append(entry.record.seq)
        return entry.record

    def __iter__(self) -> Iterator[LogEntry]:
        return iter(self._entries)

    def _position(self, seq: int) -> int:
        return bisect_right(self._entries, seq, key=lambda entry: entry.record.seq)

    def after(self, seq: int, most: int) -> list[LogEntry]:
        """Return the first ``most`` writes after ``seq``."""
        start = self._position(seq)
        return self._entries[start : start + most]

    def count_after(self, seq: int) -> int:
        """Return how many writes there are after ``seq``."""
        return len(self._entries) - self._position(seq)

    def find(self, seq: int) -> LogEntry | None:
        """Return the write at ``seq``, if it is in the log."""
        at = self._position(seq) - 1
        if at >= 0 and self._entries[at].record.seq == seq:
            return self._entries[at]
        return None

    def continues(self, last_seq: int, history: bytes) -> bool:
        """Whether the log goes on from a replica whose last write and history are these."""
        if last_seq <= self.checkpoint.seq:
            return history == self.checkpoint.history
        entry = self.find(last_seq)
        return entry is not None and entry.record.history == history

    def truncate(self, checkpoint: Checkpoint) -> None:
        """Make ``checkpoint`` the start of the log; what came before it is dropped."""
        keep = self._position(checkpoint.seq)
        self.bytes -= sum(entry.size for entry in self._entries[:keep])
        del self._entries[:keep]
        self.checkpoint = checkpoint
        self.voided = [seq for seq in self.voided if seq > checkpoint.seq]
