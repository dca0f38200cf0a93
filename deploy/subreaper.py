"""A process as the parent of its descendants' orphans, in init's place.  Standard library only."""

from __future__ import annotations

import ctypes
import os

__all__ = ["become_subreaper"]

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def become_subreaper() -> None:
    """Have orphans among this process's descendants become its children.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
