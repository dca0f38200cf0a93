"""Paths that the kernel limits, and directories that must be the node's own."""

from __future__ import annotations

import os
from collections.abc import Iterable

from deploy.errors import PathTooLong

__all__ = ["SOCKET_PATH_LIMIT", "check_socket_paths"]

SOCKET_PATH_LIMIT = 107
"""Bytes that a unix socket's path may have: 108 in the kernel's structure, less the closing zero.
"""


def check_socket_paths(paths: Iterable[str]) -> None:
    """Raise PathTooLong for the longest of the paths if it is too long for a unix socket."""
    longest = max(paths, key=lambda path: len(os.fsencode(path)), default="")
    excess = len(os.fsencode(longest)) - SOCKET_PATH_LIMIT
    if excess > 0:
        raise PathTooLong(longest, excess=excess)
