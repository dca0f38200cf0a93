"""How long a returning guest has the lowest CPU priority.  Pure.

Starting QEMU, receiving a large state and catching up take seconds of CPU time.  Where CPUs are
scarce, clients would wait for that.  With the lowest priority the guest only gets idle time, and
might never catch up on a busy host.  So there are limits.
"""

from __future__ import annotations

from typing import Literal

from deploy.supervisor.repair_policy import ReplicaView
from voter.core.limits import Limits

__all__ = ["RESTORE_LIMIT", "SPARE_LIMIT", "YIELD_LIMIT", "CpuYield", "yield_limit"]

RESTORE_LIMIT = 10.0
"""Seconds of yielding at most until the voter has reached a guest that is restored.  One second is
usual on a busy host.  Libvirt waits 30 s for a new QEMU, so there is time at the normal priority.
"""
SPARE_LIMIT = 3.0
"""The same for a guest that starts in a free slot, to replace one that works.  With 10 s, a clone
took longer than a boot on a host with other programs: 12 s and 10 s were measured."""
YIELD_LIMIT = 30.0
"""Seconds of yielding at most while it catches up.  The voter sees that it makes progress."""

Phase = Literal["restore", "join"]

_LIMITS = Limits()


def yield_limit(state: int) -> float:
    """Return how many seconds a guest may yield while it receives ``state`` bytes.

    Half of the time after which the voter considers it hung, however much it has received: in the
    other half it has its normal priority, also for a second attempt.
    """
    return (_LIMITS.hang + state / _LIMITS.restore_rate) / 2


class CpuYield:
    """Whether one guest yields.  Times are seconds of the steady clock."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._since = 0.0  # when the phase began
        self._spent = False  # it has yielded, and has not voted since
        self.on = False
        """Whether it yields, as of the last update."""

    def update(
        self,
        view: ReplicaView,
        now: float,
        *,
        served: bool,
        throttled: bool,
        limit: float,
        votes: bool = True,
    ) -> bool:
        """Return whether it yields now.

        It may yield for RESTORE_LIMIT until the voter has reached it, ``limit`` seconds from then
        on while it receives the state, and YIELD_LIMIT more while it catches up.  ``votes``: its
        role is to vote; otherwise the first limit is SPARE_LIMIT.
        ``served``: a majority votes; otherwise clients wait for this guest.  ``throttled``: writes
        wait until a learner has caught up, so it must not be slow.
        """
        phase = self._find_phase(view)
        if phase != self._phase:
            self._phase, self._since = phase, now
        most = limit
        if phase == "restore":
            most = RESTORE_LIMIT if votes else SPARE_LIMIT
        if phase == "join" and view.replica == "learner":
            most += YIELD_LIMIT
        allowed = served and not throttled and not self._spent and now - self._since < most
        yields = phase is not None and allowed
        ended = self.on and not yields
        self._spent = view.replica != "active" and (self._spent or ended)
        self.on = yields
        return yields

    def _find_phase(self, view: ReplicaView) -> Phase | None:
        if view.vm == "restoring":
            return "restore"
        if view.vm != "ready":
            return None
        if view.replica in ("restoring", "learner"):
            return "join"
        waits = self._phase == "restore" and view.replica in ("absent", "expelled", None)
        return "restore" if waits else None  # the voter has yet to reach it
