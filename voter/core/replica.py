"""What the engine knows of one replica, and the table of states it goes through.

Everything that moves a replica from one state to another is in ``TRANSITIONS``; the engine asks
for a cause and gets the next state, or an error that is a bug.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

__all__ = ["TRANSITIONS", "Cause", "Replica", "State"]


class State(StrEnum):
    """Where a replica stands with the voter."""

    ABSENT = "absent"  # no handshake; may come back as it is
    EXPELLED = "expelled"  # not trusted; only a fresh incarnation may come back
    RESTORING = "restoring"  # the checkpoint is on its way to it
    LEARNER = "learner"  # catches up from the log; its votes do not count yet
    ACTIVE = "active"  # votes
    OBSERVER = "observer"  # caught up; its replies are compared, never counted


class Cause(StrEnum):
    """Why a replica changes its state."""

    BEHIND = "behind"  # greeted, holds a state the log continues
    FOREIGN = "foreign"  # greeted, holds something else: give it the checkpoint
    RESTORED = "restored"
    ADMITTED = "admitted"
    OBSERVING = "observing"
    GONE = "gone"  # link lost, hung, lagging: no reason for distrust
    CONVICTED = "convicted"  # dissented or broke the protocol
    PARDONED = "pardoned"  # an operator or the supervisor vouches for it


_JOINING = (State.RESTORING, State.LEARNER)
_LINKED = (*_JOINING, State.ACTIVE, State.OBSERVER)

TRANSITIONS: dict[tuple[State, Cause], State] = {
    (State.ABSENT, Cause.BEHIND): State.LEARNER,
    (State.ABSENT, Cause.FOREIGN): State.RESTORING,
    (State.EXPELLED, Cause.BEHIND): State.LEARNER,
    (State.EXPELLED, Cause.FOREIGN): State.RESTORING,
    (State.EXPELLED, Cause.PARDONED): State.ABSENT,
    (State.ABSENT, Cause.PARDONED): State.ABSENT,
    (State.RESTORING, Cause.RESTORED): State.LEARNER,
    (State.LEARNER, Cause.FOREIGN): State.RESTORING,  # the log it was reading is gone
    (State.LEARNER, Cause.ADMITTED): State.ACTIVE,
    (State.LEARNER, Cause.OBSERVING): State.OBSERVER,
    **{(state, Cause.GONE): State.ABSENT for state in _LINKED},
    **{(state, Cause.CONVICTED): State.EXPELLED for state in (State.ABSENT, *_LINKED)},
}


class Replica:
    """One replica, as the engine sees it.  Plain data; the engine does the rest.

    ``outstanding`` holds the (seq, size in bytes) of what was sent and not yet answered, in the
    order sent; an agent answers in that order, so anything else is a breach of protocol.
    ``markers`` holds the (seq, latest engine time) of the markers whose digest it has still to
    tell; that takes as long as the state is large, and replies overtake it.
    """

    __slots__ = (
        "cursor",
        "dissents",
        "epoch",
        "expulsions",
        "heard",
        "incarnation",
        "index",
        "join_seq",
        "journaled_suspect",
        "live",
        "markers",
        "name",
        "observer",
        "outstanding",
        "outstanding_bytes",
        "pinged",
        "reason",
        "restored",
        "state",
        "suspect",
    )

    def __init__(self, index: int, name: str, *, observer: bool = False) -> None:
        self.index = index
        self.name = name
        self.observer = observer
        self.state = State.ABSENT
        self.reason = "not connected yet"
        self.epoch = 0
        self.incarnation = 0
        self.dissents = 0
        self.expulsions = 0
        self.suspect = False  # was convicted: what it holds is not to be built on
        self.journaled_suspect = False  # the same, as the journal has it
        self.outstanding: deque[tuple[int, int]] = deque()
        self.markers: deque[tuple[int, float]] = deque()
        self.reset()

    def reset(self) -> None:
        """Drop all that belonged to the link that has just ended."""
        self.epoch = 0
        self.cursor = 0  # seq of the last logged write sent
        self.live = False  # gets each record as it is ordered
        self.join_seq = 0  # admitted once everything sent up to here is answered
        self.outstanding.clear()
        self.outstanding_bytes = 0
        self.markers.clear()
        self.restored: bytes | None = None  # voted digest of the state it was sent last
        self.heard = 0.0  # seconds, engine time, of the last sign of progress
        self.pinged = False

    def expect(self, seq: int, size: int, now: float) -> None:
        """Note that something is sent, which must be answered in this order."""
        outstanding = self.outstanding
        if not outstanding:
            self.heard = now
        outstanding.append((seq, size))
        self.outstanding_bytes += size

    def move(self, cause: Cause, reason: str) -> None:
        """Go to the state that ``cause`` leads to.  Raises KeyError on a move that cannot be."""
        self.state = TRANSITIONS[self.state, cause]
        self.reason = reason
