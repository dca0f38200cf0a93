"""The voter as the supervisor sees it: its sockets, its process, its control socket.

The listening sockets are ours and are passed on (the LISTEN_FDS convention), so that a voter that
is started again refuses nobody: who connects meanwhile waits in the sockets' queues.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from deploy.child import Child
from deploy.errors import DeployError
from deploy.identity import Identity
from deploy.logfile import LogFile
from deploy.records import Layout, Settings
from voter.errors import AddressError
from voter.sockets import listen_tcp, listen_unix

__all__ = ["RESTART_LIMIT", "VoterHost", "VoterSilent", "voter_config"]

RESTART_LIMIT = 5
"""Starts of the voter within RESTART_WINDOW seconds before it is given up."""
RESTART_WINDOW = 60.0
STOP_GRACE = 5.0
"""Seconds for the voter to answer what is under way before it is killed."""
CALL_TIMEOUT = 5.0
PRIORITY = -5
"""The voter's nice value, where this host lets us: it goes before the guests."""

_log = structlog.get_logger(__name__)

ROOT = Path(__file__).resolve().parents[1]

# Runs between fork and the voter, under the voter's own pid: puts the sockets at 3, 4, ... and
# says whose they are.  (A preexec_fn would run in a copy of a process with threads, libvirt's.)
_HAND_OVER = """
import fcntl, os, sys
number = int(sys.argv[1])
high = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 64) for word in sys.argv[2:2 + number]]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.closerange(3 + number, max(high, default=63) + 1)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(number)
os.execv(sys.executable, [sys.executable, *sys.argv[2 + number:]])
"""


class VoterSilent(DeployError):
    """The voter's control socket does not answer."""


def voter_config(layout: Layout, settings: Settings, links: dict[str, str]) -> str:
    """Return the text of voter.toml; ``links`` gives each replica's address."""
    lines = [
        "# Written by `trivisor up`; the next one writes it anew.",
        f"vote = {_quote(settings.vote)}",
    ]
    if not settings.service.endswith(".py"):
        lines.append(f"service = {_quote(settings.service)}")
    for name, link in links.items():
        lines += ["", "[[replica]]", f"name = {_quote(name)}", f"link = {_quote(link)}"]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """Return a TOML basic string (JSON's escapes are among TOML's)."""
    return json.dumps(text)


class VoterHost:
    """Starts the voter, keeps it running, and speaks to it."""

    def __init__(self, layout: Layout, *, changed: Callable[[], None]) -> None:
        """``changed`` is called when the voter's process has changed (to be written down)."""
        self._layout = layout
        self._changed = changed
        self._sockets: dict[str, socket.socket] = {}
        self._child: Child | None = None
        self._starts: deque[float] = deque(maxlen=RESTART_LIMIT)
        self._session: aiohttp.ClientSession | None = None
        self.log = LogFile(layout.voter_log)
        self.restarts = 0
        self.given_up = False
        self.problem = ""

    # ------------------------------------------------------------- process

    @property
    def identity(self) -> Identity | None:
        """The process that runs now, if one does."""
        return self._child.identity if self._child is not None and self._child.running else None

    def bind(self, http: str, native: str | None) -> dict[str, str]:
        """Make the listening sockets; return the TCP addresses bound, by name.

        Raises DeployError that names the address that cannot be had.
        """
        layout = self._layout
        try:
            self._sockets["http"] = listen_tcp(http)
            if native is not None:
                self._sockets["native"] = listen_tcp(native)
            self._sockets["native-unix"] = listen_unix(str(layout.native_socket))
            self._sockets["control"] = listen_unix(str(layout.voter_control))
        except AddressError as error:
            self.unbind()
            raise DeployError(
                str(error), remedy="give another one with --http HOST:PORT (port 0: any free one)"
            ) from error
        return {
            name: _show_address(self._sockets[name].getsockname())
            for name in ("http", "native")
            if name in self._sockets
        }

    def unbind(self) -> None:
        """Close our listening sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def start(self) -> None:
        """Start the voter's process on our sockets.  Raises OSError."""
        numbers = [sock.fileno() for sock in self._sockets.values()]
        names = ":".join(self._sockets)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-I", "-S", "-c", _HAND_OVER, str(len(numbers))]
        command += [str(number) for number in numbers]
        command += ["-m", "voter", "--config", str(self._layout.voter_config)]
        with self.log.open() as log:
            self._child = Child.start(
                command,
                log=log,
                env=os.environ | {"LISTEN_FDNAMES": names, "PYTHONPATH": path},
                pass_fds=numbers,
            )
        self._starts.append(time.monotonic())
        try:
            os.setpriority(os.PRIO_PROCESS, self._child.pid, PRIORITY)
            # With autogroups a nice value counts inside a session only; the voter has its own.
            group = Path(f"/proc/{self._child.pid}/autogroup")
            if group.exists():
                group.write_text(str(PRIORITY))
        except OSError as error:
            _log.info("the voter runs at normal priority", reason=str(error))
        self._changed()

    def adopt(self, identity: Identity) -> bool:
        """Go on with a voter that an ended supervisor started, if it lives."""
        self._child = Child.adopt(identity)
        return self._child is not None

    async def keep(self, rebind: Callable[[], None]) -> None:
        """Start the voter again whenever it ends, until cancelled, or until it ends too often.

        ``rebind`` is called where we have no sockets to pass on (the voter was adopted): it binds
        them again.
        """
        while self._child is not None:
            await self._child.wait()
            self.problem = f"the voter ended ({self._child.status})"
            _log.error("the voter ended", status=self._child.status, pid=self._child.pid)
            self._changed()
            self._starts = deque(
                (at for at in self._starts if time.monotonic() - at < RESTART_WINDOW),
                maxlen=RESTART_LIMIT,
            )
            if len(self._starts) >= RESTART_LIMIT:
                self.given_up = True
                self.problem += f", {RESTART_LIMIT} times within {RESTART_WINDOW:g} s: given up"
                _log.error("the voter is given up", problem=self.problem)
                self.unbind()  # whoever waits in the queues is told at once
                return
            if self._starts:  # the first restart is at once
                await asyncio.sleep(0.1 * 2 ** len(self._starts))
            if not self._sockets:
                rebind()
            self.restarts += 1
            self.start()

    async def end(self) -> None:
        """End the voter: what is under way is answered, up to STOP_GRACE seconds."""
        self.unbind()
        if self._session is not None:
            await self._session.close()
        if self._child is not None:
            await self._child.end(STOP_GRACE)

    async def let_go(self) -> None:
        """Let the voter live on without us."""
        if self._session is not None:
            await self._session.close()
        self.unbind()

    # ------------------------------------------------------ control socket

    async def status(self) -> dict[str, Any]:
        """Return what the voter says of itself.  Raises VoterSilent."""
        return await self._call("GET", "/status")

    async def admit(self, name: str) -> None:
        """Vouch for a replica that was put back.  Raises VoterSilent."""
        await self._call("POST", f"/replicas/{name}/admit")

    async def expel(self, name: str, reason: str) -> None:
        """Take a replica out of the vote.  Raises VoterSilent."""
        await self._call("POST", f"/replicas/{name}/expel", {"reason": reason})

    async def drain(self) -> None:
        """Have the voter take no new requests.  Raises VoterSilent."""
        await self._call("POST", "/drain")

    async def events(self, since: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the changes of replicas after ``since``, as they come.  Raises VoterSilent."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT)
        url = f"http://voter/events?since={since}"
        try:
            async with self._client.get(url, timeout=timeout) as answer:
                async for line in answer.content:
                    if line.strip():
                        yield json.loads(line)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise VoterSilent(f"the voter's events ended: {error}") from error

    @property
    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._layout.voter_control)),
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT),
            )
        return self._session

    async def _call(
        self, method: str, path: str, body: dict[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            async with self._client.request(method, f"http://voter{path}", json=body) as answer:
                text = await answer.text()
                if answer.status >= 400:
                    raise VoterSilent(f"the voter answered {method} {path} with: {text[:300]}")
                value = json.loads(text) if text.strip() else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise VoterSilent(
                f"the voter does not answer {method} {path}: {str(error) or type(error).__name__}"
            ) from error
        return value if isinstance(value, dict) else {}


def _show_address(name: tuple[Any, ...]) -> str:
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
