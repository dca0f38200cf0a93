"""The voter that systemd runs (trivisor-voter.service).

systemd starts, watches and restarts it.  It belongs to another user, so the supervisor cannot
signal it, and reaches it by its control socket only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from deploy.host.identity import ProcessIdentity, wait_end
from deploy.node.records import Layout
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable
from deploy.supervisor.voter_process import STOP_GRACE, show_address

__all__ = ["VOTER_UNIT", "ManagedVoter"]

VOTER_UNIT = "trivisor-voter.service"
_SILENCE = 5.0
"""Seconds without an answer after which `status` reports a problem.  systemd restarts a voter that
has ended after 0.1 s, and one that hangs after 15 s (trivisor-voter.service)."""

_log = structlog.get_logger(__name__)


class ManagedVoter:
    """Has the interface of ``VoterProcessManager``, for a voter that systemd runs."""

    files: tuple[Path, ...] = ()
    """Files to remove at the node's end: the sockets are systemd's."""
    identity: ProcessIdentity | None = None
    standby: int | None = None
    abandoned = False

    def __init__(self, layout: Layout, control: VoterControl, observer: NodeObserver) -> None:
        self._layout = layout
        self._control = control
        self._observer = observer
        self._silent_since = time.monotonic()
        self.restarts = 0
        self.failed = asyncio.Event()
        """Never set: systemd restarts the voter."""

    @property
    def pid(self) -> int | None:
        """The pid of the voter that answers, or None."""
        status = self._observer.voter_status
        return None if status is None else int(status["pid"])

    @property
    def problem(self) -> str:
        """That the voter does not answer, with the commands that help; empty if it does."""
        if self.pid is not None or time.monotonic() - self._silent_since < _SILENCE:
            return ""
        return (
            f"the voter does not answer: `journalctl -u {VOTER_UNIT}` shows why, "
            f"`systemctl restart {VOTER_UNIT}` restarts it"
        )

    def error(self) -> VoterUnreachable:
        """Return `problem` as an error."""
        return VoterUnreachable(self.problem)

    def describe(self) -> dict[str, Any]:
        """Return the status of the voter's process."""
        return {
            "pid": self.pid,
            "standby": None,
            "restarts": self.restarts,
            "short_lives": 0,
            "limit": None,
            "abandoned": False,
            "problem": self.problem,
        }

    @property
    def addresses(self) -> dict[str, str]:
        """The first TCP address of each kind of socket on which systemd listens, by kind."""
        found: dict[str, str] = {}
        for name, address in (self._observer.voter_status or {}).get("listening", ()):
            if isinstance(address, list):  # else it is a path
                found.setdefault(name, show_address(tuple(address)))
        return found

    def bind(self, http: str, native: str | None) -> dict[str, str]:
        """Return ``addresses``: systemd makes the sockets."""
        return self.addresses

    def adopt(self, identity: ProcessIdentity) -> bool:
        """Return False: the voter is not a process of the supervisor's."""
        return False

    def start(self) -> None:
        """Do nothing: systemd starts the voter."""

    def replace(self, pid: int | None) -> None:
        """Do nothing: a voter that hangs stops notifying systemd, which restarts it."""

    async def keep(self, rebind: Callable[[], None]) -> None:
        """Follow which process is the voter, until cancelled.

        A voter that was started before its configuration was last written is replaced.
        """
        seen: int | None = None
        known: int | None = None
        while True:
            seen = await self._next(seen)
            if seen is None:
                self._silent_since = time.monotonic()
                continue
            if known not in (None, seen):
                self.restarts += 1
                self._observer.history.add("voter restarted", pid=seen)
            known = seen
            rebind()
            await self._replace_outdated()

    async def _next(self, seen: int | None) -> int | None:
        """Wait until the voter's pid differs from ``seen``; return it, or None: no answer."""
        async with self._observer.news:
            await self._observer.news.wait_for(lambda: self.pid != seen)
            return self.pid

    async def _replace_outdated(self) -> None:
        status = self._observer.voter_status
        try:
            written = self._layout.voter_config.stat().st_mtime
        except OSError as error:  # the voter that runs has read it
            _log.warning(
                "cannot compare the voter with its configuration",
                reason=str(error),
                error_code="TV0223",
            )
            return
        if status is None or float(status["started"]) >= written:
            return
        self._observer.history.add("voter ended", reason="its configuration has changed")
        try:
            await self._control.stop()
        except VoterUnreachable as error:
            _log.info("the voter has ended already", reason=str(error))

    async def end(self) -> None:
        """Let the voter answer its open requests while guests still run, and end it.

        systemd starts the next one, unless the node is being stopped.
        """
        pid = self.pid
        try:
            await self._control.stop()
        except VoterUnreachable as error:
            _log.info("the voter has ended already", reason=str(error))
            return
        if pid is not None:
            await asyncio.to_thread(wait_end, pid, STOP_GRACE)

    def release(self) -> None:
        """Do nothing: the voter continues to run."""
