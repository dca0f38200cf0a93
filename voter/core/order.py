"""The order: who is next, the agreed time, the hash of the history, and the log since the last
voted checkpoint.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b

from voter.core.events import Record

__all__ = ["EMPTY_HISTORY", "TAG_SIZE", "Checkpoint", "Entry", "Log", "tag"]

EMPTY_HISTORY = bytes(8)
ENTRY_OVERHEAD = 400
"""Bytes of memory reckoned for an entry besides its request and caller."""


TAG_SIZE = 64


def tag(reply: bytes) -> bytes:
    """Return what stands for a reply in a vote: itself if shorter than 64 bytes, else its hash.

    The hash is of 64 bytes, so that no short reply is ever taken for a long one.
    """
    return reply if len(reply) < TAG_SIZE else blake2b(reply).digest()


class Checkpoint:
    """A voted state: the state after the write ``seq``, at first the empty one (digest None)."""

    __slots__ = ("digest", "history", "seq", "state")

    def __init__(self, seq: int, history: bytes, digest: bytes | None, state: bytes) -> None:
        self.seq = seq
        self.history = history
        self.digest = digest
        self.state = state


class Entry:
    """A write in the log; ``tag`` is known once its vote is won.

    ``killed`` and ``killed_again`` are bit masks of the replicas that were lost once, and again,
    with this write under way and not settled.
    """

    __slots__ = ("killed", "killed_again", "record", "size", "tag")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.size = len(record.request) + len(record.caller) + ENTRY_OVERHEAD
        self.tag: bytes | None = None
        self.killed = 0
        self.killed_again = 0


class Log:
    """Writes since the last voted checkpoint, in order.  Reads take a place in the order, not
    in the log.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._entries: list[Entry] = []
        self.seq = 0  # last place given
        self.time_ns = 0  # last agreed time
        self.history = EMPTY_HISTORY
        self.checkpoint = Checkpoint(0, EMPTY_HISTORY, None, b"")
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_write(self) -> int:
        """Place of the last write, or of the checkpoint if there is none since."""
        return self._entries[-1].record.seq if self._entries else self.checkpoint.seq

    def take_place(self) -> int:
        """Use up one place in the order (a marker, a change of membership)."""
        self.seq += 1
        return self.seq

    def order(
        self, request: bytes, caller: bytes, read_only: bool, wall_ns: int
    ) -> tuple[Record, Entry | None]:
        """Give a request its place, time and history; a write also enters the log."""
        seq = self.seq = self.seq + 1
        time_ns = self.time_ns = max(wall_ns, self.time_ns)
        prev = self.history
        place = b"%b%d %d %d %d " % (prev, seq, time_ns, read_only, len(caller))
        history = blake2b(place + caller + request, digest_size=8, key=self._secret).digest()
        record = Record(seq, request, caller, time_ns, prev, history, read_only)
        if read_only:
            return record, None
        self.history = history
        entry = Entry(record)
        self._entries.append(entry)
        self.bytes += entry.size
        return record, entry

    def _position(self, seq: int) -> int:
        return bisect_right(self._entries, seq, key=lambda entry: entry.record.seq)

    def after(self, seq: int, most: int) -> list[Entry]:
        """Return the first ``most`` writes after ``seq``."""
        start = self._position(seq)
        return self._entries[start : start + most]

    def find(self, seq: int) -> Entry | None:
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
