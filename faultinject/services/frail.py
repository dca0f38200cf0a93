"""Request authentication with a planted switch: the paper's f (or F), made to fail on purpose.

It is ``guests.function.Authentication`` until the switch is thrown, which only something that can
write to its memory can do: a fault injector that holds the guest's RAM, or the process's.  Nothing
that a client sends throws it.  Standard library only: it runs in guests.

The switch is a page of its own, shared by the agent and all incarnations that it forks, so that
there is one of it, and a service that was started again has the same f.  ``HEAD`` and ``TAIL`` tell
where it lies; they are made when this runs, so that no copy of this file holds them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
from typing import TYPE_CHECKING

from guests.function import Authentication

if TYPE_CHECKING:
    from guests.protocol.message import Request

__all__ = [
    "ADMITS", "CRASHES", "HANGS", "HEAD", "MET", "MODE", "REFUSES", "SIZE", "SOUND", "TAIL",
    "TAIL_AT", "Frail",
]  # fmt: skip

SIZE = mmap.PAGESIZE
MODE, MET, TAIL_AT = 32, 33, 64
"""Bytes of the page: what f does, and whether it was asked since it fails."""
HEAD = hashlib.sha256(b"trivisor: the switch of a planted function").digest()
TAIL = hashlib.sha256(HEAD).digest()

SOUND, CRASHES, HANGS, ADMITS, REFUSES = range(5)
"""What f does: what is right; ends the process; never answers; says yes, or no, to everything."""
STATUS = 70
"""The process's exit status."""


class Frail(Authentication):
    """The function with the switch."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        page = self._page = mmap.mmap(-1, SIZE)  # shared with children
        page[: len(HEAD)] = HEAD
        page[TAIL_AT : TAIL_AT + len(TAIL)] = TAIL

    def admits(self, request: Request) -> bool:
        """Whether the service may see this request, as the switch has it."""
        mode = self._page[MODE]
        if mode == SOUND:
            return super().admits(request)
        self._page[MET] = 1
        if mode == CRASHES:
            os._exit(STATUS)
        while mode == HANGS:
            signal.pause()
        return mode == ADMITS
