"""Roles: which replicas vote, and how that changes while the node runs.

A node has more replicas than voters: a *slot* is free while its replica is retired.  A virtual
machine that is started in the free slot becomes a learner or an observer.  It gets checkpoint and
log, then each request.  Later it takes the place of a voter, which is retired in the same step.

**One record.**  A change of roles is one entry of the order (RoleChange).  It holds the complete
table, so there is no state between two tables, and it happens at one sequence number.  The table
has a version: a change names the version that it was made for, and any other is stale.  So of two
supervisors, or of two attempts of one, at most one succeeds.

**What is refused.**  After a change there must be exactly n voters, and at least m of them active.
On request there are fewer for a while, but at least m: then several can join in one step.
A new voter must have caught up.  So a change never costs the majority, and the node answers
requests before and after it.

**Open votes.**  They are counted again.  The ballots of a retired replica are discarded with its
incarnation.  Those of a new voter count, if it was sent the request: it has compared so far, and
now it votes.

**Durability.**  A change takes effect at once.  The replies to requests whose vote is open then
wait until the record is durable, as those of all later requests do, because a restarted voter must
not know another table than the one that elected a released reply.  The supervisor gets its answer
when the record is durable, too: only then may it end the virtual machine of a retired replica.
"""

from __future__ import annotations

from dataclasses import dataclass

from voter.core.entries import RoleChange
from voter.core.events import ChangeRoles, Effect, RoleAssigned, RolesChanged, RolesRefused
from voter.core.incarnations import Incarnations
from voter.core.journal_state import JournalState
from voter.core.limits import Limits
from voter.core.membership import Membership
from voter.core.polls import Polls
from voter.core.release_gate import ReleaseGate
from voter.core.replica import CAUGHT_UP, Replica, Role

__all__ = ["RoleTable"]

LONGEST_REASON = 200
"""Characters of a reason that are kept."""


@dataclass
class RoleTable:
    """What changes the roles.  The table itself is in the replicas, its version in Membership."""

    limits: Limits
    journal: JournalState
    members: Membership
    polls: Polls
    gate: ReleaseGate
    incarnations: Incarnations
    effects: list[Effect]

    def change(self, event: ChangeRoles) -> None:
        """Make a change, or refuse it."""
        members, journal = self.members, self.journal
        if (refused := self._find_problem(event)) is not None:
            self.effects.append(RolesRefused(event.ticket, *refused))
            return
        wanted = ((r, Role(event.roles.get(r.name, r.role))) for r in members)
        changed = [(replica, role) for replica, role in wanted if role is not replica.role]
        seq = 0
        if changed:
            seq, reason = journal.take_seq(), event.reason[:LONGEST_REASON]
            members.roles_version += 1
            table = members.roles | event.roles
            journal.append(RoleChange(seq, members.roles_version, table, reason))
            self.polls.split()
            self.polls.require_position(0, journal.last_write)
            # New voters first: between two changes of state there are never fewer electors.
            changed.sort(key=lambda each: each[1] is not Role.VOTER)
            for replica, role in changed:
                self._assign(replica, role, reason, seq)
        self.gate.report_when_durable(RolesChanged(event.ticket, members.roles_version, seq))

    def _assign(self, replica: Replica, role: Role, reason: str, seq: int) -> None:
        before, replica.role = replica.role, role
        self.effects.append(RoleAssigned(replica.index, before, role, reason, seq))
        replica.voter_from = seq if before is Role.OBSERVER else 0
        if before is Role.RETIRED:
            replica.compared = replica.differed = 0
            replica.behind = 0.0
        self.incarnations.assigned(replica, seq)

    def _find_problem(self, event: ChangeRoles) -> tuple[str, str] | None:
        """Return why a change may not be made (as in RolesRefused), or None."""
        members, journal = self.members, self.journal
        for name, role in event.roles.items():
            for kind, known, each in (("replica", members.roles, name), ("role", list(Role), role)):
                if each not in known:
                    return "not-found", f"no {kind} {each!r}: there are {', '.join(known)}"
        if event.version != members.roles_version:
            text = f"the roles have version {members.roles_version}, not {event.version}"
            return "stale-roles", text
        if (problem := self._find_conflict(event)) is not None:
            return "roles", problem
        if journal.full:
            return "not-executed", f"the journal cannot be written: {journal.full}"
        if not journal.has_reserved_seq() or journal.reclaimable > self.limits.log_bytes:
            return "not-executed", "the journal is behind"
        return None

    def _find_conflict(self, event: ChangeRoles) -> str | None:
        """Return why a table with these roles, and the others as they are, is impossible."""
        policy, members = self.members.policy, self.members
        voters = [r for r in members if event.roles.get(r.name, r.role) == Role.VOTER]
        new = [replica for replica in voters if replica.role is not Role.VOTER]
        active = sum(replica.state in CAUGHT_UP for replica in voters)
        for replica in new:
            if replica.state not in CAUGHT_UP:
                return f"{replica.name} cannot vote: it has not caught up, it is {replica.state}"
        now = sum(replica.role is Role.VOTER for replica in members)
        allowed = {event.voters} if event.voters else {now, policy.of}
        if len(voters) not in allowed or not policy.need <= len(voters) <= policy.of:
            return f"vote {policy} needs exactly {policy.of} voters, not {len(voters)}"
        least = max(event.active, policy.need)
        if (new or event.active) and active < least:
            wants = "" if least == policy.need else f", and {least} are wanted"
            return (
                f"vote {policy} needs {policy.need} active voters{wants}, only {active} would be "
                "left"
            )
        return None
