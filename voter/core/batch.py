"""A batch: one vote on all requests of one turn of the loop (``polls.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from guests.protocol.wire import WireError, decode_replies
from voter.core.entries import Record
from voter.core.order import LogEntry, tag
from voter.core.poll import Poll

__all__ = ["Batch"]


@dataclass(slots=True, eq=False)
class Batch:
    """One vote on consecutive requests, at least two: on all of their replies together.

    ``seq`` is the first one's.  ``records``, ``entries`` (None for a read) and ``tickets`` have one
    item for each request.  ``ballots`` holds REPLIES payloads by replica.  Once the batch is
    settled, ``winner`` holds the tag of the winning payload, and ``tags`` those of its replies.
    The other fields are those of a Poll.
    """

    seq: int = 0
    records: list[Record] = field(default_factory=list)
    entries: list[LogEntry | None] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)
    needed_position: int = 0
    size: int = 0
    ballots: dict[int, bytes] = field(default_factory=dict)
    winner: bytes | None = None
    tags: list[bytes] = field(default_factory=list)
    sent: int = 0
    unanswered: int = 0

    def replies(self, payload: bytes) -> list[bytes] | None:
        """Return the replies in a payload, or None if it has not one for each request."""
        try:
            replies = decode_replies(payload)
        except WireError:
            return None
        return replies if len(replies) == len(self.records) else None

    def find_difference(self, payload: bytes) -> int:
        """Return the number of the first request whose reply does not have the winning tag."""
        replies = self.replies(payload) or ()
        for record, right, reply in zip(self.records, self.tags, replies, strict=False):
            if tag(reply) != right:
                return record.seq
        return self.seq

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield sequence number and size in bytes of each request."""
        return ((record.seq, len(record.request)) for record in self.records)

    def split(self) -> Iterator[tuple[Poll, dict[int, bytes]]]:
        """Yield a poll for each request, and the replies to it by replica.

        A malformed payload counts as empty replies, which no correct replica gives.
        """
        nothing = [b""] * len(self.records)
        replies = {
            index: self.replies(payload) or nothing for index, payload in self.ballots.items()
        }
        settled = self.winner is not None
        for i, (record, entry, ticket) in enumerate(
            zip(self.records, self.entries, self.tickets, strict=True)
        ):
            poll = Poll(
                record.seq,
                record,
                entry,
                [] if settled else [ticket],
                self.needed_position,
                len(record.request),
                winner=self.tags[i] if settled else None,
                sent=self.sent,
                unanswered=self.unanswered,
            )
            yield poll, {index: each[i] for index, each in replies.items()}
