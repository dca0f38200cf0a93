"""Bounds on what the clients of a front end can do together: how long it takes, how much is held.

A deadline costs two dictionary steps and no timer of its own.  All connections in one phase have
the same limit, so they fall due in the order they entered it: a look at the first of each phase is
enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["HELD_LIMIT", "LINGER", "STEP", "UNSENT_LIMIT", "Bounds"]

HELD_LIMIT = 256 << 20
"""Bytes of requests that are not complete yet, of all clients together."""
UNSENT_LIMIT = 256 << 20
"""Bytes of replies that clients do not take, of all clients together."""
STEP = 64 << 10
"""Bytes that a client who takes its replies slowly must take within the limit each time."""
LINGER = 2.0
"""Seconds in which a client may notice that its connection ends before it is closed."""
SWEEP = 0.25
"""Seconds between looks at the deadlines (less if a limit is short)."""

K = TypeVar("K", bound=Hashable)
P = TypeVar("P", bound=Hashable)


class Bounds(Generic[K, P]):
    """Who is in which phase since when, and the bytes that all hold together.

    ``limits`` in seconds; a phase that has none never ends.  ``expire(key, phase)`` is called for
    whoever is late, once.
    """

    def __init__(self, limits: Mapping[P, float], expire: Callable[[K, P], None]) -> None:
        self.limits = limits
        self.held = 0
        """Bytes of requests that are not complete."""
        self.unsent = 0
        """Bytes of replies that are not taken."""
        self._expire = expire
        self._due: dict[P, dict[K, float]] = {phase: {} for phase in limits}
        self._now: Callable[[], float] = time.monotonic  # until ``start``: then the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Sweep from now on, by the running loop's clock."""
        if self._timer is None:
            self._now = asyncio.get_running_loop().time
            self._again()

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self.sweep()
        pause = min(SWEEP, min(self.limits.values()) / 4)
        self._timer = asyncio.get_running_loop().call_later(pause, self._again)

    def enter(self, key: K, phase: P) -> None:
        """``key`` is in ``phase`` from now on; one that is in it already stays since then."""
        due = self._due.get(phase)
        if due is not None:
            due.setdefault(key, self._now() + self.limits[phase])

    def leave(self, key: K, phase: P) -> None:
        """``key`` is no longer in ``phase``."""
        due = self._due.get(phase)
        if due is not None:
            due.pop(key, None)

    def sweep(self) -> None:
        """Expire all that are late, and take them out of their phase."""
        now = self._now()
        for phase, due in self._due.items():
            while due:
                key, until = next(iter(due.items()))
                if until > now:
                    break
                del due[key]
                self._expire(key, phase)
