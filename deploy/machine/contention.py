"""Time limits that hold on a busy host: seconds in which a process could have run.

A process that waits for a processor is slow because of other programs, and is no nearer to being
hung.  The kernel counts this wait for each thread (``/proc/PID/task/TID/schedstat``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["SAMPLE_INTERVAL", "UncontendedClock", "waited_for_processor", "within"]

T = TypeVar("T")

SAMPLE_INTERVAL = 1.0
"""Seconds between two looks at a process: nothing reports that it did *not* advance."""

_LONGEST_STEP = 3 * SAMPLE_INTERVAL
"""The most that one look may add, in seconds: a host that was suspended accuses nobody."""


def waited_for_processor(pid: int) -> dict[int, float]:
    """Return the seconds that each living thread of a process has waited for a processor, by tid.

    Empty if the process has ended, or on a kernel that does not count them.
    """
    waited = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            waited[int(path.parent.name)] = int(path.read_text(encoding="ascii").split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            continue  # the thread has ended, or the kernel counts nothing
    return waited


class UncontendedClock:
    """Seconds since it was made, less those in which a process waited for a processor.

    A process waits as long as the thread that waits most: the waits of several threads overlap, and
    their sum would stop the clock of a process that spins on a busy host.  The clock advances when
    `step` is called, at least every few seconds, by 3 s at most.
    """

    def __init__(
        self,
        pid: int,
        *,
        now: Callable[[], float] = time.monotonic,
        waited: Callable[[int], dict[int, float]] = waited_for_processor,
    ) -> None:
        self.seconds = 0.0
        self._pid, self._now, self._waited = pid, now, waited
        self._last = now(), waited(pid)

    def step(self) -> float:
        """Advance; return the seconds added."""
        (then, before), self._last = self._last, (self._now(), self._waited(self._pid))
        now, waited = self._last
        wait = max((seconds - before.get(tid, 0.0) for tid, seconds in waited.items()), default=0.0)
        added = min(max(now - then - wait, 0.0), _LONGEST_STEP)
        self.seconds += added
        return added


async def within(limit: float, pid: int, work: Awaitable[T]) -> T:
    """Await ``work``, which process ``pid`` does, for ``limit`` seconds of its uncontended time.

    Process 0 is none.  Raises TimeoutError, the work cancelled.
    """
    clock = UncontendedClock(pid)
    task = asyncio.ensure_future(work)
    try:
        while clock.seconds < limit:
            pause = min(SAMPLE_INTERVAL, limit - clock.seconds)
            if (await asyncio.wait([task], timeout=pause))[0]:
                return task.result()
            clock.step()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
