"""The release gate: replies and sessions that wait until the journal is durable.

``journal_state.py`` explains why a reply waits.  A retry of its request joins it here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from voter.core.events import Effect, Fail, Release, SessionOpened, Synced
from voter.core.journal_state import JournalState
from voter.core.poll import Poll
from voter.core.polls import Polls

__all__ = ["ReleaseGate"]


@dataclass
class ReleaseGate:
    """Releases replies and sessions to clients; holds those that wait for the journal."""

    journal: JournalState
    polls: Polls
    effects: list[Effect]
    replies: dict[int, tuple[Poll, Release]] = field(default_factory=dict)  # by sequence number
    sessions: list[tuple[int, SessionOpened]] = field(default_factory=list)  # with their positions

    def release_when_durable(self, poll: Poll, release: Release) -> None:
        """Release a reply to all clients that wait for it, now or once it is durable."""
        once = poll.record.once if poll.record is not None else None
        if poll.needed_position > self.journal.synced and (poll.tickets or once is not None):
            self.replies[poll.seq] = (poll, release)
            return
        for ticket in self.polls.take_tickets(poll):
            self.effects.append(msgspec.structs.replace(release, ticket=ticket))

    def open_when_durable(self, opened: SessionOpened) -> None:
        """Report a session whose entry was appended just now, now or once it is durable."""
        if self.journal.position > self.journal.synced:
            self.sessions.append((self.journal.position, opened))
        else:
            self.effects.append(opened)

    def sync(self, event: Synced) -> None:
        """Release all that waited for a position up to which the journal is durable now."""
        synced = self.journal.advance_synced(event.position)
        for poll, release in [
            each for each in self.replies.values() if each[0].needed_position <= synced
        ]:
            del self.replies[poll.seq]
            self.release_when_durable(poll, release)
        self.effects += [opened for position, opened in self.sessions if position <= synced]
        self.sessions = [waiting for waiting in self.sessions if waiting[0] > synced]

    def fail(self, poll: Poll, failure: str, detail: str) -> None:
        """Report to the clients of a poll that there will be no reply."""
        for ticket in self.polls.take_tickets(poll):
            self.effects.append(Fail(ticket, failure, detail, poll.seq))
