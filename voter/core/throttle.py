"""Throttle: holds new writes back while a learner does not catch up.

A learner that replays the log no faster than it grows would never be admitted.  Once its gap has
hardly shrunk for a second, new writes are ordered only as fast as the learner takes old ones: one
for two, so the gap closes.  A learner that closes it in half a minute throttles nobody.

No learner can stop the node.  ``throttle_floor`` writes a second always pass, and one learner
causes throttling for ``throttle_time`` seconds at most.  Reads always pass.

A replica that is no voter by role (roles.py) is not needed for any reply, and its virtual machine
may be slow on purpose.  For those KEEP of the writes of the last second pass in any case.

Writes that are held back have no sequence number yet.  They are ordered first come, first
served; if that is impossible then, they are refused as not executed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from voter.core.events import Submit
from voter.core.limits import Limits

__all__ = ["Throttle"]

SHARE = 0.5
"""New writes that may pass for each old one that the learner takes."""
KEEP = 0.8
"""Part of the usual rate of writes that passes whatever a replica does that is no voter."""
INTERVAL, SHRINK = 1.0, 1 / 30
"""Seconds within which a gap must have shrunk by this part."""


@dataclass(slots=True)
class _Gap:
    """How many writes a learner is behind, and for how many seconds it caused throttling."""

    size: int
    judged_size: int  # when it was judged last
    judged_at: float
    slow: bool = False
    throttled_for: float = 0.0


class Throttle:
    """Whether writes are held back, how many may pass, and those that wait."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._gaps: dict[int, _Gap] = {}
        self._credit = 0.0  # writes that may pass
        self._floor = limits.throttle_floor  # writes a second that always pass now
        self._now = 0.0  # engine time of the last update
        self._writes = 0  # ordered up to then
        self._rate = 0.0  # writes a second while nothing is held back, averaged over INTERVAL
        self.on = False
        self.held: dict[int, Submit] = {}  # by the client's ticket
        self.held_bytes = 0

    def update(
        self, now: float, gaps: Mapping[int, int], writes: int = 0, voters: Collection[int] = ()
    ) -> None:
        """Decide again.  ``gaps``: for each learner the writes it has not answered yet.

        ``writes``: ordered so far.  ``voters``: those learners that are voters by role.
        """
        limits, passed = self._limits, max(0.0, now - self._now)
        if passed and not self.on:
            weight = min(1.0, passed / INTERVAL)
            self._rate += weight * ((writes - self._writes) / passed - self._rate)
        self._now, self._writes = now, writes
        for index in self._gaps.keys() - gaps.keys():
            del self._gaps[index]
        for index, size in gaps.items():
            gap = self._gaps.setdefault(index, _Gap(size, size, now))
            gap.size = size
            if now - gap.judged_at >= INTERVAL:
                gap.slow = size > (1 - SHRINK) * gap.judged_size
                gap.judged_size, gap.judged_at = size, now
            if self.on and gap.throttled_for < limits.throttle_time:
                gap.throttled_for += passed
        slow = [index for index, gap in self._gaps.items() if self._throttles(gap)]
        was, self.on = self.on, bool(slow)
        self._floor = limits.throttle_floor
        if not any(index in voters for index in slow):
            self._floor = max(self._floor, KEEP * self._rate)
        if self.on:
            self._add_credit(passed * self._floor if was else 0.0)
        else:
            self._credit = 0.0

    def _throttles(self, gap: _Gap) -> bool:
        """Whether a learner is slow.  Once it is, it stays so until it has nearly caught up."""
        limits = self._limits
        if gap.throttled_for >= limits.throttle_time or gap.size <= limits.throttle_gap:
            return False
        return gap.slow or gap.throttled_for > 0

    def _add_credit(self, writes: float) -> None:
        self._credit = min(self._credit + writes, max(1.0, self._floor))

    def earn(self, index: int) -> None:
        """Let new writes pass for an old one that a learner has taken."""
        if self.on and index in self._gaps:
            self._add_credit(SHARE)

    def spend(self) -> bool:
        """Return whether one more write may pass now, and count it."""
        if not self.on:
            return True
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def hold(self, event: Submit) -> None:
        """Hold a write back."""
        self.held[event.ticket] = event
        self.held_bytes += len(event.request)

    def cancel(self, ticket: int) -> None:
        """Forget a write that is held back, if it is."""
        if (event := self.held.pop(ticket, None)) is not None:
            self.held_bytes -= len(event.request)

    def take(self) -> Submit | None:
        """Return the next write that may pass now, if any."""
        if not self.held or not self.spend():
            return None
        event = next(iter(self.held.values()))
        self.cancel(event.ticket)
        return event
