"""The places of the order that requests took; the places between them went to something else.

A marker takes a place and answers no client.  So a place that no request has, while all guests
vote and no session is opened, is a marker's.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SequenceGaps"]


class SequenceGaps:
    """The places that released replies carried, and when each reply came by ``clock``."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._clock = clock
        self._taken: dict[int, float] = {}
        self.newest = 0
        """The highest place of a released reply."""

    def __contains__(self, place: object) -> bool:
        return place in self._taken

    def add(self, place: int) -> None:
        """Record the place of a released reply."""
        self._taken.setdefault(place, self._clock())
        self.newest = max(self.newest, place)

    def forget(self, upto: int) -> None:
        """Drop all places up to this one, so that memory does not grow with the run."""
        self._taken = {place: at for place, at in self._taken.items() if place > upto}

    def when(self, place: int) -> float | None:
        """Return when the reply at this place came; None if no reply has it."""
        return self._taken.get(place)

    def holes(self, since: int, upto: int) -> list[int]:
        """Return the places after ``since`` and up to ``upto`` that no request took, ascending."""
        return [place for place in range(since + 1, upto + 1) if place not in self._taken]
