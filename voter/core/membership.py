"""Who counts: the electors (active replicas), who gets each record as it is ordered, and the
quorum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from voter.core.replica import Replica, State
from voter.core.vote import Policy

__all__ = ["Membership"]


class Membership:
    """The replicas of a node, and the two sets that the hot path reads.

    ``active``: indexes of the electors, in order.  ``live``: indexes of all that get each record
    as it is ordered (electors, learners that have caught up with the log, observers).
    """

    def __init__(self, policy: Policy, replicas: Sequence[Replica]) -> None:
        self.policy = policy
        self.replicas = tuple(replicas)
        self.active: tuple[int, ...] = ()
        self.live: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas)

    def __getitem__(self, index: int) -> Replica:
        return self.replicas[index]

    def refresh(self) -> None:
        """Work the two sets out again, after a replica changed its state or went live."""
        self.active = tuple(r.index for r in self.replicas if r.state is State.ACTIVE)
        self.live = tuple(r.index for r in self.replicas if r.live)

    @property
    def can_vote(self) -> bool:
        """Whether m replicas are active: else nothing may be ordered."""
        return len(self.active) >= self.policy.need

    @property
    def standing(self) -> str:
        """``ready`` (all n vote), ``degraded`` (at least m) or ``refusing``."""
        if len(self.active) >= self.policy.of:
            return "ready"
        return "degraded" if self.can_vote else "refusing"
