"""Time limits that hold on a busy host: seconds in which a process could have run.

A process that waits for a processor is slow because of other programs, and is no nearer to being
hung.  Nor is a QEMU whose main thread runs: it starts, or carries out a command of its monitor, and
on an emulated host either takes seconds.  The kernel counts both times for each thread
(``/proc/PID/task/TID/schedstat``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

__all__ = ["SAMPLE_INTERVAL", "Scheduled", "UncontendedClock", "scheduled", "within"]

T = TypeVar("T")

SAMPLE_INTERVAL = 1.0
"""Seconds between two looks at a process: nothing reports that it did *not* advance."""

_LONGEST_STEP = 3 * SAMPLE_INTERVAL
"""The most that one look may add, in seconds: a host that was suspended accuses nobody."""

_BUSY = 10
"""Work may take this many times its limit while the process's main thread runs."""


class Scheduled(NamedTuple):
    """Seconds that a thread has run on a processor, and waited for one."""

    ran: float
    waited: float


def scheduled(pid: int) -> dict[int, Scheduled]:
    """Return the times of each living thread of a process, by tid.

    Empty if the process has ended, or on a kernel that does not count them.
    """
    times = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            ran, waited = path.read_text(encoding="ascii").split()[:2]
            times[int(path.parent.name)] = Scheduled(int(ran) / 1e9, int(waited) / 1e9)
        except (OSError, ValueError):
            continue  # the thread has ended, or the kernel counts nothing
    return times


class UncontendedClock:
    """Seconds since it was made, less those in which a process waited for a processor.

    A process waits as long as the thread that waits most: the waits of several threads overlap, and
    their sum would stop the clock of a process that spins on a busy host.  The clock advances when
    `step` is called, at least every few seconds, by 3 s at most.  `idle` counts as `seconds` does,
    but not the time in which the process's main thread runs.
    """

    def __init__(
        self,
        pid: int,
        *,
        now: Callable[[], float] = time.monotonic,
        times: Callable[[int], dict[int, Scheduled]] = scheduled,
    ) -> None:
        self.seconds = self.idle = 0.0
        self._pid, self._now, self._times = pid, now, times
        self._last = now(), times(pid)

    def step(self) -> float:
        """Advance; return the seconds added."""
        (then, before), self._last = self._last, (self._now(), self._times(self._pid))
        now, times = self._last
        since = {tid: before.get(tid, Scheduled(0.0, 0.0)) for tid in times}
        wait = max((times[tid].waited - since[tid].waited for tid in times), default=0.0)
        added = min(max(now - then - wait, 0.0), _LONGEST_STEP)
        self.seconds += added
        if self._pid in times:  # its main thread
            wait = max(wait, sum(times[self._pid]) - sum(since[self._pid]))
        self.idle += min(max(now - then - wait, 0.0), _LONGEST_STEP)
        return added


async def within(limit: float, pid: int, work: Awaitable[T]) -> T:
    """Await ``work``, which process ``pid`` does, for ``limit`` seconds in which it is idle.

    Process 0 is none.  Raises TimeoutError, the work cancelled; also once the process has been able
    to run for ten times the limit.
    """
    clock = UncontendedClock(pid)
    task = asyncio.ensure_future(work)
    try:
        while clock.idle < limit and clock.seconds < _BUSY * limit:
            pause = min(SAMPLE_INTERVAL, limit - clock.idle)
            if (await asyncio.wait([task], timeout=pause))[0]:
                return task.result()
            clock.step()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
