"""Whether a node's directory can be written, and what waits for it.

A full or failing disk ends nothing: the supervisor continues to run and to answer.  It repairs and
restarts nothing that would fail for lack of room, and resumes as soon as there is room.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import structlog

from deploy.host.files import ROOM, lack_of_room, write_whole
from deploy.node.records import Layout
from deploy.supervisor.observer import EventHistory

__all__ = ["Storage"]

_log = structlog.get_logger(__name__)


class Storage:
    """Writes a node's files if it can, and knows why it cannot.

    ``repair_room`` is how many bytes a repair may need.
    """

    def __init__(self, layout: Layout, history: EventHistory, *, repair_room: int) -> None:
        self._layout = layout
        self._history = history
        self._repair_room = repair_room
        self._identity = layout.directory.stat()
        self._room = ROOM  # bytes that must be free
        self._failed = False  # a write has failed since the last successful probe
        self.problem = ""
        """Why nothing can be written now; empty if everything can."""

    @property
    def in_place(self) -> bool:
        """Whether the directory is still at its path; else nothing may be written there."""
        try:
            return os.path.samestat(self._layout.directory.stat(), self._identity)
        except OSError:
            return False

    def check(self, *, repair_failed: bool = False) -> str:
        """Check again; return the problem.  After a failed repair, the next one must have room."""
        if repair_failed:
            self._room = self._repair_room
        problem = self._find_problem()
        if not problem:
            self._room = ROOM
            self._failed = False
        if bool(problem) != bool(self.problem):
            if problem:
                self._history.add("storage failed", reason=problem)
                _log.error("storage failed", reason=problem, error_code="TV0731")
            else:
                self._history.add("storage works again", reason=None)
                _log.info("storage works again")
        self.problem = problem
        return problem

    def write(self, what: str, action: Callable[[], object]) -> bool:
        """Do an action that writes into the directory; return False if it cannot be done now."""
        if not self.in_place:
            self.check()
            return False
        try:
            action()
        except OSError as error:
            _log.warning("cannot write", what=what, reason=str(error), error_code="TV0731")
            self._failed = True
            self.check()
            return False
        return True

    def _find_problem(self) -> str:
        if not self.in_place:
            return (
                f"{self._layout.directory} was moved or deleted while the node runs: end the node "
                "with `trivisor down` in its present directory"
            )
        problem = lack_of_room(self._layout.directory, self._room)
        if problem or not self._failed:
            return problem
        probe = self._layout.directory / "probe"
        try:
            write_whole(probe, os.urandom(4096))
            probe.unlink()
        except OSError as error:
            return f"{self._layout.directory}: {error.strerror}"
        return ""
