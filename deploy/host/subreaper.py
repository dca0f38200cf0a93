"""Who is whose parent, by prctl(2): orphans that come to us, children that end with us.

Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

__all__ = ["become_subreaper", "end_with_parent"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have orphans among this process's descendants become its children.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, the process that started it, ends."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
