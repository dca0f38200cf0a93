"""The release gate: replies, sessions and changes of roles that wait until the journal is durable.

``journal_state.py`` explains why a reply waits.  A retry of its request joins it here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from voter.core.batch import Batch
from voter.core.events import Effect, Fail, Release, ReleaseAll, RolesChanged, SessionOpened, Synced
from voter.core.journal_state import JournalState
from voter.core.poll import Poll
from voter.core.polls import Polls

__all__ = ["ReleaseGate"]


class _Held(NamedTuple):
    """A settled batch, and what is released once the journal is durable up to its position."""

    batch: Batch
    replies: list[bytes]
    agreed: int
    dissent: tuple[int, ...]

    def releases(self) -> list[Release]:
        """Return the effects that release the replies."""
        batch, agreed, dissent = self.batch, self.agreed, self.dissent
        return [
            Release(ticket, record.seq, reply, agreed, dissent)
            for ticket, record, reply in zip(
                batch.tickets, batch.records, self.replies, strict=True
            )
        ]


@dataclass
class ReleaseGate:
    """Releases replies and reports to clients; holds those that wait for the journal."""

    journal: JournalState
    polls: Polls
    effects: list[Effect]
    replies: dict[int, tuple[Poll, Release]] = field(default_factory=dict)  # by sequence number
    batches: list[_Held] = field(default_factory=list)
    reports: list[tuple[int, Effect]] = field(default_factory=list)  # others, with their positions

    @property
    def pending(self) -> int:
        """Replies that wait."""
        return len(self.replies) + sum(len(held.replies) for held in self.batches)

    def release_when_durable(self, poll: Poll, release: Release) -> None:
        """Release a reply to all clients that wait for it, now or once it is durable."""
        once = poll.record.once if poll.record is not None else None
        if poll.needed_position > self.journal.synced and (poll.tickets or once is not None):
            self.replies[poll.seq] = (poll, release)
            return
        for ticket in self.polls.take_tickets(poll):
            self.effects.append(msgspec.structs.replace(release, ticket=ticket))

    def release_all_when_durable(
        self, batch: Batch, replies: list[bytes], agreed: int, dissent: tuple[int, ...]
    ) -> None:
        """Release the replies to a batch, now or once they are durable."""
        held = _Held(batch, replies, agreed, dissent)
        if batch.needed_position > self.journal.synced:
            self.batches.append(held)
        else:
            self.effects.append(ReleaseAll(held.releases()))

    def split(self) -> None:
        """Let the replies of batches wait one by one, so that retries can join them."""
        for held in self.batches:
            for record, ticket, release in zip(
                held.batch.records, held.batch.tickets, held.releases(), strict=True
            ):
                poll = Poll(record.seq, record, needed_position=held.batch.needed_position)
                self.polls.join(poll, ticket)
                self.replies[record.seq] = (poll, release)
        self.batches.clear()

    def require_position(self, seq: int, position: int) -> None:
        """Hold the replies to ``seq`` and all later requests until ``position`` is durable."""
        self.split()
        for poll, _ in self.replies.values():
            if poll.seq >= seq:
                poll.needed_position = position

    def report_when_durable(self, report: SessionOpened | RolesChanged) -> None:
        """Report what was appended to the journal just now, now or once it is durable."""
        if self.journal.position > self.journal.synced:
            self.reports.append((self.journal.position, report))
        else:
            self.effects.append(report)

    def sync(self, event: Synced) -> None:
        """Release all that waited for a position up to which the journal is durable now."""
        synced = self.journal.advance_synced(event.position)
        for poll, release in [
            each for each in self.replies.values() if each[0].needed_position <= synced
        ]:
            del self.replies[poll.seq]
            self.release_when_durable(poll, release)
        while self.batches and self.batches[0].batch.needed_position <= synced:
            self.effects.append(ReleaseAll(self.batches.pop(0).releases()))
        self.effects += [report for position, report in self.reports if position <= synced]
        self.reports = [waiting for waiting in self.reports if waiting[0] > synced]

    def fail(self, poll: Poll, failure: str, detail: str) -> None:
        """Report to the clients of a poll that there will be no reply."""
        for ticket in self.polls.take_tickets(poll):
            self.effects.append(Fail(ticket, failure, detail, poll.seq))
