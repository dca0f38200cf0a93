"""For how long a guest that comes back leaves the processors to those that vote.  Pure.

Taking a large state and catching up with the log are work for seconds, and where processors are
short the clients would wait for it.  Behind all others that work takes what is left; so there are
bounds, or where nothing is left it would never come back.
"""

from __future__ import annotations

from deploy.supervisor.repair_policy import ReplicaView
from voter.core.limits import Limits

__all__ = ["YIELD_LIMIT", "CpuYield", "yield_limit"]

YIELD_LIMIT = 30.0
"""Seconds that a guest yields at most between two times of voting."""

_LIMITS = Limits()


def yield_limit(state: int) -> float:
    """Return how many seconds a guest may yield while it takes a state of so many bytes.

    Half of the time after which the voter takes it for hung at most: in the other half it has its
    full share, as it has if it must begin anew.
    """
    return min(YIELD_LIMIT, (_LIMITS.hang + state / _LIMITS.restore_rate) / 2)


class CpuYield:
    """Whether one guest yields.  Times in seconds of the steady clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._over = False  # until it has voted

    @property
    def on(self) -> bool:
        """Whether it is to yield, by what was seen last."""
        return self._since is not None

    def see(
        self, sight: ReplicaView, now: float, *, served: bool, throttled: bool, limit: float
    ) -> bool:
        """Tell whether it is to yield, by what is seen of it, for ``limit`` seconds in all.

        ``served``: others vote; where they do not, its return is what clients wait for.
        ``throttled``: writes wait until a learner has caught up, so it must not be slow.
        """
        since = now if self._since is None else self._since
        coming = sight.vm == "ready" and sight.replica in ("restoring", "learner")
        free = served and not throttled and not self._over and now - since < limit
        yields = coming and free
        ended = self._since is not None and not yields  # well, or in vain, or its time is over
        self._over = sight.replica != "active" and (self._over or ended)
        self._since = since if yields else None
        return yields
