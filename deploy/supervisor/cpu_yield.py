"""How long a returning guest has the lowest CPU priority.  Pure.

Receiving a large state and catching up take seconds of CPU time.  Where CPUs are scarce, clients
would wait for that.  With the lowest priority the guest only gets idle time, and might never catch
up on a busy host.  So there are limits.
"""

from __future__ import annotations

from deploy.supervisor.repair_policy import ReplicaView
from voter.core.limits import Limits

__all__ = ["YIELD_LIMIT", "CpuYield", "yield_limit"]

YIELD_LIMIT = 30.0
"""Seconds of yielding at most before the guest votes again."""

_LIMITS = Limits()


def yield_limit(state: int) -> float:
    """Return how many seconds a guest may yield while it receives ``state`` bytes.

    Half of the time after which the voter considers it hung: in the other half it has its normal
    priority, also for a second attempt.
    """
    return min(YIELD_LIMIT, (_LIMITS.hang + state / _LIMITS.restore_rate) / 2)


class CpuYield:
    """Whether one guest yields.  Times are seconds of the steady clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._spent = False  # it has yielded, and has not voted since

    @property
    def on(self) -> bool:
        """Whether it yields, as of the last update."""
        return self._since is not None

    def update(
        self, view: ReplicaView, now: float, *, served: bool, throttled: bool, limit: float
    ) -> bool:
        """Return whether it yields now, for ``limit`` seconds in total.

        ``served``: a majority votes; otherwise clients wait for this guest.  ``throttled``: writes
        wait until a learner has caught up, so it must not be slow.
        """
        since = now if self._since is None else self._since
        returning = view.vm == "ready" and view.replica in ("restoring", "learner")
        allowed = served and not throttled and not self._spent and now - since < limit
        yields = returning and allowed
        ended = self._since is not None and not yields
        self._spent = view.replica != "active" and (self._spent or ended)
        self._since = since if yields else None
        return yields
