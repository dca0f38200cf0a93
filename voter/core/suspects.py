"""Suspects: reads that may kill or hang every replica that executes them.

A read changes nothing, so its client sends it again when its vote is lost.  A read that ends the
service would do so again and again.  Therefore:

1. A read becomes a *suspect* if its vote is lost because replicas were lost while they executed it.
   Others that were under way with it become suspects too.
2. A suspect is tried on one replica alone, one at a time, while the others serve.  If that replica
   answers, the read is cleared, and ordered as any other.
3. If that replica is lost too, a fault of its own or another request may be the cause.  So the read
   is tried once more, on another replica.  After a second loss it is *void* for VOID_TIME: all
   replicas skip it, and its client gets an error.  After that time it is tried again.

A trial needs a spare replica.  It waits for one for SPARE_WAIT, or while another trial is under
way.  Meanwhile the read is refused, not executed.  A restarted voter knows no suspects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from voter.core.engine_time import EngineTime
from voter.core.membership import Membership

__all__ = ["Suspects", "Verdict"]

VOID_TIME = 60.0
"""Seconds for which a read is void.  Trials cost two replicas at most, one after the other."""
SPARE_WAIT = 10.0
"""Seconds that a trial waits for a spare replica, as repairs take seconds."""
MOST = 1000
"""Reads that are suspect or void; above that the oldest is forgotten."""


class Verdict(Enum):
    """What to do with a read."""

    FREE = "no suspect: order it"
    VOID = "all replicas must skip it"
    TRY = "try it on one replica alone"
    WAIT = "refuse it until it can be tried"


def _name(request: bytes) -> bytes:
    """Return method and target: headers differ from client to client."""
    return request.partition(b"\r\n")[0]


@dataclass(slots=True)
class _Suspect:
    void_until: float  # engine time
    lost: int | None = None  # the replica that was lost in its first trial


@dataclass
class Suspects:
    """The reads that may be deadly, by method and target."""

    time: EngineTime
    members: Membership
    reads: dict[bytes, _Suspect] = field(default_factory=dict)
    tried: bytes | None = None  # the read that is tried now
    replica: int = -1  # ... and on which replica

    def add(self, request: bytes) -> None:
        """Make a read a suspect."""
        self.reads.setdefault(_name(request), _Suspect(self.time.now))
        if len(self.reads) > MOST:
            del self.reads[next(iter(self.reads))]

    def judge(self, request: bytes) -> Verdict:
        """Return what to do with a read."""
        suspect = self.reads.get(_name(request)) if self.reads else None
        if suspect is None:
            return Verdict.FREE
        until, now, policy = suspect.void_until, self.time.now, self.members.policy
        if now < until:
            return Verdict.VOID
        no_spare = len(self.members.active) <= policy.need < policy.of
        if self.tried is not None or (no_spare and now < until + SPARE_WAIT):
            return Verdict.WAIT
        return Verdict.TRY

    def begin_trial(self, request: bytes) -> int:
        """Return the active replica on which a read is tried now: another one than before."""
        self.tried = _name(request)
        active, lost = self.members.active, self.reads[self.tried].lost
        self.replica = next((index for index in reversed(active) if index != lost), active[-1])
        return self.replica

    def end_trial(self, *, answered: bool, killed: bool) -> bool:
        """Clear the read that was tried, or make it void; return whether it is void now."""
        name, self.tried = self.tried, None
        suspect = self.reads.get(name or b"")
        if name is None or suspect is None:
            return False
        guilty = killed and suspect.lost is not None
        if killed:
            suspect.lost = self.replica
        if answered:
            del self.reads[name]
        elif guilty:
            self.reads[name] = _Suspect(self.time.now + VOID_TIME)
        else:
            suspect.void_until = self.time.now  # it waits for a spare replica again
        return guilty
