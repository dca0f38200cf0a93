"""What the runner needs of the world: clocks, a journal, and who writes at the end of a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from voter.core.entries import Base, Entry

__all__ = ["Clock", "Flushable", "JournalPort"]


class Clock(NamedTuple):
    """The two clocks: ``steady`` in seconds (never backwards), ``wall_ns`` in nanoseconds since
    1970.
    """

    steady: Callable[[], float]
    wall_ns: Callable[[], int]


class JournalPort(Protocol):
    """The journal, as the runner needs it."""

    def append(self, entry: Entry) -> None:
        """Take an entry; it is written by the next ``flush``."""

    def flush(self) -> None:
        """Write what has been appended.  Raises JournalError: nothing may be sent then."""

    def checkpoint(self, base: Base, state: bytes | bytearray) -> None:
        """Begin to write a checkpoint, and drop what it makes needless once it is there."""

    def learn(self, service: str, state_format: int) -> None:
        """Note which service's states these are."""

    async def run(self) -> None:
        """Sync what is written, until cancelled.  Raises JournalError as soon as that cannot be."""

    def status(self) -> dict[str, Any]:
        """What an operator may ask."""


class Flushable(Protocol):
    """Something that collects bytes during a turn of the loop and writes them once at its end."""

    def flush(self) -> None:
        """Write what has come together."""
