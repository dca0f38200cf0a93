"""Followers: live replicas that get the orders a little later than the others, in batches.

If the guests outnumber the processors, a reply that nobody waits for delays the next one.  So an
order goes to m electors at once: they are *ahead*, and settle the vote alone if all goes well.  The
other live replicas *follow*.  The link of a follower holds its orders, and everything that it is
sent stays in order.  So to the vote, a follower is a replica behind a slower link.

A replica that is no voter by role (roles.py) always follows, also where processors are plenty.  No
vote needs its reply, and its work must not delay the voters'.  So its orders are held for longer,
WATCHED_TIME, also while nothing else happens: it is woken seldom, and has more to do each time.

What is held is pushed to all followers (Push)

- after HOLD_MOST orders or HOLD_BYTES, and HOLD_TIME after the oldest of them;
- once no request has waited for its vote for IDLE, since the processors have nothing to do then;
- at once if ballots differ, if a replica ahead is late, if a replica changes its state, when a
  checkpoint marker is placed, and when the node drains.

A replica ahead is *late* if no vote is settled for LATE times as long as usual, or if a follower
answers before it.  It follows then, and does not go ahead before it has answered what it was late
with.  Which replicas are ahead also rotates, so that each of them is used; one that has not
answered all it was sent is passed over.

A follower is sent nothing while its orders are held: its patience starts when they are pushed
(``Replica.heard``), and a loss is not attributed to them (``under_way``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from math import inf
from operator import not_

from voter.core.engine_time import EngineTime
from voter.core.events import Effect, Push
from voter.core.limits import Limits
from voter.core.replica import Replica, Role

__all__ = ["HOLD_MOST", "HOLD_TIME", "WATCHED_TIME", "Followers"]

HOLD_MOST = 64
"""Requests that are held at most: as many as a batch may have."""
HOLD_BYTES = 256 << 10
"""Bytes of requests that are held at most."""
HOLD_TIME = 0.02
"""Seconds that an order is held at most: the longest delay if a replica ahead is lost silently."""
WATCHED_TIME = 0.1
"""Seconds that an order is held at most for a replica that is no voter by role."""
IDLE = 0.0015
"""Seconds without an open vote after which nothing is held.  A client that sends one request after
the other takes less than 1 ms from a reply to its next request.
"""
LATE, LATE_LEAST = 4.0, 0.004
"""A replica ahead is late after so many times the usual time of a vote (running median), and not
before so many seconds, nor after HOLD_TIME.  Four times the median is rare on a busy host, and a
false alarm costs one push.
"""
ROTATE_ORDERS, ROTATE_TIME = 1000, 1.0
"""Requests, or seconds, after which other replicas go ahead."""
STEP = 1.1
"""Factor by which the estimate of the usual time moves with each vote."""


@dataclass(slots=True)
class _Hold:
    """What is held for some followers: requests, bytes, first request, engine time of the first."""

    replicas: tuple[int, ...] = ()
    requests: int = 0
    bytes: int = 0
    first: float = inf
    since: float = 0.0


@dataclass
class Followers:
    """Which live replicas follow, and what is held for them.

    ``need``: how many electors are ahead.  ``enabled``: whether voters follow, too.
    """

    need: int
    replicas: tuple[Replica, ...]
    limits: Limits
    time: EngineTime
    effects: list[Effect]
    enabled: bool = False
    ahead: tuple[int, ...] = ()
    later: tuple[int, ...] = ()  # the replicas that follow
    _active: tuple[int, ...] = ()
    _live: tuple[int, ...] = ()
    _since: int = 0  # first request that those ahead now were sent first
    _late: dict[int, int] = field(default_factory=dict)  # the request each was late with
    _voters: _Hold = field(default_factory=_Hold)
    _watched: _Hold = field(default_factory=_Hold)  # for those that are no voters by role
    # Progress of the votes:
    _waiting: bool = False  # a request waits for its vote
    _progress: float = 0.0  # engine time since which one waits, of the last vote otherwise
    _usual: float = LATE_LEAST / LATE
    # Rotation:
    _orders: int = 0
    _rotated: float = 0.0

    def choose(self, active: tuple[int, ...], live: tuple[int, ...]) -> None:
        """Push what is held, and choose again who is ahead: the set of live replicas changed."""
        self._active, self._live = active, live
        if self.enabled:
            self._choose(sorted(active, key=self._rank))
        else:
            self._choose([index for index in live if self.replicas[index].role is Role.VOTER])

    def _rank(self, index: int) -> tuple[bool, bool, int]:
        return self._is_late(index), index not in self.ahead, index

    def _choose(self, order: list[int]) -> None:
        self.push()
        self.ahead = tuple(order[: self.need] if self.enabled else order)
        self.later = tuple(index for index in self._live if index not in self.ahead)
        votes = [self.replicas[index].role is Role.VOTER for index in self.later]
        self._voters.replicas = tuple(compress(self.later, votes))
        self._watched.replicas = tuple(compress(self.later, map(not_, votes)))
        self._since = self._orders = 0
        self._rotated = self.time.now

    def _is_late(self, index: int) -> bool:
        """Whether a replica has not yet answered the request that it was late with."""
        late, outstanding = self._late.get(index), self.replicas[index].outstanding
        if late is not None and not (outstanding and outstanding[0][0] <= late):
            del self._late[index]
            return False
        return late is not None

    # ----------------------------------------------------------------- orders

    def rotate_if_due(self) -> None:
        """Let other replicas go ahead, if that is due, before a new order is sent."""
        if not self._voters.replicas:
            return
        lasted = self.time.now - self._rotated
        if self._orders < ROTATE_ORDERS and lasted < ROTATE_TIME:
            return
        first = self.ahead[0] if self.ahead else 0
        ring = sorted(self._active, key=lambda index: (index <= first, index))
        order = [index for index in ring if self._may_lead(index, lasted > 3 * ROTATE_TIME)]
        if len(order) >= self.need and set(order[: self.need]) != set(self.ahead):
            self._choose(order)

    def _may_lead(self, index: int, overdue: bool) -> bool:
        """Whether a replica may be ahead now.

        One that follows must have answered all it was sent; if rotation is overdue, it is enough
        that it answers.
        """
        if self._is_late(index):
            return False
        replica = self.replicas[index]
        caught_up = not replica.outstanding or replica.outstanding[0][0] >= self._voters.first
        answers = self.time.now - replica.heard < HOLD_TIME
        return index in self.ahead or caught_up or (overdue and answers)

    def hold(self, seq: int, requests: int, size: int) -> None:
        """Note that an order was sent to those ahead and is held for the others."""
        if not self.later:
            return
        now, limits = self.time.now, self.limits
        self._since = self._since or seq
        self._orders += requests
        if not self._waiting:
            self._waiting, self._progress = True, now
        for hold in (self._voters, self._watched):
            if not hold.replicas:
                continue
            if not hold.requests:
                hold.first, hold.since = seq, now
            hold.requests += requests
            hold.bytes += size
            most = min(HOLD_MOST, limits.lag // 2)
            if hold.requests >= most or hold.bytes >= min(HOLD_BYTES, limits.lag_bytes // 4):
                self._push(hold)

    def push(self) -> None:
        """Send the followers what is held for them."""
        self._push(self._voters)
        self._push(self._watched)

    def _push(self, hold: _Hold) -> None:
        if not hold.requests:
            return
        first, now = hold.first, self.time.now
        hold.requests = hold.bytes = 0
        hold.first = inf
        followers = [self.replicas[index] for index in hold.replicas if self.replicas[index].live]
        for replica in followers:
            if replica.outstanding and replica.outstanding[0][0] >= first:
                replica.heard_at(now)
        self.effects.append(Push(tuple(replica.index for replica in followers)))

    def under_way(self, replica: Replica) -> list[int]:
        """Return what a replica was sent and has not answered: not what is held for it."""
        holds = (self._voters, self._watched)
        first = min((hold.first for hold in holds if replica.index in hold.replicas), default=inf)
        return [seq for seq, _ in replica.outstanding if seq < first]

    # ------------------------------------------------------------------ votes

    @property
    def due(self) -> float:
        """Engine time at which ``check`` must be called; infinite while nothing is held."""
        watched = self._watched.since + WATCHED_TIME if self._watched.requests else inf
        return min(self._voters_due, watched)

    @property
    def _voters_due(self) -> float:
        if not self._voters.requests:
            return inf
        patience = self._patience if self._waiting else IDLE
        return min(self._voters.since + HOLD_TIME, self._progress + patience)

    @property
    def _patience(self) -> float:
        return min(max(LATE * self._usual, LATE_LEAST), HOLD_TIME)

    def check(self) -> None:
        """Push what has been held for long enough; let a replica that is late follow."""
        now = self.time.now
        if now >= self._watched.since + WATCHED_TIME:
            self._push(self._watched)
        if now < self._voters_due:
            return
        self._push(self._voters)
        if self._waiting and now >= self._progress + self._patience:
            self._progress = now
            slow = [self.replicas[index] for index in self.ahead if self.replicas[index].requests]
            if slow:
                slowest = min(slow, key=lambda replica: replica.outstanding[0][0])
                self._demote(slowest.index, slowest.outstanding[0][0])

    def compare(self, ballots: Mapping[int, bytes]) -> None:
        """Push what is held if the ballots of an open vote differ: more are needed."""
        if self._voters.requests and len(ballots) > 1 and len(set(ballots.values())) > 1:
            self._push(self._voters)

    def settled(self, seq: int, ballots: Mapping[int, bytes], *, waiting: bool) -> None:
        """Note a vote that is won.  ``waiting``: other requests wait for theirs."""
        if not self._voters.replicas:
            return
        took = self.time.now - self._progress
        self._usual *= STEP if took > self._usual else 1 / STEP
        self._usual = min(max(self._usual, LATE_LEAST / LATE), HOLD_TIME / LATE)
        self._progress, self._waiting = self.time.now, waiting
        if took >= LATE_LEAST and 0 < self._since <= seq:
            for index in self.ahead:
                if index not in ballots:
                    self._demote(index, seq)
                    return

    def _demote(self, index: int, seq: int) -> None:
        """Let a replica follow until it has answered ``seq``."""
        self._late[index] = seq
        self.choose(self._active, self._live)
