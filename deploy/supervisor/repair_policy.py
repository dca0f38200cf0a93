"""When a guest is repaired, and how often at most.  Pure: the time is an argument, in seconds.

A repair restores a guest's clean snapshot; the voter then transfers checkpoint and log to it.  The
decision depends on the state now, not on events: a missed event delays a repair but prevents none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

__all__ = [
    "FLAP_LIMIT",
    "FLAP_WINDOW",
    "GRACE",
    "LIMIT",
    "STABLE",
    "VOTER_WARMUP",
    "FlapCounter",
    "RepairPolicy",
    "ReplicaView",
    "diagnose",
    "is_flapping",
    "select_repairs",
]

GRACE = 1.5
"""Seconds in which a running guest whose link was lost may return without a repair: the agent may
have restarted the service, or the voter itself may have restarted.  Also for a paused guest:
libvirt pauses it while somebody takes a snapshot."""
VOTER_WARMUP = 5.0
"""Seconds after a voter's start in which an absent replica is not repaired: the voter may not have
connected to it yet, and a repair would cost more than waiting."""
FLAP_LIMIT = 5
FLAP_WINDOW = 30.0
"""A replica that leaves the vote FLAP_LIMIT times within FLAP_WINDOW seconds is repaired, although
it returns each time: its service ends repeatedly, or it always lags.  A request that kills it twice
and is then voided accounts for two of the flaps."""
STABLE = 10.0
"""Seconds of voting after which earlier repairs no longer count.  Longer than the voter needs to
detect a hang (``limits.Limits.hang``), so that repairs of a guest that always hangs end."""
LIMIT = 6
"""Consecutive repairs, without STABLE seconds of voting in between, before repair is abandoned."""
FIRST_DELAY = 1.0
LAST_DELAY = 30.0


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one guest.

    ``vm``: the VM's state (GuestState); ``replica``: the voter's state of it, None while the voter
    does not answer; ``since``: seconds without a change of these two; ``fault``: an injected fault
    is active; ``flaps``: how often it left the vote recently and returned; ``voter_age``: seconds
    since the voter's start.
    """

    vm: str
    replica: str | None
    reason: str
    since: float
    fault: bool = False
    flaps: int = 0
    voter_age: float = float("inf")


def is_flapping(view: ReplicaView) -> bool:
    """Return whether it leaves the vote and returns again and again."""
    return view.flaps >= FLAP_LIMIT


def diagnose(view: ReplicaView) -> str | None:
    """Return why a guest needs a repair, or None if it needs none."""
    if view.fault or view.vm in ("booting", "restoring"):
        return None
    if view.vm == "paused" and view.since < GRACE:
        return None
    if view.vm != "ready":
        return f"the guest is {view.vm}"
    if view.replica == "expelled":
        return f"the voter expelled it: {view.reason}"
    if is_flapping(view):
        return f"it left the vote {view.flaps} times within {FLAP_WINDOW:g} s: {view.reason}"
    if view.replica == "absent" and view.since >= GRACE and view.voter_age >= VOTER_WARMUP:
        return f"the voter has lost it: {view.reason}"
    return None


class FlapCounter:
    """Counts how often a replica left the vote recently."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=FLAP_LIMIT)

    def record(self, now: float) -> None:
        """Record that it left the vote."""
        self._times.append(now)

    def count(self, now: float) -> int:
        """Return how often it did within FLAP_WINDOW seconds, FLAP_LIMIT at most."""
        return sum(now - at < FLAP_WINDOW for at in self._times)

    def reset(self) -> None:
        """Count from zero, because the guest was restored."""
        self._times.clear()


class RepairPolicy:
    """How often one guest is repaired: at once, then after 1, 2, 4 ... 30 s, LIMIT times in all.

    After STABLE seconds of voting the count starts from zero.
    """

    def __init__(self) -> None:
        self.repairs = 0
        """All repairs of this guest that were started."""
        self.consecutive = 0
        self.reported = False
        """Whether it was reported that repair was abandoned."""
        self._next = float("-inf")
        self._active_since: float | None = None

    @property
    def abandoned(self) -> bool:
        """Whether LIMIT is reached: only an operator's `heal` starts another repair."""
        return self.consecutive >= LIMIT

    def delay(self, now: float) -> float:
        """Return the seconds until the next repair, infinite if repair is abandoned."""
        return float("inf") if self.abandoned else max(0.0, self._next - now)

    def begin(self, now: float) -> None:
        """Record the start of a repair."""
        self.repairs += 1
        self._next = now + min(FIRST_DELAY * 2**self.consecutive, LAST_DELAY)
        self.consecutive += 1
        self._active_since = None

    def withdraw(self) -> None:
        """Do not count the repair that has just failed: disk or libvirt, not the guest, failed."""
        self.consecutive = max(0, self.consecutive - 1)
        self._next = float("-inf")

    def observe(self, active: bool, now: float) -> None:
        """Record whether the replica votes."""
        if not active:
            self._active_since = None
        elif self._active_since is None:
            self._active_since = now
        elif now - self._active_since >= STABLE:
            self.consecutive = 0
            self.reported = False

    def reset(self) -> None:
        """Start from zero, because an operator requests it."""
        self.consecutive = 0
        self.reported = False
        self._next = float("-inf")


def select_repairs(
    wanted: Mapping[str, float], in_progress: Iterable[str], *, active: int, need: int
) -> list[str]:
    """Return the guests whose repair starts now.

    ``wanted``: the seconds since which each guest needs a repair; ``in_progress``: the guests being
    restored or catching up.  While a majority votes (``active`` >= ``need``), one guest is repaired
    at a time, the longest waiting first: the others stay fast, and one more fault leaves no two
    missing.  Without a majority all are repaired at once, as the first repair may be the one that
    fails.
    """
    order = sorted(wanted, key=lambda name: (-wanted[name], name))
    if active < need:
        return order
    return [] if set(in_progress) else order[:1]
