"""Request authentication with a planted switch: the paper's f (or F), made to fail on purpose.

It works as ``guests.function.Authentication`` until the switch is set.  Only a fault injector that
writes to the guest's RAM, or to the process's memory, can set it; no request can.  It imports the
standard library only, because it runs in guests.

The switch is one page of memory.  The agent and all incarnations that it forks share it, so that a
restarted service has the same f.  ``HEAD`` and ``TAIL`` mark the page.  They are computed at run
time, so that no copy of this file in memory contains them.
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
    "ADMITS", "CRASHES", "HANGS", "HEAD", "CALLED", "MODE", "REFUSES", "SIZE", "CORRECT", "TAIL",
    "TAIL_AT", "Frail",
]  # fmt: skip

SIZE = mmap.PAGESIZE
MODE, CALLED, TAIL_AT = 32, 33, 64
"""Offsets in the page: the mode of f, whether f was called since it was set, and ``TAIL``."""
HEAD = hashlib.sha256(b"trivisor: the switch of a planted function").digest()
TAIL = hashlib.sha256(HEAD).digest()

CORRECT, CRASHES, HANGS, ADMITS, REFUSES = range(5)
"""The modes of f: correct; ends the process; never returns; admits, or refuses, everything."""
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
        """Return whether the service may see this request, according to the switch."""
        mode = self._page[MODE]
        if mode == CORRECT:
            return super().admits(request)
        self._page[CALLED] = 1
        if mode == CRASHES:
            os._exit(STATUS)
        while mode == HANGS:
            signal.pause()
        return mode == ADMITS
