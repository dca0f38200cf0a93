"""Bounds on what the clients of a front end can do together: how long it takes, how much is held.

A deadline costs two dictionary operations and no timer of its own.  All connections in one phase
have the same limit, so they are due in the order in which they entered it: checking the first of
each phase is enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["BODY_STEP", "HELD_LIMIT", "LINGER", "STEP", "UNSENT_LIMIT", "Bounds"]

HELD_LIMIT = 256 << 20
"""Bytes of incomplete requests, of all clients together; above that a request is refused."""
UNSENT_LIMIT = 256 << 20
"""Bytes of unread replies, of all clients together; above that a connection is closed."""
STEP = 64 << 10
"""Bytes that a slow reader must read within the limit of UNREAD; a slower one is closed."""
BODY_STEP = 16 << 10
"""Bytes that a slow sender must send, on average, within the limit of BODY; else it is refused.

So a body of 1 MiB may take 43 minutes at most, with what is read ahead and the default of 30 s.
"""
LINGER = 2.0
"""Seconds for a client to close a connection that the voter has ended."""
SWEEP = 0.25
"""Seconds between checks of the deadlines (less if a limit is short)."""

K = TypeVar("K", bound=Hashable)
P = TypeVar("P", bound=Hashable)


class Bounds(Generic[K, P]):
    """The phase of each key with its deadline, and the total bytes held.

    ``limits`` are in seconds; a phase without one never ends.  ``expire(key, phase)`` is called
    once for each key that is late.
    """

    def __init__(self, limits: Mapping[P, float], expire: Callable[[K, P], None]) -> None:
        self.limits = limits
        self.held = 0
        """Bytes of incomplete requests."""
        self.unsent = 0
        """Bytes of unread replies."""
        self._expire = expire
        self._due: dict[P, dict[K, float]] = {phase: {} for phase in limits}
        self._now: Callable[[], float] = time.monotonic  # until ``start``: then the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to sweep, by the running loop's clock."""
        if self._timer is None:
            self._now = asyncio.get_running_loop().time
            self._again()

    def stop(self) -> None:
        """Stop sweeping."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self.sweep()
        pause = min(SWEEP, min(self.limits.values()) / 4)
        self._timer = asyncio.get_running_loop().call_later(pause, self._again)

    def enter(self, key: K, phase: P) -> None:
        """Start the deadline of ``key`` in ``phase``, unless it runs already."""
        due = self._due.get(phase)
        if due is not None:
            due.setdefault(key, self._now() + self.limits[phase])

    def leave(self, key: K, phase: P) -> None:
        """Clear the deadline of ``key`` in ``phase``."""
        due = self._due.get(phase)
        if due is not None:
            due.pop(key, None)

    def sweep(self) -> None:
        """Expire all keys that are late, and clear their deadlines."""
        now = self._now()
        for phase, due in self._due.items():
            while due:
                key, until = next(iter(due.items()))
                if until > now:
                    break
                del due[key]
                self._expire(key, phase)
