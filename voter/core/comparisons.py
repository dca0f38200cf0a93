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
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from voter.core.batch import Batch
from voter.core.engine_time import EngineTime
from voter.core.events import Differed, Effect
from voter.core.membership import Membership
from voter.core.order import TAG_SIZE, LogEntry, tag
from voter.core.poll import Poll
from voter.core.replica import Replica

__all__ = ["KEPT_BYTES", "Comparisons"]

KEPT_BYTES = 4 << 20
"""Bytes of winning replies that are kept at most.  An observer that is 4 MiB behind is not lost for
that: its differences are reported without the released reply."""
ENTRY_BYTES = 100
"""Bytes of memory of a kept vote, besides its replies (estimate)."""


class _Kept(NamedTuple):
    """The winning replies of one vote: those to the requests from ``first`` to ``last``."""

    first: int
    last: int
    at: float  # engine time at which the vote was won
    batch: Batch | None
    replies: bytes  # the reply, or the winning payload of the batch

    @property
    def size(self) -> int:
        return len(self.replies) + ENTRY_BYTES


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
        self,
        poll: Poll,
        winner: bytes,
        value: bytes | None,
        ballots: Mapping[int, bytes],
        replies: Mapping[bytes, bytes],
    ) -> None:
        """Compare the ballots of a poll that was won just now; keep the reply for later ones.

        ``replies``: the long replies of the poll, by tag.
        """
        if value is not None and self._is_awaited(poll.sent, ballots):
            self._keep(_Kept(poll.seq, poll.seq, self.time.now, None, value))
        request = poll.record.request if poll.record is not None else b""
        for replica in self._watched(ballots):
            ballot = ballots[replica.index]
            other = ballot if len(ballot) < TAG_SIZE or not request else replies.get(ballot)
            replica.compared += bool(request)
            if ballot != winner:
                self._report(replica, poll.seq, request, value, other, 0.0)

    def settled_all(self, batch: Batch, winner: bytes, ballots: Mapping[int, bytes]) -> None:
        """Do the same for a batch."""
        kept = _Kept(batch.seq, batch.records[-1].seq, self.time.now, batch, winner)
        if self._is_awaited(batch.sent, ballots):
            self._keep(kept)
        for replica in self._watched(ballots):
            self._compare_all(replica, batch, ballots[replica.index], kept)

    def _is_awaited(self, sent: int, ballots: Mapping[int, bytes]) -> bool:
        """Whether a watched replica has not answered yet."""
        return bool(sent & self.members.watched & ~sum(1 << index for index in ballots))

    def _watched(self, ballots: Mapping[int, bytes]) -> list[Replica]:
        members = self.members
        return [members[index] for index in ballots if members.watched >> index & 1]

    # ---------------------------------------------------------------- late replies

    def late(self, replica: Replica, poll: Poll, value: bytes) -> None:
        """Compare a reply to a poll that was won before."""
        kept = self._find(poll.seq)
        behind = self.time.now - kept.at if kept is not None else 0.0
        record = poll.record
        if record is not None:
            replica.compared += 1
            replica.behind += behind
        if tag(value) != poll.winner:
            request = record.request if record is not None else b""
            released = self._released(kept, poll.seq)
            if released is None and poll.winner is not None and len(poll.winner) < TAG_SIZE:
                released = poll.winner
            self._report(replica, poll.seq, request, released, value, behind)
        self._drop_answered()

    def late_all(self, replica: Replica, batch: Batch, payload: bytes) -> None:
        """Compare the replies to a batch that was won before."""
        self._compare_all(replica, batch, payload, self._find(batch.seq))
        self._drop_answered()

    def replayed(self, replica: Replica, entry: LogEntry, value: bytes) -> None:
        """Compare a reply to a write of the log, of which only the tag is known."""
        winner = entry.tag
        replica.compared += winner is not None
        if winner is not None and tag(value) != winner:
            released = winner if len(winner) < TAG_SIZE else None
            record = entry.record
            self._report(replica, record.seq, record.request, released, value, 0.0)

    def _compare_all(
        self, replica: Replica, batch: Batch, payload: bytes, kept: _Kept | None
    ) -> None:
        behind = self.time.now - kept.at if kept is not None else 0.0
        count = len(batch.records)
        replica.compared += count
        replica.behind += behind * count
        if tag(payload) == batch.winner:
            return
        others = batch.replies(payload) or [b""] * count
        known = batch.replies(kept.replies) if kept is not None else None
        released: list[bytes | None] = [*known] if known else [None] * count
        for record, right, win, other in zip(
            batch.records, batch.tags, released, others, strict=True
        ):
            if tag(other) != right:
                self._report(replica, record.seq, record.request, win, other, behind)

    def _report(
        self,
        replica: Replica,
        seq: int,
        request: bytes,
        released: bytes | None,
        other: bytes | None,
        behind: float,
    ) -> None:
        replica.differed += 1
        self.effects.append(Differed(replica.index, seq, request, released, other, behind))

    # ------------------------------------------------------------- what is kept

    def _keep(self, kept: _Kept) -> None:
        self.kept.append(kept)
        self.kept_bytes += kept.size
        while self.kept_bytes > KEPT_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.kept_bytes -= self.kept.popleft().size

    def _drop_answered(self) -> None:
        """Drop what all watched replicas have answered: they answer in the order of the requests.

        Votes may be won in another order, so some is dropped later than it could be.
        """
        members = self.members
        first = min(
            (
                members[index].outstanding[0][0]
                for index in members.live
                if members.watched >> index & 1 and members[index].outstanding
            ),
            default=inf,
        )
        while self.kept and self.kept[0].last < first:
            self._drop_oldest()

    def _find(self, seq: int) -> _Kept | None:
        """Return the vote on ``seq`` if it is kept.  It usually is the oldest one."""
        return next((each for each in self.kept if each.first <= seq <= each.last), None)

    def _released(self, kept: _Kept | None, seq: int) -> bytes | None:
        if kept is None or kept.batch is None:
            return kept.replies if kept is not None else None
        replies, records = kept.batch.replies(kept.replies), kept.batch.records
        seqs = [record.seq for record in records]
        return replies[seqs.index(seq)] if replies is not None and seq in seqs else None
