"""Deadlines of many connections for two dictionary steps each, and no timer of their own.

All connections in one phase have the same limit, so they fall due in the order they entered it: a
look at the first of each phase is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

K = TypeVar("K", bound=Hashable)
P = TypeVar("P", bound=Hashable)


class Deadlines(Generic[K, P]):
    """Who is in which phase since when.  ``limits`` in seconds; a phase that has none never ends.

    ``sweep`` must be called now and then; it calls ``expire(key, phase)`` for whoever is late.
    """

    def __init__(self, limits: Mapping[P, float], expire: Callable[[K, P], None]) -> None:
        self.limits = limits
        self._expire = expire
        self._due: dict[P, dict[K, float]] = {phase: {} for phase in limits}

    def enter(self, key: K, phase: P, now: float) -> None:
        """``key`` is in ``phase`` from ``now`` on (it must have left the one before)."""
        due = self._due.get(phase)
        if due is not None:
            due[key] = now + self.limits[phase]

    def leave(self, key: K, phase: P) -> None:
        """``key`` is no longer in ``phase``."""
        due = self._due.get(phase)
        if due is not None:
            due.pop(key, None)

    def sweep(self, now: float) -> None:
        """Expire all that are late; each is told once and is out of its phase."""
        for phase, due in self._due.items():
            while due:
                key, until = next(iter(due.items()))
                if until > now:
                    break
                del due[key]
                self._expire(key, phase)
