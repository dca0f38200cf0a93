"""The voter's process and its listening sockets.

The sockets are ours and are passed on, so that a voter that is started again refuses nobody: who
connects meanwhile waits in the sockets' queues.  The nanny keeps duplicates, for the next
supervisor.  A spare (``deploy.supervisor.standby_voter``) stands by, so that the next voter has
its imports behind it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.host.identity import ProcessIdentity
from deploy.host.logfile import LogFile
from deploy.node.history import EventHistory
from deploy.node.records import Layout
from deploy.watchdog.client import WatchdogClient
from voter.errors import AddressError
from voter.sockets import listen_tcp, listen_unix

__all__ = ["RESTART_LIMIT", "SPARE_DELAY", "STEADY", "VoterProcessManager"]

RESTART_LIMIT = 6
"""Ends of the voter in a row, each within STEADY seconds of its start, before it is given up."""
STEADY = 5.0
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds before it is started again, doubled each time; the first time after a steady life there
is no pause."""
STOP_GRACE = 5.0
"""Seconds for the voter to answer what is under way before it is killed."""
SPARE_DELAY = 2.0
"""Seconds after a voter's start until its spare is made: by then the voter should serve, and can do
without the processor that the spare's imports take."""
PRIORITY = -5
"""The voter's nice value, where this host lets us: it goes before the guests."""
REFUSED = 2
"""The exit status of a voter whose configuration or addresses cannot be used."""
SAID_LIMIT = 2000
"""Characters of its last words that are told on."""

_log = structlog.get_logger(__name__)

ROOT = Path(__file__).resolve().parents[2]


class _Standby:
    """A process of ``deploy.supervisor.standby_voter`` and our end of its standard input."""

    def __init__(self, config: Path, log: LogFile) -> None:
        """Start it.  Raises OSError."""
        self._channel, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "deploy.supervisor.standby_voter", "--config", str(config)]
        with theirs, log.open() as output:
            environment = os.environ | {"PYTHONPATH": path}
            self.child = Child.start(command, log=output, env=environment, stdin=theirs)

    def begin(self, sockets: Mapping[str, socket.socket]) -> Child:
        """Have it be the voter on these sockets.  Raises OSError if it has ended."""
        with self._channel:
            names = ":".join(sockets).encode()
            socket.send_fds(self._channel, [names], [sock.fileno() for sock in sockets.values()])
        return self.child

    def dismiss(self) -> None:
        """Let it end."""
        self._channel.close()


class VoterProcessManager:
    """Starts the voter, and keeps it running."""

    def __init__(
        self,
        layout: Layout,
        *,
        nursery: WatchdogClient,
        history: EventHistory,
        changed: Callable[[], None],
    ) -> None:
        """``changed`` is called when the voter's process has changed (to be written down).

        The listening sockets that the nanny kept are taken over.
        """
        self._layout = layout
        self._nursery = nursery
        self._history = history
        self._changed = changed
        self._sockets = nursery.sockets
        self._child: Child | None = None
        self._spare: _Standby | None = None
        self._began = float("-inf")
        self._short = 0  # lives in a row that were no STEADY one
        self._log_start = 0
        self.log = LogFile(layout.voter_log)
        self.restarts = 0
        self.given_up = asyncio.Event()
        self.failed = asyncio.Event()
        """Set when the voter has ended by itself, with an exit status that is not 0."""
        self.problem = ""

    # ------------------------------------------------------------- sockets

    def bind(self, http: str, native: str | None) -> dict[str, str]:
        """Have listening sockets: those the nanny kept, or new ones; return the TCP addresses.

        Raises DeployError that names the address that cannot be had.
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
                    remedy="give another one with --http HOST:PORT (port 0: any free one)",
                ) from error
            self._nursery.keep(self._sockets)
        return {
            name: _show_address(self._sockets[name].getsockname())
            for name in ("http", "native")
            if name in self._sockets
        }

    def unbind(self) -> None:
        """Close our listening sockets, the nanny's duplicates too."""
        self._nursery.drop()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    # ------------------------------------------------------------- process

    @property
    def identity(self) -> ProcessIdentity | None:
        """The process that runs now, if one does."""
        return self._child.identity if self._child is not None and self._child.running else None

    @property
    def spare(self) -> int | None:
        """The pid of the process that stands by, if one does."""
        return None if self._spare is None else self._spare.child.pid

    def describe(self) -> dict[str, Any]:
        """What status says of the voter's process."""
        identity = self.identity
        return {
            "pid": identity.pid if identity is not None else None,
            "spare": self.spare,
            "restarts": self.restarts,
            "in_row": self._short,
            "limit": RESTART_LIMIT,
            "given_up": self.given_up.is_set(),
            "problem": self.problem,
        }

    def replace(self, pid: int | None) -> None:
        """Kill a voter that hangs, if that one still runs; `keep` starts the next."""
        if self._child is not None and self._child.running and self._child.pid == pid:
            self._history.add("voter hangs", pid=pid)
            _log.error("the voter hangs: it is killed", pid=pid)
            self._child.signal(signal.SIGKILL)

    def start(self) -> None:
        """Start the voter's process on our sockets; a spare that stands by is it.

        Raises OSError.
        """
        self._log_start = self.log.path.stat().st_size if self.log.path.exists() else 0
        spare, self._spare = self._spare, None
        self._child = self._begin(spare) or self._begin(self._prepare())
        if self._child is None:
            raise ChildProcessError("the voter's process ended before it was told to begin")
        self._began = time.monotonic()
        try:
            os.setpriority(os.PRIO_PROCESS, self._child.pid, PRIORITY)
            # With autogroups a nice value counts inside a session only; the voter has its own.
            group = Path(f"/proc/{self._child.pid}/autogroup")
            if group.exists():
                group.write_text(str(PRIORITY))
        except OSError as error:
            _log.info("the voter runs at normal priority", reason=str(error))
        self._changed()

    def _prepare(self) -> _Standby:
        return _Standby(self._layout.voter_config, self.log)

    def _begin(self, standby: _Standby | None) -> Child | None:
        if standby is None:
            return None
        try:
            return standby.begin(self._sockets)
        except OSError as error:
            _log.warning("a spare voter had ended", pid=standby.child.pid, reason=str(error))
            return None

    def adopt(self, identity: ProcessIdentity) -> bool:
        """Go on with a voter that an ended supervisor started, if it lives."""
        self._child = Child.adopt(identity)
        return self._child is not None

    async def keep(self, rebind: Callable[[], None]) -> None:
        """Start the voter again whenever it ends, until cancelled, or until it ends too often.

        ``rebind`` is called where we have no sockets to pass on (the voter was adopted, and the
        nanny is gone): it binds them again.
        """
        while self._child is not None:
            refill = asyncio.create_task(self._stand_by(), name="spare voter")
            try:
                await self._child.wait()
            finally:
                refill.cancel()
            pause = self._judge(self._child)
            if pause is None:
                self._changed()
                self.unbind()  # whoever waits in the queues is told at once
                return
            if pause:
                self._changed()
                await asyncio.sleep(pause)
            if not self._sockets:
                rebind()
            self.restarts += 1
            self.start()
            self._history.add("voter started again", pid=self._child.pid, after=pause)

    async def _stand_by(self) -> None:
        """Have a spare stand by, until cancelled; a spare is not needed before SPARE_DELAY."""
        while True:
            await asyncio.sleep(SPARE_DELAY)  # not in place of a condition: see SPARE_DELAY
            if self._spare is None:
                try:
                    self._spare = self._prepare()
                except OSError as error:
                    _log.warning("no spare voter", reason=str(error))
                    continue
            await self._spare.child.wait()
            _log.warning("the spare voter ended", status=self._spare.child.status)
            self._spare.dismiss()
            self._spare = None

    def _judge(self, child: Child) -> float | None:
        """The voter has ended: return the seconds until it is started again, None if never."""
        lived = time.monotonic() - self._began
        self._short = 1 if lived >= STEADY else self._short + 1
        failed = child.code not in (None, 0) and not child.killed
        said = self.said() if failed else ""
        self.problem = f"the voter ended ({child.status})" + (f": {said}" if said else "")
        if child.code == REFUSED:
            self.given_up.set()
        elif self._short > RESTART_LIMIT:
            self.given_up.set()
            self.problem += f"; {self._short} times in a row within {STEADY:g} s: given up"
        if failed or self.given_up.is_set():
            self.failed.set()
        _log.error("the voter ended", pid=child.pid, problem=self.problem)
        self._history.add(
            "voter ended", status=child.status, said=said or None, given_up=self.given_up.is_set()
        )
        if self.given_up.is_set():
            return None
        return 0.0 if self._short == 1 else min(FIRST_PAUSE * 2 ** (self._short - 2), LAST_PAUSE)

    def said(self) -> str:
        """The voter's last words since its start: why it ended, if it said so."""
        try:
            with self.log.path.open("rb") as file:
                file.seek(self._log_start)
                text = file.read().decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"
        before, mark, words = ("\n" + text).rpartition("\nvoter: ")
        last = words if mark else "\n".join(before.strip().splitlines()[-5:])
        return last.strip()[-SAID_LIMIT:]

    async def end(self) -> None:
        """End the voter: what is under way is answered, up to STOP_GRACE seconds."""
        self.unbind()
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.dismiss()
            await spare.child.end(STOP_GRACE)
        if self._child is not None:
            await self._child.end(STOP_GRACE)

    def let_go(self) -> None:
        """Let the voter live on without us."""
        if self._spare is not None:
            self._spare.dismiss()
        self._close_sockets()


def _show_address(name: tuple[Any, ...]) -> str:
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
