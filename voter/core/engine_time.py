"""Engine time: a steady clock for deadlines, and the agreed time that requests get.

Agreed time follows the host's wall clock, which may be set at any moment, by mistake too.

- It advances with the steady clock, and never goes back.  To approach the wall clock it gains 5 %
  at most, or runs at half its speed.
- A wall clock that stays ahead by more than STEP for ``Limits.clock_step`` seconds was set on
  purpose, or the host was suspended: agreed time steps to it.  It also steps when a voter starts,
  since nobody knows for how long there was none, and when it was stopped for that long.
- A step makes nothing older.  The deduplication table measures ages without steps (``dedup.py``),
  so a wrong clock never lets a request be executed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ClockChange", "EngineTime"]

SECOND = 1_000_000_000
STEP = SECOND
"""Nanoseconds: a smaller change of the wall clock is approached slowly and not reported."""
GAIN, LOSS = 20, 2
"""Agreed time gains at most 1/20 of the time that passes, and loses at most 1/2 of it."""


class ClockChange(NamedTuple):
    """What a tick has shown, in nanoseconds: by how much the wall clock was set (0: it was not),
    and by how much agreed time stepped (0: it did not).
    """

    wall_ns: int = 0
    step_ns: int = 0


@dataclass(slots=True)
class EngineTime:
    """``now``: seconds of a steady clock at the last tick; ``agreed_ns``: nanoseconds since 1970.

    ``patience``: seconds that a wall clock must stay ahead before agreed time steps.
    """

    patience: float
    now: float = 0.0
    agreed_ns: int = 0
    _offset_ns: int | None = None  # of the wall clock from the steady clock
    _ahead_since: float | None = None  # engine time since which the wall clock is ahead

    def tick(self, now: float, wall_ns: int) -> ClockChange:
        """Take the time of both clocks."""
        passed, self.now = max(0, int((now - self.now) * SECOND)), now
        offset = wall_ns - int(now * SECOND)
        before, self._offset_ns = self._offset_ns, offset
        if before is None:
            return self._start_at(wall_ns)
        step = passed if passed > self.patience * SECOND else 0  # the voter was stopped so long
        ahead = wall_ns - self.agreed_ns - passed
        self.agreed_ns += passed + max(-(passed // LOSS), min(ahead, passed // GAIN))
        wall_change = offset - before if abs(offset - before) > STEP else 0
        if ahead <= STEP:
            self._ahead_since = None
        elif self._ahead_since is None:
            self._ahead_since = now
        elif now - self._ahead_since >= self.patience:
            step += self._step_to(wall_ns)
        return ClockChange(wall_change, step)

    def resume(self, last_ns: int) -> ClockChange:
        """Continue after the last agreed time of an earlier voter (also before the first tick)."""
        wall_ns, self.agreed_ns = self.agreed_ns, last_ns
        return ClockChange() if self._offset_ns is None else self._start_at(wall_ns)

    def _start_at(self, wall_ns: int) -> ClockChange:
        if not self.agreed_ns:
            self.agreed_ns = wall_ns
        behind = wall_ns - self.agreed_ns
        return ClockChange(behind if behind < -STEP else 0, self._step_to(wall_ns))

    def _step_to(self, wall_ns: int) -> int:
        before, self._ahead_since = self.agreed_ns, None
        self.agreed_ns = max(wall_ns, before)
        return self.agreed_ns - before
