"""The journal as the engine knows it: positions, reserved sequence numbers, disk space.

The engine never waits.  It emits Append effects, which the runner writes before any Send that
follows them, and it learns later (Synced) up to which position the journal is durable.  A
*journal position* counts the Append effects since the start.

Three rules follow from that:

1. A reply is released once the journal is durable up to the last write ordered before it, itself
   included (``Poll.needed_position``).  That holds for a read too: what it saw must not vanish with
   the host's power.  Until then the reply waits in ReleaseGate, and a retry joins it there.
2. A write that is voided waits for its Void entry, and so does all that was ordered after it.  A
   change of roles likewise holds back all that is not settled yet.
3. A sequence number is used once, although reads and markers take numbers and are not journaled.
   So numbers are reserved in blocks by an entry (SequenceReservation), and the engine uses only
   those whose reservation is durable.  After a restart the order resumes after the last block.

Without a journal the same code runs with ``synced`` infinite, and nothing is appended.
"""

from __future__ import annotations

from math import inf

from voter.core.entries import Entry, Record, RoleChange, SequenceReservation, Settled, Void
from voter.core.events import Append, Effect, Full
from voter.core.order import OrderLog

__all__ = ["RESERVED", "JournalState"]

RESERVED = 1 << 16
"""Sequence numbers in a reservation.  The next one is made when half of them are used."""
ENTRY_BYTES = 100
"""Bytes of a journal entry that is not a write, besides the reply that it may hold (estimate)."""


class JournalState:
    """What the engine knows of the journal: positions, reserved sequence numbers, disk space."""

    def __init__(self, log: OrderLog, effects: list[Effect], *, enabled: bool) -> None:
        self._log = log
        self._effects = effects
        self.enabled = enabled
        self.position = 0  # entries appended
        self.last_write = 0  # position of the last write, void or change of roles
        self.synced = 0 if enabled else inf  # durable up to this position
        self.full = ""  # why no write can be journaled; empty if it can
        self.other_bytes = 0  # of entries that are not writes, since the last checkpoint
        self.reserved = 0  # last sequence number that is reserved
        self._reserved_at = 0  # position of the entry that reserves it
        self._reserved_durable = 0 if enabled else inf

    @property
    def reclaimable(self) -> int:
        """Bytes that a checkpoint would free: of the log, and of the journal's other entries."""
        return self._log.bytes + self.other_bytes

    def append(self, entry: Entry) -> None:
        """Have an entry written before anything that follows is sent."""
        if self.enabled:
            self.position += 1
            self._effects.append(Append(entry))
            if isinstance(entry, Record):
                self.last_write = self.position
            elif isinstance(entry, Settled):
                self.other_bytes += ENTRY_BYTES + len(entry.reply or b"")
            else:
                self.other_bytes += ENTRY_BYTES
                if isinstance(entry, Void | RoleChange):
                    self.last_write = self.position

    def reserve(self) -> None:
        """Reserve more sequence numbers long before the reserved ones are used up."""
        if self.enabled and self._log.seq + RESERVED // 2 > self.reserved:
            self.reserved = self._log.seq + RESERVED
            self.append(SequenceReservation(self.reserved))
            self._reserved_at = self.position

    def take_seq(self) -> int:
        """Use up one sequence number for what is no request."""
        seq = self._log.take_seq()
        self.reserve()
        return seq

    def has_reserved_seq(self, more: int = 0) -> bool:
        """Whether the reservation of the next sequence number, and ``more``, is durable."""
        if self._log.seq >= self._reserved_durable and self.synced >= self._reserved_at:
            self._reserved_durable = self.reserved
        return self._log.seq + more < self._reserved_durable

    def advance_synced(self, position: int) -> float:
        """Note that the journal is durable up to ``position``; return up to where it is."""
        self.synced = max(self.synced, position)
        return self.synced

    def checkpointed(self) -> None:
        """Count the bytes from zero: a checkpoint replaces all entries before it."""
        self.other_bytes = 0

    def set_full(self, event: Full) -> None:
        """Note that the disk has no room for new writes, or has room again."""
        self.full = event.reason or "the disk is full" if event.full else ""
