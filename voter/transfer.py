"""Transfers of states: how fast they go, and what has arrived of one."""

from __future__ import annotations

import asyncio
from hashlib import blake2b

__all__ = ["BURST", "IncomingState", "TransferRate"]

BURST = 0.02
"""Seconds that a transfer may catch up if the loop was late."""


class TransferRate:
    """Keeps a transfer at its rate (bytes a second)."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = float("-inf")

    def pause(self, size: int) -> float:
        """Return the seconds to wait now that another ``size`` bytes went."""
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - BURST) + size / self._rate
        return max(0.0, self._due - now)


class IncomingState:
    """A state on its way here: as much as there is of it, and its hash."""

    def __init__(self, seq: int, rate: int) -> None:
        self.seq = seq
        self.state = bytearray()
        self.hashed = blake2b(digest_size=32)
        self.asked = 0
        """Pieces that were asked for."""
        self.came = 0
        """Pieces that are here."""
        self.pace = TransferRate(rate)
        self.timer: asyncio.TimerHandle | None = None
