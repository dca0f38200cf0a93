"""Followers: live replicas that get the orders a little later than the others, in batches.

If the guests outnumber the processors, a reply that nobody waits for delays the next one.  So an
order goes to m electors at once: they are *ahead*, and settle the vote alone if all goes well.  The
other live replicas *follow*.  The link of a follower holds its orders, and everything that it is
sent stays in order.  So to the vote, a follower is a replica behind a slower link.

A replica that is no voter by role (roles.py) always follows, also where processors are plenty: it
must not slow the voters down.

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
from math import inf

from voter.core.engine_time import EngineTime
from voter.core.events import Effect, Push
from voter.core.limits import Limits
from voter.core.replica import Replica, Role

__all__ = ["HOLD_MOST", "HOLD_TIME", "Followers"]

HOLD_MOST = 64
"""Requests that are held at most: as many as a batch may have."""
HOLD_BYTES = 256 << 10
"""Bytes of requests that are held at most."""
HOLD_TIME = 0.02
"""Seconds that an order is held at most: the longest delay if a replica ahead is lost silently."""
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
    # What is held: requests, bytes, first request, engine time of the first.
    _held: int = 0
    _bytes: int = 0
    _first: float = inf
    _held_since: float = 0.0
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
            self.push()
            roles = [(index, self.replicas[index].role) for index in live]
            self.later = tuple(index for index, role in roles if role is not Role.VOTER)

    def _rank(self, index: int) -> tuple[bool, bool, int]:
        return self._is_late(index), index not in self.ahead, index

    def _choose(self, order: list[int]) -> None:
        self.push()
        self.ahead = tuple(order[: self.need])
        self.later = tuple(index for index in self._live if index not in self.ahead)
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
        if not self.later or not self.enabled:
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
        caught_up = not replica.outstanding or replica.outstanding[0][0] >= self._first
        answers = self.time.now - replica.heard < HOLD_TIME
        return index in self.ahead or caught_up or (overdue and answers)

    def hold(self, seq: int, requests: int, size: int) -> None:
        """Note that an order was sent to those ahead and is held for the others."""
        if not self.later:
            return
        now = self.time.now
        self._since = self._since or seq
        self._orders += requests
        if not self._waiting:
            self._waiting, self._progress = True, now
        if not self._held:
            self._first, self._held_since = seq, now
        self._held += requests
        self._bytes += size
        most = min(HOLD_MOST, self.limits.lag // 2)
        if self._held >= most or self._bytes >= min(HOLD_BYTES, self.limits.lag_bytes // 4):
            self.push()

    def push(self) -> None:
        """Send the followers what is held for them."""
        if not self._held:
            return
        first, now = self._first, self.time.now
        self._held = self._bytes = 0
        self._first = inf
        followers = [self.replicas[index] for index in self.later if self.replicas[index].live]
        for replica in followers:
            if replica.outstanding and replica.outstanding[0][0] >= first:
                replica.heard_at(now)
        self.effects.append(Push(tuple(replica.index for replica in followers)))

    def under_way(self, replica: Replica) -> list[int]:
        """Return what a replica was sent and has not answered: not what is held for it."""
        first = self._first if replica.index in self.later else inf
        return [seq for seq, _ in replica.outstanding if seq < first]

    # ------------------------------------------------------------------ votes

    @property
    def due(self) -> float:
        """Engine time at which ``check`` must be called; infinite while nothing is held."""
        if not self._held:
            return inf
        patience = self._patience if self._waiting else IDLE
        return min(self._held_since + HOLD_TIME, self._progress + patience)

    @property
    def _patience(self) -> float:
        return min(max(LATE * self._usual, LATE_LEAST), HOLD_TIME)

    def check(self) -> None:
        """Push what has been held for long enough; let a replica that is late follow."""
        now = self.time.now
        if now < self.due:
            return
        self.push()
        if self.enabled and self._waiting and now >= self._progress + self._patience:
            self._progress = now
            slow = [self.replicas[index] for index in self.ahead if self.replicas[index].requests]
            if slow:
                slowest = min(slow, key=lambda replica: replica.outstanding[0][0])
                self._demote(slowest.index, slowest.outstanding[0][0])

    def compare(self, ballots: Mapping[int, bytes]) -> None:
        """Push what is held if the ballots of an open vote differ: more are needed."""
        if self._held and len(ballots) > 1 and len(set(ballots.values())) > 1:
            self.push()

    def settled(self, seq: int, ballots: Mapping[int, bytes], *, waiting: bool) -> None:
        """Note a vote that is won.  ``waiting``: other requests wait for theirs."""
        if not self.later:
            return
        took = self.time.now - self._progress
        self._usual *= STEP if took > self._usual else 1 / STEP
        self._usual = min(max(self._usual, LATE_LEAST / LATE), HOLD_TIME / LATE)
        self._progress, self._waiting = self.time.now, waiting
        if self.enabled and took >= LATE_LEAST and 0 < self._since <= seq:
            for index in self.ahead:
                if index not in ballots:
                    self._demote(index, seq)
                    return

    def _demote(self, index: int, seq: int) -> None:
        """Let a replica follow until it has answered ``seq``."""
        self._late[index] = seq
        self.choose(self._active, self._live)
