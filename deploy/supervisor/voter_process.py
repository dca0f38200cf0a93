"""The voter's process and its listening sockets.

The supervisor owns the sockets and passes them to each voter.  So a restart refuses no client: new
connections wait in the sockets' queues.  The watchdog keeps duplicates for the next supervisor.  A
standby (``deploy.supervisor.standby_voter``) has done the next voter's imports in advance.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.host.files import LogFile
from deploy.host.identity import ProcessIdentity
from deploy.host.spawn import python_command, python_environment
from deploy.node.records import Layout
from deploy.supervisor.observer import EventHistory
from deploy.supervisor.storage import Storage
from deploy.watchdog.client import WatchdogClient
from voter.errors import AddressError
from voter.sockets import listen_tcp, listen_unix

__all__ = ["RESTART_LIMIT", "STOP_GRACE", "VoterProcessManager", "show_address"]

RESTART_LIMIT = 6
"""Consecutive ends of the voter, each within SHORT_LIFE seconds of its start; one more is final."""
SHORT_LIFE = 5.0
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds before a restart, doubled each time; after a longer life there is no pause."""
STOP_GRACE = 5.0
"""Seconds for the voter to answer its open requests; then it is killed."""
STANDBY_DELAY = 2.0
"""Seconds from a voter's start to its standby's, whose imports would slow the voter's start."""
HELD_PAUSE = 0.02
"""Seconds between looks whether a node that is being reverted may have a voter again."""
PRIORITY = -5
"""The voter's nice value, if permitted: it has priority over the guests."""
UNUSABLE = 2
"""The exit status of a voter whose configuration or addresses cannot be used."""
MESSAGE_LIMIT = 2000
"""Characters of its last message that are reported."""

_log = structlog.get_logger(__name__)


class _Standby:
    """A process of ``deploy.supervisor.standby_voter`` and our end of its standard input."""

    def __init__(self, config: Path, log: LogFile) -> None:
        """Start it.  Raises OSError."""
        self._channel, theirs = socket.socketpair()
        command = python_command("deploy.supervisor.standby_voter", "--config", config)
        with theirs, log.open() as output:
            self.child = Child.start(
                command,
                log=output,
                env=python_environment("voter"),
                cwd=config.parent,
                stdin=theirs,
            )

    def activate(self, sockets: Mapping[str, socket.socket]) -> Child:
        """Make it the voter on these sockets.  Raises OSError if it has ended."""
        with self._channel:
            names = ":".join(sockets).encode()
            socket.send_fds(self._channel, [names], [sock.fileno() for sock in sockets.values()])
        return self.child

    def dismiss(self) -> None:
        """End it by closing its standard input."""
        self._channel.close()


class VoterProcessManager:
    """Starts the voter and keeps it running.

    ``changed`` is called when the voter's process has changed, so that it is recorded.  Takes over
    the listening sockets that the watchdog kept.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        watchdog: WatchdogClient,
        history: EventHistory,
        storage: Storage,
        changed: Callable[[], None],
    ) -> None:
        self._layout = layout
        self._watchdog = watchdog
        self._history = history
        self._storage = storage
        self._changed = changed
        self._sockets = watchdog.sockets
        self._child: Child | None = None
        self._standby: _Standby | None = None
        self._began = float("-inf")
        self._short_lives = 0  # consecutive ones
        self._log_start = 0
        self.log = LogFile(layout.voter_log)
        self.restarts = 0
        self.abandoned = False
        self.failed = asyncio.Event()
        """Set when the voter has exited with a status that is not 0, or is not restarted again."""
        self.problem = ""

    # ---- sockets

    @property
    def files(self) -> tuple[Path, ...]:
        """Files to remove at the node's end: its unix sockets."""
        return self._layout.native_socket, self._layout.voter_control

    def bind(self, http: str, native: str | None) -> dict[str, str]:
        """Make the listening sockets unless there are some; return the TCP addresses.

        Raises DeployError that names the address that cannot be used.
        """
        layout = self._layout
        if not self._sockets:
            try:
                self._sockets["http"] = listen_tcp(http)
                if native is not None:
                    self._sockets["native"] = listen_tcp(native)
                self._sockets["native-unix"] = listen_unix(str(layout.native_socket))
                self._sockets["control"] = listen_unix(str(layout.voter_control))
            except AddressError as error:
                self.unbind()
                raise DeployError(
                    str(error),
                    remedy="choose another one with --http HOST:PORT (port 0: any free one)",
                    error_code=error.error_code,
                ) from error
            self._watchdog.keep(self._sockets)
        return {
            name: show_address(self._sockets[name].getsockname())
            for name in ("http", "native")
            if name in self._sockets
        }

    def unbind(self) -> None:
        """Close the listening sockets and the watchdog's duplicates."""
        self._watchdog.drop()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    # ---- process

    @property
    def identity(self) -> ProcessIdentity | None:
        """The running process, or None."""
        return self._child.identity if self._child is not None and self._child.running else None

    @property
    def pid(self) -> int | None:
        """The pid of the running process, or None."""
        return self.identity.pid if self.identity is not None else None

    @property
    def standby(self) -> int | None:
        """The pid of the standby, or None."""
        return None if self._standby is None else self._standby.child.pid

    def describe(self) -> dict[str, Any]:
        """Return the status of the voter's process."""
        return {
            "pid": self.pid,
            "standby": self.standby,
            "restarts": self.restarts,
            "short_lives": self._short_lives,
            "limit": RESTART_LIMIT,
            "abandoned": self.abandoned,
            "problem": self.problem,
        }

    def replace(self, pid: int | None) -> None:
        """Kill a hung voter if it still is process ``pid``; `keep` starts the next."""
        if self._child is not None and self._child.running and self._child.pid == pid:
            self._history.add("voter hangs", pid=pid)
            _log.error("the voter hangs", pid=pid, error_code="TV0221")
            self._child.signal(signal.SIGKILL)

    def start(self) -> None:
        """Start the voter on our sockets, from the standby if there is one.  Raises OSError."""
        self._log_start = self.log.path.stat().st_size if self.log.path.exists() else 0
        standby, self._standby = self._standby, None
        self._child = self._activate(standby) or self._activate(self._prepare())
        if self._child is None:
            raise ChildProcessError("the voter's process ended before it received its sockets")
        self._began = time.monotonic()
        try:
            os.setpriority(os.PRIO_PROCESS, self._child.pid, PRIORITY)
            # With autogroups a nice value only counts inside a session; the voter has its own.
            group = Path(f"/proc/{self._child.pid}/autogroup")
            if group.exists():
                group.write_text(str(PRIORITY))
        except OSError as error:
            _log.info("cannot raise the voter's priority", reason=str(error))
        self._changed()

    def _prepare(self) -> _Standby:
        return _Standby(self._layout.voter_config, self.log)

    def _activate(self, standby: _Standby | None) -> Child | None:
        if standby is None:
            return None
        try:
            return standby.activate(self._sockets)
        except OSError as error:
            _log.warning(
                "a standby voter had ended",
                pid=standby.child.pid,
                reason=str(error),
                error_code="TV0222",
            )
            return None

    def adopt(self, identity: ProcessIdentity) -> bool:
        """Follow a voter that a former supervisor started; return whether it runs."""
        self._child = Child.adopt(identity)
        return self._child is not None

    async def keep(self, rebind: Callable[[], None]) -> None:
        """Restart the voter whenever it ends, until cancelled or until it ends too often.

        While the node's directory cannot be written, it is never too often.

        Calls ``rebind`` if there are no sockets to pass on, because the voter was adopted and the
        watchdog has ended.
        """
        while self._child is not None:
            refill = asyncio.create_task(self._keep_standby(), name="standby voter")
            try:
                await self._child.wait()
            finally:
                refill.cancel()
            pause = self._plan_restart(self._child)
            if pause is None:
                self._changed()
                self.unbind()  # clients that wait in the queues get an error at once
                return
            if pause:
                self._changed()
                await asyncio.sleep(pause)
            while not self._restart(rebind):  # noqa: ASYNC110
                # No event reports that it can be started.
                await asyncio.sleep(HELD_PAUSE if self._held() else LAST_PAUSE)
            self.restarts += 1
            self._history.add("voter restarted", pid=self._child.pid, pause=pause)

    def _held(self) -> bool:
        """Return whether the monitor has stopped the node, or has it reverted: no voter may run."""
        return self._layout.halted.exists() or self._layout.revert.exists()

    def _restart(self, rebind: Callable[[], None]) -> bool:
        """Start the next voter; return False if that is not possible now."""
        if self._held():
            return False
        if not self._storage.in_place:
            self.problem = f"the voter is not restarted: {self._storage.check()}"
            return False
        try:
            if not self._sockets:
                rebind()
            self.start()
        except OSError as error:
            self.problem = f"the voter cannot be started: {error}"
            _log.error("the voter cannot be started", reason=str(error), error_code="TV0220")
            return False
        return True

    async def _keep_standby(self) -> None:
        """Keep one standby running until cancelled."""
        while True:
            await asyncio.sleep(STANDBY_DELAY)  # no wait for a condition: see STANDBY_DELAY
            if self._standby is None and self._storage.in_place:
                try:
                    self._standby = self._prepare()
                except OSError as error:
                    _log.warning(
                        "cannot start a standby voter", reason=str(error), error_code="TV0222"
                    )
                    continue
            if self._standby is None:
                continue
            await self._standby.child.wait()
            _log.warning(
                "the standby voter ended", status=self._standby.child.status, error_code="TV0222"
            )
            self._standby.dismiss()
            self._standby = None

    def _plan_restart(self, child: Child) -> float | None:
        """Record the voter's end; return the seconds until its restart, None if it has none."""
        if self._held():  # the monitor ended it, which says nothing about the voter
            self._short_lives = 0
            self._history.add("voter ended", status=child.status, message=None, abandoned=False)
            return 0.0
        lived = time.monotonic() - self._began
        self._short_lives = 1 if lived >= SHORT_LIFE else self._short_lives + 1
        failed = child.code not in (None, 0) and not child.killed
        message = self._last_message() if failed else ""
        self.problem = f"the voter ended ({child.status})" + (f": {message}" if message else "")
        too_often = self._short_lives > RESTART_LIMIT
        self.abandoned = child.code == UNUSABLE or too_often
        if self.abandoned and self._storage.check():
            self.problem += f"; {self._storage.problem}: it is restarted until it can work"
            self.abandoned = too_often = False
        if too_often:
            self.problem += (
                f"; {self._short_lives} times in a row within {SHORT_LIFE:g} s: not restarted"
            )
        if failed or self.abandoned:
            self.failed.set()
        _log.error(
            "the voter ended", pid=child.pid, problem=self.problem, error_code=self._error_code()
        )
        self._history.add(
            "voter ended", status=child.status, message=message or None, abandoned=self.abandoned
        )
        if self.abandoned:
            return None
        if self._short_lives == 1:
            return 0.0
        pause: float = FIRST_PAUSE * 2 ** (self._short_lives - 2)
        return min(pause, LAST_PAUSE)

    def error(self) -> DeployError:
        """Return `problem` as an error, with the code that the voter printed, if it did."""
        return DeployError(
            self.problem, remedy=f"see {self._layout.voter_log}", error_code=self._error_code()
        )

    def _error_code(self) -> str:
        printed = re.search(r"error (TV[0-9]{4}): ", self.problem)
        return printed[1] if printed else "TV0221"

    def _last_message(self) -> str:
        """Return the voter's last message since its start: its error, if it logged one."""
        try:
            with self.log.path.open("rb") as file:
                file.seek(self._log_start)
                text = file.read().decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"
        _, mark, error_text = ("\n" + text).rpartition("\nvoter: ")
        last = error_text if mark else "\n".join(text.strip().splitlines()[-5:])
        return last.strip()[-MESSAGE_LIMIT:]

    async def end(self) -> None:
        """End the voter; it has STOP_GRACE seconds to answer open requests."""
        self.unbind()
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.dismiss()
            await standby.child.end(STOP_GRACE)
        if self._child is not None:
            await self._child.end(STOP_GRACE)

    def release(self) -> None:
        """Stop owning the voter, which continues to run."""
        if self._standby is not None:
            self._standby.dismiss()
        self._close_sockets()


def show_address(name: tuple[Any, ...]) -> str:
    """Return a socket's name as HOST:PORT."""
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
