"""Polls: the votes under way, and the ballots, clients and bytes that belong to them.

A poll is opened when a request is ordered, or when a checkpoint marker is placed.  Each replica
that was sent it casts one ballot: the tag of its reply, which is the reply itself if it is short
(``order.tag``).  A poll is *settled* once one tag has m ballots of electors.  It stays open until
all replicas that it was sent to have answered or left, because a late reply must be compared with
the winner too.  A late reply that differs is a dissent like any other.

The ballots of an incarnation are discarded once it ends, since the replica's next incarnation may
hold another state.  That one is sent the open writes again from the log, and votes on them again.

A long reply is kept only while its poll is not settled, and only within ``Limits.ballot_bytes``.
It is needed in one case: a change of membership settles the poll.  Otherwise the ballot that
settles a poll comes with the reply.  If the reply was not kept, the poll waits for a replica that
has still to answer.  If there is none, the client learns that the outcome is unknown.

*Batches.*  The requests of one turn of the loop have one poll together, a Batch: each replica
answers all of them in one frame, and m equal frames settle it.  That is the usual case, and all
that a Batch can do.  Whenever something else happens, ``split`` makes ordinary polls of all
batches, with the ballots that they have.  So whatever is decided about a single request, and when a
replica joins or leaves, there are only ordinary polls.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from math import inf

from voter.core.batch import Batch
from voter.core.limits import Limits
from voter.core.order import tag
from voter.core.poll import Poll
from voter.core.replica import Replica

__all__ = ["Polls"]


@dataclass
class Polls:
    """All open polls, and what they hold in total."""

    limits: Limits
    replicas: tuple[Replica, ...] = ()
    open: dict[int, Poll] = field(default_factory=dict)  # by sequence number, in order
    tickets: dict[int, Poll] = field(default_factory=dict)  # by the client's ticket
    batches: dict[int, Batch] = field(default_factory=dict)  # by their first sequence number
    unsettled: int = 0
    pending_bytes: int = 0  # of the requests that are not settled
    reply_bytes: int = 0  # of the long replies that are kept, and of the ballots of batches
    recount: bool = False  # the electors have changed: count all again

    def add(self, poll: Poll) -> None:
        """Open a poll, with the clients that wait for it."""
        self.open[poll.seq] = poll
        for ticket in poll.tickets:
            self.tickets[ticket] = poll
        self.unsettled += 1
        self.pending_bytes += poll.size

    def join(self, poll: Poll, ticket: int) -> None:
        """Let one more client wait for a poll."""
        poll.tickets.append(ticket)
        self.tickets[ticket] = poll

    def leave(self, ticket: int) -> None:
        """Forget a client that no longer waits, if it does."""
        if (poll := self.tickets.pop(ticket, None)) is not None:
            poll.tickets.remove(ticket)

    def take_tickets(self, poll: Poll) -> list[int]:
        """Remove and return all clients that wait for a poll."""
        tickets, poll.tickets = poll.tickets, []
        for ticket in tickets:
            self.tickets.pop(ticket, None)
        return tickets

    def require_position(self, seq: int, position: int) -> None:
        """Hold the replies to ``seq`` and all later requests until ``position`` is durable."""
        for poll in self.open.values():
            if poll.seq >= seq:
                poll.needed_position = position

    def is_settled(self, seq: int) -> bool:
        """Whether the vote on a request, or on the batch that begins with it, is over."""
        poll = self.open.get(seq) or self.batches.get(seq)
        return poll is None or poll.winner is not None

    def find(self, ticket: int) -> int:
        """Return the sequence number of the request that a client waits for; 0: there is none."""
        if (poll := self.tickets.get(ticket)) is not None:
            return poll.seq
        for batch in self.batches.values():
            if ticket in batch.tickets:
                return batch.records[batch.tickets.index(ticket)].seq
        return 0

    def first_unsettled(self) -> float:
        """Return the first write whose vote is not won (infinite if there is none).

        A replica that has applied it can vote on it only if it still has its reply.
        """
        singles = (p.seq for p in self.open.values() if p.entry and p.winner is None)
        batches = (
            record.seq
            for batch in self.batches.values()
            if batch.winner is None
            for record in batch.records
            if not record.read_only
        )
        return min(next(singles, inf), next(batches, inf))

    def keep_reply(self, poll: Poll, ballot: bytes, reply: bytes) -> None:
        """Keep a long reply until its poll is settled, if there is room for it."""
        if poll.winner is not None or poll.seq not in self.open:
            return
        if len(reply) + self.reply_bytes <= self.limits.ballot_bytes:
            kept = poll.long_replies = poll.long_replies or {}
            if ballot not in kept:
                kept[ballot] = reply
                self.reply_bytes += len(reply)

    def stop_counting(self, poll: Poll, winner: bytes | None) -> dict[int, bytes]:
        """Count no more ballots of a poll; return those it has.

        ``winner``: the tag that has won (the poll may still be open for late replies), or None if
        the poll is dropped.
        """
        ballots, poll.ballots, poll.winner = poll.ballots, {}, winner
        self.unsettled -= 1
        self.pending_bytes -= poll.size
        if poll.long_replies:
            self.reply_bytes -= sum(map(len, poll.long_replies.values()))
            poll.long_replies = None
        return ballots

    def drop(self, poll: Poll) -> None:
        """Forget a poll that has no effect on the state (a read, a marker)."""
        del self.open[poll.seq]
        self.stop_counting(poll, None)

    def expect_one_less(self, seq: int) -> None:
        """Expect one answer less; close a settled poll when no more are expected."""
        if (poll := self.open.get(seq)) is not None:
            poll.unanswered -= 1
            if not poll.unanswered and poll.winner is not None:
                del self.open[seq]

    def withdraw(self, replica: Replica) -> None:
        """Discard the ballots of a replica whose incarnation ends; expect no more answers of it."""
        self.split()
        for seq, _ in chain(replica.outstanding, replica.markers):
            self.expect_one_less(seq)
        for poll in self.open.values():
            poll.ballots.pop(replica.index, None)
            poll.sent &= ~(1 << replica.index)
        self.recount = True

    # ------------------------------------------------------------------ batches

    def add_batch(self, batch: Batch) -> None:
        """Open a batch."""
        self.batches[batch.seq] = batch
        self.unsettled += len(batch.records)
        self.pending_bytes += batch.size

    def keep_ballot(self, batch: Batch, index: int, payload: bytes) -> None:
        """Add a replica's ballot to a batch that is not settled."""
        batch.ballots[index] = payload
        batch.unanswered -= 1
        self.reply_bytes += len(payload)

    def settle_batch(self, batch: Batch, payload: bytes, replies: list[bytes]) -> dict[int, bytes]:
        """Count no more ballots of a batch, which ``payload`` has won; return those it has.

        It stays open until all replicas that it was sent to have answered.
        """
        ballots = self._drop_ballots(batch)
        self.unsettled -= len(batch.records)
        self.pending_bytes -= batch.size
        batch.winner = tag(payload)
        batch.tags = list(map(tag, replies))
        if not batch.unanswered:
            del self.batches[batch.seq]
        return ballots

    def _drop_ballots(self, batch: Batch) -> dict[int, bytes]:
        ballots, batch.ballots = batch.ballots, {}
        self.reply_bytes -= sum(map(len, ballots.values()))
        return ballots

    def late_answer(self, batch: Batch) -> None:
        """Expect one answer less to a settled batch; close it if no more are expected."""
        batch.unanswered -= 1
        if not batch.unanswered:
            del self.batches[batch.seq]

    def split(self) -> None:
        """Make ordinary polls of all batches."""
        if not self.batches:
            return
        batches, self.batches = self.batches, {}
        for batch in batches.values():
            for poll, replies in batch.split():
                self.open[poll.seq] = poll
                for ticket in poll.tickets:
                    self.tickets[ticket] = poll
                for index, reply in replies.items():
                    poll.ballots[index] = ballot = tag(reply)
                    if ballot is not reply:
                        self.keep_reply(poll, ballot, reply)
            self._drop_ballots(batch)
        self.open = dict(sorted(self.open.items()))
        for replica in self.replicas:
            replica.outstanding = deque(
                each
                for seq, size in replica.outstanding
                for each in (batches[seq].sizes() if seq in batches else ((seq, size),))
            )
