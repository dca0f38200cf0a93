"""The throttle: holds writes back while a learner does not catch up by itself.

A learner that replays the log no faster than it grows would learn for ever.  Once its gap has not
shrunk for a while, new writes are let into the order only as it takes old ones: half as many, so
the gap closes.  Nobody can use this to stop the node: a floor of writes a second always passes,
and a learner holds the others back for a bounded time only.
"""

from __future__ import annotations

from collections.abc import Mapping

from voter.core.limits import Limits

__all__ = ["Throttle"]

SHARE = 0.5
"""New writes for each old one that the learner takes."""
LOOK = 1.0
"""Seconds within which a gap must have shrunk by a tenth."""


class _Gap:
    """How far a learner was behind, when it was looked at last, and how long it held writes."""

    __slots__ = ("at", "held", "last", "size", "slow")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.last = size  # when it was judged last
        self.at = now
        self.slow = False
        self.held = 0.0


class Throttle:
    """Whether writes are held back, and how many may pass.  Times in seconds of engine time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._gaps: dict[int, _Gap] = {}
        self._credit = 0.0
        self._now = 0.0
        self.on = False

    def look(self, now: float, gaps: Mapping[int, int]) -> None:
        """Decide anew.  ``gaps``: for each learner the writes it has not answered yet."""
        limits, passed = self._limits, max(0.0, now - self._now)
        self._now = now
        for index in self._gaps.keys() - gaps.keys():
            del self._gaps[index]
        for index, size in gaps.items():
            gap = self._gaps.setdefault(index, _Gap(size, now))
            gap.size = size
            if now - gap.at >= LOOK:
                gap.slow = size > 0.9 * gap.last
                gap.last, gap.at = size, now
            if self.on and gap.held < limits.throttle_time:
                gap.held += passed
        was, self.on = self.on, any(self._holds(gap) for gap in self._gaps.values())
        if self.on:
            floor = passed * limits.throttle_floor if was else 0.0
            self._credit = min(self._credit + floor, max(1.0, limits.throttle_floor))
        else:
            self._credit = 0.0

    def _holds(self, gap: _Gap) -> bool:
        """A slow learner holds writes back; once it does, until it has nearly caught up."""
        limits = self._limits
        if gap.held >= limits.throttle_time or gap.size <= limits.throttle_gap:
            return False
        return gap.slow or gap.held > 0

    def earn(self, index: int) -> None:
        """A learner has taken one more of the old writes."""
        if self.on and index in self._gaps:
            self._credit = min(self._credit + SHARE, max(1.0, self._limits.throttle_floor))

    def spend(self) -> bool:
        """Whether one more write may pass now; it is then counted."""
        if not self.on:
            return True
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
