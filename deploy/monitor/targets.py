"""The processes that release replies, held by pidfd so that they can be ended in microseconds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Targets", "pids_in"]


def pids_in(status: Mapping[str, Any]) -> list[int]:
    """Return the pids of voter and guests in a node's status."""
    pids = [status["voter"].get("pid"), *(guest.get("pid") for guest in status["guests"])]
    return [pid for pid in pids if pid]


class Targets:
    """A voter and its guests."""

    def __init__(self) -> None:
        self._pidfds: dict[int, int] = {}

    def hold(self, pids: Iterable[int]) -> None:
        """Hold these processes, and no others any more."""
        wanted = set(pids)
        for pid in self._pidfds.keys() - wanted:
            os.close(self._pidfds.pop(pid))
        for pid in wanted - self._pidfds.keys():
            try:
                self._pidfds[pid] = os.pidfd_open(pid)
            except OSError:
                continue  # it has ended

    @property
    def pidfds(self) -> list[int]:
        """Their pidfds."""
        return list(self._pidfds.values())

    def close(self) -> None:
        """Hold none any more."""
        self.hold(())
