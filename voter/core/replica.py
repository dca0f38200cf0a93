"""One replica as the engine knows it, and the state machine that it goes through.

A replica has a role and a state.  The role says what it is for: it is an ordered record, and
changes only when the supervisor asks for it (roles.py).  The state says how far it has come with
that: it follows from what happens on its link.

``TRANSITIONS`` holds every legal change of state.  The engine names a cause; a cause that is not
legal in the present state is a bug, and raises KeyError.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["CAUGHT_UP", "TRANSITIONS", "Cause", "Replica", "Role", "State"]


class Role(StrEnum):
    """What a replica is for."""

    VOTER = "voter"  # its ballots count once it is active
    LEARNER = "learner"  # its replies are compared and not counted; a dissent expels it
    OBSERVER = "observer"  # the same, but a dissent is only reported
    RETIRED = "retired"  # the slot is free: nothing is connected


class State(StrEnum):
    """The state of a replica."""

    ABSENT = "absent"  # no link; may come back with its state
    EXPELLED = "expelled"  # not trusted; only a fresh incarnation may come back
    RESTORING = "restoring"  # it is being sent the checkpoint
    LEARNER = "learner"  # it catches up from the log; its ballots do not count yet
    ACTIVE = "active"  # its ballots count
    STANDBY = "standby"  # a learner by role that has caught up: it may become a voter
    OBSERVER = "observer"  # an observer by role that has caught up
    RETIRED = "retired"  # no link, and none is made


CAUGHT_UP = (State.ACTIVE, State.STANDBY, State.OBSERVER)
"""The states of a replica that has answered all writes up to the end of the log once."""


class Cause(StrEnum):
    """Why a replica changes its state."""

    BEHIND = "behind"  # connected with a state that the log continues
    FOREIGN = "foreign"  # connected with another state: it gets the checkpoint
    RESTORED = "restored"
    ADMITTED = "admitted"
    STANDING_BY = "standing by"
    OBSERVING = "observing"
    GONE = "gone"  # its link was lost, or it hangs or lags: its state is still trusted
    EXPELLED = "expelled"  # it dissented or violated the protocol
    READMITTED = "readmitted"  # the operator or the supervisor allows it to come back
    RETIRED = "retired"  # it got this role
    ASSIGNED = "assigned"  # it got another role


_JOINING = (State.RESTORING, State.LEARNER)
_LINKED = (*_JOINING, *CAUGHT_UP)

TRANSITIONS: dict[tuple[State, Cause], State] = {
    (State.ABSENT, Cause.BEHIND): State.LEARNER,
    (State.ABSENT, Cause.FOREIGN): State.RESTORING,
    (State.EXPELLED, Cause.BEHIND): State.LEARNER,
    (State.EXPELLED, Cause.FOREIGN): State.RESTORING,
    (State.EXPELLED, Cause.READMITTED): State.ABSENT,
    (State.ABSENT, Cause.READMITTED): State.ABSENT,
    (State.RESTORING, Cause.RESTORED): State.LEARNER,
    (State.LEARNER, Cause.FOREIGN): State.RESTORING,  # the log it was reading is gone
    **{(state, Cause.ADMITTED): State.ACTIVE for state in (State.LEARNER, *CAUGHT_UP)},
    **{(state, Cause.STANDING_BY): State.STANDBY for state in (State.LEARNER, *CAUGHT_UP)},
    **{(state, Cause.OBSERVING): State.OBSERVER for state in (State.LEARNER, *CAUGHT_UP)},
    **{(state, Cause.RETIRED): State.RETIRED for state in (State.ABSENT, State.EXPELLED, *_LINKED)},
    (State.RETIRED, Cause.ASSIGNED): State.ABSENT,
    **{(state, Cause.GONE): State.ABSENT for state in _LINKED},
    **{(state, Cause.EXPELLED): State.EXPELLED for state in (State.ABSENT, *_LINKED)},
}


@dataclass(slots=True, eq=False)
class Replica:
    """One replica, as the engine sees it.

    ``outstanding`` holds the (seq, size in bytes) of what was sent and not yet answered, in the
    order sent; an agent answers in that order, so anything else violates the protocol.  A batch is
    one item, with the seq of its first request; ``requests`` counts the requests in all items.
    ``markers`` holds the (seq, deadline in engine time) of the markers whose digest is still to
    come; a digest takes as long as the state is large, and replies overtake it.
    """

    index: int
    name: str
    role: Role = Role.VOTER
    state: State = State.ABSENT
    reason: str = "not connected yet"
    incarnation: int = 0
    dissents: int = 0
    incarnations_ended: int = 0
    # Of a replica that is no voter, since it got its role: how many of its replies were compared
    # with the released ones, how many of those differed, and the seconds it was behind in total.
    compared: int = 0
    differed: int = 0
    behind: float = 0.0
    digest_seq: int = 0  # the last marker at which it gave its digest
    voter_from: int = 0  # an observer became a voter here: until then its replies may differ
    suspect: bool = False  # its state may be damaged: do not resume it
    journaled_suspect: bool = False  # the same, as the journal has it
    # What belongs to the link, and is reset with it:
    epoch: int = 0  # of the handshake; 0: no link
    cursor: int = 0  # seq of the last logged write sent
    live: bool = False  # gets each request as it is ordered
    join_seq: int = 0  # admitted once everything sent up to here is answered
    outstanding: deque[tuple[int, int]] = field(default_factory=deque)
    outstanding_bytes: int = 0
    requests: int = 0
    markers: deque[tuple[int, float]] = field(default_factory=deque)
    restored: bytes | None = None  # voted digest of the state that it was sent last
    heard: float = 0.0  # engine time of the last sign of progress
    pinged: bool = False

    def begin(self, role: Role) -> None:
        """Begin with this role, before any connection."""
        retired = role is Role.RETIRED
        self.role, self.state = role, State.RETIRED if retired else State.ABSENT
        self.reason = "retired" if retired else "not connected yet"

    def reset(self) -> None:
        """Drop all that belonged to the link that has just ended."""
        self.epoch = self.cursor = self.join_seq = self.outstanding_bytes = self.requests = 0
        self.outstanding.clear()
        self.markers.clear()
        self.live = self.pinged = False
        self.restored, self.heard = None, 0.0

    def heard_at(self, now: float) -> None:
        """Note a sign of progress: the patience with this replica starts again."""
        self.heard = now

    def expect(self, seq: int, size: int, now: float, requests: int = 1) -> None:
        """Note that a request or a batch is sent, which must be answered in this order."""
        outstanding = self.outstanding
        if not outstanding:
            self.heard = now
        outstanding.append((seq, size))
        self.outstanding_bytes += size
        self.requests += requests

    def answered(self, requests: int = 1) -> None:
        """Note that the oldest request or batch is answered."""
        self.outstanding_bytes -= self.outstanding.popleft()[1]
        self.requests -= requests

    def move(self, cause: Cause, reason: str) -> None:
        """Change to the state that ``cause`` leads to.  Raises KeyError if it is not legal."""
        self.state = TRANSITIONS[self.state, cause]
        self.reason = reason
