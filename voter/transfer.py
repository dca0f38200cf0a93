"""State transfers: pacing in both directions, and what has arrived of a state that is fetched.

A transfer keeps to a rate (``limits.transfer_rate``), so that requests and votes on the same link
are not delayed.  The voter fetches a state by asking for its pieces, FETCH_AHEAD of them at a time:
a replica sends nothing that was not asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b

from guests.protocol.wire import FETCH_AHEAD, STATE_PIECE

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
    """A state on its way here; ``ask`` sends one request for the piece at an offset."""

    def __init__(self, seq: int, rate: int, ask: Callable[[int, int], None]) -> None:
        self.seq = seq
        self.state = bytearray()
        self.hash = blake2b(digest_size=32)
        self.unanswered = 0
        """Pieces that were asked for and are not here."""
        self.timer: asyncio.TimerHandle | None = None
        self._asked = 0
        self._ask = ask
        self._rate = TransferRate(rate)
        self.request()

    def request(self) -> None:
        """Ask for the next pieces, at the rate for transfers."""
        self.timer = None
        while self.unanswered < FETCH_AHEAD:
            offset = self._asked * STATE_PIECE
            self._asked += 1
            self.unanswered += 1
            self._ask(self.seq, offset)
            pause = self._rate.pause(STATE_PIECE)
            if pause:
                self.timer = asyncio.get_running_loop().call_later(pause, self.request)
                return

    def add(self, piece: bytes) -> None:
        """Take a piece."""
        self.unanswered -= 1
        self.state += piece
        self.hash.update(piece)
