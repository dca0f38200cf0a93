"""Membership: the replicas of a node, their roles and states, and who counts.

A replica is an *elector* while it is ACTIVE, which only voters by role are: only electors' ballots
count.  It is *live* while it gets each request as it is ordered: electors, replicas that have
reached the end of the log, and those that are only compared.  The live ones that are no voters by
role are *watched* (comparisons.py).  These sets are computed when a replica changes, and only read
on the hot path.

Every change of state goes through ``change``, which reports it (Changed) and journals it
(MembershipChange).  The journal must hold which replicas are suspect, since a suspect replica may
not keep its state after a restart of the voter either.  A replica that comes and goes without end
must not fill the disk.  So at most ``Limits.membership_changes`` changes are journaled between two
checkpoints, and none on a full disk, besides those that make a replica suspect or clear it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from voter.core.batch import Batch
from voter.core.engine_time import EngineTime
from voter.core.entries import MembershipChange, Record
from voter.core.events import Changed, Effect, Send, SendAll
from voter.core.followers import Followers
from voter.core.journal_state import JournalState
from voter.core.limits import Limits
from voter.core.poll import Poll
from voter.core.replica import Cause, Replica, Role, State
from voter.core.vote import Policy

__all__ = ["Membership", "make_replicas"]


def make_replicas(
    policy: Policy, names: Sequence[str], roles: Mapping[str, Role]
) -> tuple[Replica, ...]:
    """Return the replicas of a new journal, voters if ``roles`` does not say otherwise.

    Raises ValueError if the number of voters is not the policy's n.
    """
    replicas = tuple(Replica(index, name) for index, name in enumerate(names))
    for replica in replicas:
        replica.begin(roles.get(replica.name, Role.VOTER))
    voters = sum(replica.role is Role.VOTER for replica in replicas)
    if voters != policy.of or len(set(names)) != len(names):
        raise ValueError(f"vote {policy} needs {policy.of} replicas with different names")
    return replicas


@dataclass
class Membership:
    """The replicas, and the sets of electors (``active``) and of live replicas, by index."""

    policy: Policy
    replicas: tuple[Replica, ...]
    limits: Limits
    time: EngineTime
    journal: JournalState
    followers: Followers
    effects: list[Effect]
    active: tuple[int, ...] = ()
    live: tuple[int, ...] = ()
    live_mask: int = 0  # the live replicas as a bit mask
    watched: int = 0  # the live replicas that are no voters, as a bit mask
    roles_version: int = 0  # changes of roles so far (roles.py)
    changes: int = 0  # journaled since the last checkpoint

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas)

    def __getitem__(self, index: int) -> Replica:
        return self.replicas[index]

    def refresh(self) -> None:
        """Compute the two sets again, after a replica changed its state or went live."""
        self.active = tuple(r.index for r in self.replicas if r.state is State.ACTIVE)
        self.live = tuple(r.index for r in self.replicas if r.live)
        self.live_mask = sum(1 << index for index in self.live)
        others = [r.index for r in self.replicas if r.live and r.role is not Role.VOTER]
        self.watched = sum(1 << index for index in others)
        self.followers.choose(self.active, self.live)

    @property
    def roles(self) -> dict[str, str]:
        """The table of roles, by name."""
        return {replica.name: str(replica.role) for replica in self.replicas}

    def voters(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Return those of these replicas that are voters by role."""
        return tuple(index for index in indices if self.replicas[index].role is Role.VOTER)

    @property
    def incarnations_ended(self) -> int:
        """Times that an incarnation of any replica was ended, for any reason."""
        return sum(replica.incarnations_ended for replica in self.replicas)

    @property
    def can_vote(self) -> bool:
        """Whether m replicas are active; otherwise nothing may be ordered."""
        return len(self.active) >= self.policy.need

    @property
    def status(self) -> str:
        """``ready`` (all n vote), ``degraded`` (at least m) or ``refusing``."""
        if len(self.active) >= self.policy.of:
            return "ready"
        return "degraded" if self.can_vote else "refusing"

    def change(self, replica: Replica, cause: Cause, reason: str, seq: int) -> None:
        """Move a replica to its next state; report and journal that."""
        before = replica.state
        replica.move(cause, reason)
        self.effects.append(Changed(replica.index, before, replica.state, reason, seq))
        if (
            self.changes < self.limits.membership_changes and not self.journal.full
        ) or replica.suspect is not replica.journaled_suspect:
            replica.journaled_suspect = replica.suspect
            self.changes += 1
            name, suspect = replica.name, replica.suspect
            self.journal.append(
                MembershipChange(seq, name, before, replica.state, reason[:200], suspect)
            )

    def load_roles(self, version: int, roles: Mapping[str, str]) -> None:
        """Give the replicas the roles that a journal holds.

        A replica that the journal does not know is retired if it would vote.  Raises ValueError if
        a voter of the journal does not exist.
        """
        names = {replica.name for replica in self.replicas}
        for name, role in roles.items():
            if role == Role.VOTER and name not in names:
                raise ValueError(
                    f"the journal says that {name} votes, and there is no such replica"
                )
        for replica in self.replicas:
            role = Role.RETIRED if replica.role is Role.VOTER else replica.role
            replica.begin(Role(roles.get(replica.name, role)))
        self.roles_version = version

    def checkpointed(self) -> None:
        """Count the journaled changes from zero: a checkpoint replaces all entries before it."""
        self.changes = 0

    def send_to_live(self, poll: Poll, record: Record) -> None:
        """Send a new request to all live replicas, and expect their answers."""
        followers = self.followers
        followers.rotate_if_due()
        now, seq, size = self.time.now, poll.seq, poll.size
        for index in self.live:
            self.replicas[index].expect(seq, size, now)
        poll.expect(self.live_mask, len(self.live))
        self.effects.append(Send(self.live, record, followers.later))
        followers.hold(seq, 1, size)

    def send_batch(self, batch: Batch) -> None:
        """Send a new batch to all live replicas, and expect their answers."""
        followers = self.followers
        followers.rotate_if_due()
        now, requests = self.time.now, len(batch.records)
        for index in self.live:
            self.replicas[index].expect(batch.seq, batch.size, now, requests)
        batch.sent, batch.unanswered = self.live_mask, len(self.live)
        self.effects.append(SendAll(self.live, batch.records, followers.later))
        followers.hold(batch.seq, requests, batch.size)

    def send_to(self, replica: Replica, poll: Poll | None, record: Record) -> None:
        """Send a write of the log to a learner, and expect its answer (a ballot if it is open)."""
        self.followers.push()
        replica.expect(record.seq, len(record.request), self.time.now)
        if poll is not None:
            poll.expect(1 << replica.index, 1)
        self.effects.append(Send((replica.index,), record))
