"""When a guest is to be repaired, and how often at most.  Pure: time is handed in, in seconds.

A repair puts a guest back to its clean snapshot and lets the voter bring it up from checkpoint
and log.  What decides is what is seen now, not what happened: a missed event costs time, never a
repair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

__all__ = [
    "FALLS",
    "FALL_WINDOW",
    "GRACE",
    "LIMIT",
    "STEADY",
    "YOUNG",
    "FlapCounter",
    "RepairPolicy",
    "ReplicaView",
    "choose",
    "diagnose",
    "restless",
]

GRACE = 1.5
"""Seconds that a running guest gets to come back by itself after its link was lost: the agent may
have started the service anew, or the voter itself."""
YOUNG = 5.0
"""Seconds after a voter's start in which a replica's absence says nothing: it may not have been
greeted yet, and putting it back would cost more than to wait."""
FALLS = 5
FALL_WINDOW = 30.0
"""A replica that came back by itself, and fell out of the vote again, this often within so many
seconds, does not come back for good by itself: its service ends again and again, or it always lags.
Two of the falls are granted to a request that kills it twice and is then voided."""
STEADY = 10.0
"""Seconds of voting after which earlier repairs count no more: longer than a hang takes to be found
(``voter.core.Limits.hang``), or a guest that hangs each time would never be given up."""
LIMIT = 6
"""Repairs in a row, with no steady time between, before a guest is given up."""
FIRST_DELAY = 1.0
LAST_DELAY = 30.0


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of one guest.

    ``vm``: ready, paused, dead, ... (deploy.machine.states); ``replica``: the voter's word for
    it, or None
    while the voter cannot be asked; ``since``: seconds that it has been so; ``fault``: one is
    injected and holds; ``falls``: how often it fell out of the vote of late, and came back by
    itself; ``voter_age``: seconds since the voter was started.
    """

    vm: str
    replica: str | None
    reason: str
    since: float
    fault: bool = False
    falls: int = 0
    voter_age: float = float("inf")


def restless(sight: ReplicaView) -> bool:
    """Whether it falls out of the vote and comes back by itself, again and again."""
    return sight.falls >= FALLS


def diagnose(sight: ReplicaView) -> str | None:
    """Return why a guest needs to be put back, in words, or None if it does not."""
    if sight.fault or sight.vm in ("booting", "restoring"):
        return None
    if sight.vm != "ready":
        return f"the guest is {sight.vm}"
    if sight.replica == "expelled":
        return f"the voter expelled it: {sight.reason}"
    if restless(sight):
        return (
            f"it fell out of the vote {sight.falls} times within {FALL_WINDOW:g} s: {sight.reason}"
        )
    if sight.replica == "absent" and sight.since >= GRACE and sight.voter_age >= YOUNG:
        return f"the voter has lost it: {sight.reason}"
    return None


class FlapCounter:
    """How often one guest's replica fell out of the vote of late."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=FALLS)

    def note(self, now: float) -> None:
        """It fell out of the vote."""
        self._times.append(now)

    def count(self, now: float) -> int:
        """Return how often within FALL_WINDOW seconds, FALLS at most."""
        return sum(now - at < FALL_WINDOW for at in self._times)

    def forget(self) -> None:
        """It was put back: what was before counts no more."""
        self._times.clear()


class RepairPolicy:
    """How often one guest is repaired: at once, then after 1, 2, 4 ... 30 s, LIMIT times in all.

    A guest that has voted for STEADY seconds starts afresh.
    """

    def __init__(self) -> None:
        self.repairs = 0
        """All repairs of this guest that were begun."""
        self.in_row = 0
        self.told = False
        """Whether it was said that the guest is given up."""
        self._next = float("-inf")
        self._active_since: float | None = None

    @property
    def given_up(self) -> bool:
        """Whether there were too many repairs in a row: an operator must look (`heal` starts
        afresh).
        """
        return self.in_row >= LIMIT

    def wait(self, now: float) -> float:
        """Return how many seconds to wait before the next repair (infinite: given up)."""
        return float("inf") if self.given_up else max(0.0, self._next - now)

    def begin(self, now: float) -> None:
        """A repair begins."""
        self.repairs += 1
        self._next = now + min(FIRST_DELAY * 2**self.in_row, LAST_DELAY)
        self.in_row += 1
        self._active_since = None

    def see(self, active: bool, now: float) -> None:
        """Take note of whether the replica votes."""
        if not active:
            self._active_since = None
        elif self._active_since is None:
            self._active_since = now
        elif now - self._active_since >= STEADY:
            self.in_row = 0
            self.told = False

    def forgive(self) -> None:
        """Start afresh, because an operator says so."""
        self.in_row = 0
        self.told = False
        self._next = float("-inf")


def choose(
    wanted: Mapping[str, float], under_way: Iterable[str], *, active: int, need: int
) -> list[str]:
    """Return the guests whose repair is to begin now, the longest ill first.

    ``wanted``: seconds since each of them fell ill; ``under_way``: those being put back or catching
    up.  While the node can vote (``active`` >= ``need``) one comes back at a time, so that the
    others are not slowed down, and one more fault finds no two of them away.  Once it cannot vote
    there is nothing left to protect: all are put back, as the first may be the one that fails.
    """
    order = sorted(wanted, key=lambda name: (-wanted[name], name))
    if active < need:
        return order
    return [] if set(under_way) else order[:1]
