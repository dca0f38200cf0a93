"""Comparisons: how the replies of replicas that do not vote differ from the released ones.

A learner or an observer by role gets each request and answers it, often later than the voters.  Its
reply is compared with the winning one by tag, as any late reply is (polls.py).  If it differs, the
supervisor wants to see both replies (Differed).  So the winning replies are kept here until the
watched replicas have answered, but at most KEPT_BYTES of them: then the oldest are dropped, and a
difference is reported without the released reply.

A node without such replicas keeps nothing and pays one check of a bit mask for each vote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from voter.core.batch import Batch
from voter.core.engine_time import EngineTime
from voter.core.entries import Record
from voter.core.events import Differed, Effect
from voter.core.membership import Membership
from voter.core.order import TAG_SIZE, tag
from voter.core.poll import Poll
from voter.core.replica import Replica

__all__ = ["KEPT_BYTES", "Comparisons"]

KEPT_BYTES = 4 << 20
"""Bytes of winning replies that are kept at most.  An observer that is 4 MiB behind is not lost for
that: its differences are reported without the released reply."""
ENTRY_BYTES = 100
"""Bytes of memory of a kept vote, besides its replies (estimate)."""

Tags = Mapping[int, bytes]
"""The ballots of a vote by replica: tags, or payloads of a batch."""
Replies = Sequence[bytes | None]


class _Kept(NamedTuple):
    """The winning replies of one vote: those to the requests from ``first`` on."""

    first: int
    at: float  # engine time at which the vote was won
    replies: Sequence[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.replies)) + ENTRY_BYTES

    @property
    def end(self) -> int:
        return self.first + len(self.replies)


@dataclass
class Comparisons:
    """The winning replies that watched replicas have still to answer."""

    time: EngineTime
    members: Membership
    effects: list[Effect]
    kept: deque[_Kept] = field(default_factory=deque)  # in the order in which the votes were won
    kept_bytes: int = 0

    # ------------------------------------------------------------ votes that are won

    def settled(
        self, poll: Poll, value: bytes | None, ballots: Tags, replies: Mapping[bytes, bytes]
    ) -> None:
        """Compare the ballots of a poll that was won just now; keep the reply for later ones.

        ``replies``: the long replies of the poll, by tag.
        """
        if value is not None:
            self._keep(poll.seq, [value], poll.sent, ballots)
        for replica in self._watched(ballots):
            ballot = ballots[replica.index]
            other = ballot if len(ballot) < TAG_SIZE else replies.get(ballot)
            self._compare(replica, poll.seq, poll.record, ballot == poll.winner, value, other)

    def settled_all(self, batch: Batch, replies: Sequence[bytes], ballots: Tags) -> None:
        """Do the same for a batch."""
        self._keep(batch.seq, replies, batch.sent, ballots)
        for replica in self._watched(ballots):
            self._compare_all(replica, batch, ballots[replica.index], replies)

    def _watched(self, ballots: Tags) -> list[Replica]:
        members = self.members
        return [members[index] for index in ballots if members.watched >> index & 1]

    # ---------------------------------------------------------------- late replies

    def late(
        self, replica: Replica, seq: int, record: Record | None, right: bytes, value: bytes
    ) -> None:
        """Compare a reply with ``right``, the tag of the reply that won before."""
        kept = self._find(seq)
        released = right if len(right) < TAG_SIZE else None
        behind = 0.0
        if kept is not None:
            released, behind = kept.replies[seq - kept.first], self.time.now - kept.at
        self._compare(replica, seq, record, tag(value) == right, released, value, behind)
        self._drop_answered()

    def late_all(self, replica: Replica, batch: Batch, payload: bytes) -> None:
        """Compare the replies to a batch that was won before."""
        kept = self._find(batch.seq)
        replies = kept.replies if kept is not None else [None] * len(batch.records)
        behind = self.time.now - kept.at if kept is not None else 0.0
        self._compare_all(replica, batch, payload, replies, behind)
        self._drop_answered()

    def _compare_all(
        self, replica: Replica, batch: Batch, payload: bytes, replies: Replies, behind: float = 0.0
    ) -> None:
        others = batch.replies(payload) or [b""] * len(batch.records)
        for record, right, won, other in zip(
            batch.records, batch.tags, replies, others, strict=True
        ):
            self._compare(replica, record.seq, record, tag(other) == right, won, other, behind)

    def _compare(
        self, replica: Replica, seq: int, record: Record | None, agrees: bool,
        released: bytes | None, other: bytes | None, behind: float = 0.0,
    ) -> None:  # fmt: skip
        """Count a comparison; report a difference.  ``record``: None for a digest."""
        replica.compared += record is not None
        replica.behind += behind
        if not agrees:
            replica.differed += 1
            request = record.request if record is not None else b""
            self.effects.append(Differed(replica.index, seq, request, released, other, behind))

    # ------------------------------------------------------------- what is kept

    def _keep(self, first: int, replies: Sequence[bytes], sent: int, ballots: Tags) -> None:
        """Keep the replies of a vote if a watched replica has not answered yet."""
        if sent & self.members.watched & ~sum(1 << index for index in ballots):
            self.kept.append(kept := _Kept(first, self.time.now, replies))
            self.kept_bytes += kept.size
        while self.kept_bytes > KEPT_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.kept_bytes -= self.kept.popleft().size

    def _drop_answered(self) -> None:
        """Drop what all watched replicas have answered: they answer in the order of the requests.

        Votes may be won in another order, so some is dropped later than it could be.
        """
        watched, replicas = self.members.watched, self.members.replicas
        waits = [r.outstanding[0][0] for r in replicas if watched >> r.index & 1 and r.outstanding]
        first = min(waits, default=inf)
        while self.kept and self.kept[0].end <= first:
            self._drop_oldest()

    def _find(self, seq: int) -> _Kept | None:
        """Return the vote on ``seq`` if it is kept.  It usually is the oldest one."""
        return next((each for each in self.kept if each.first <= seq < each.end), None)
