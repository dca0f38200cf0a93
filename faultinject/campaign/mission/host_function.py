"""F of a node: the planted function on the host, in its own process.

It is not restarted within a mission.  After a hit, ``renew`` replaces it at the next clean start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from deploy.host.spawn import python_command, python_environment
from faultinject.campaign.mission.voters import PRIORITY
from faultinject.history.workload import KEY
from faultinject.services import FRAIL

__all__ = ["HostFunction"]

START = 20.0
"""Seconds for it to listen, on a busy host."""
POLL = 0.005
"""Seconds between polls for its socket: it does not notify."""


class HostFunction:
    """The process of F.  ``directory``: for its socket, key and log.  ``dirty``: it was hit."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self.dirty = False

    @property
    def address(self) -> str:
        """Return its address as a voter's configuration gives it."""
        return f"unix:{self._socket}"

    @property
    def _socket(self) -> Path:
        return self._directory / "f.sock"

    @property
    def pid(self) -> int | None:
        """Return its process id, or None if it has ended."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def renew(self) -> None:
        """Start a new F if it was hit or has ended.  Raises OSError, TimeoutError."""
        if self.pid is not None and not self.dirty:
            return
        await self.end()
        self._directory.mkdir(exist_ok=True)
        key, log = self._directory / "key", self._directory / "log"
        key.write_text(KEY.hex())
        command = python_command("deploy.authorizer", "--function", FRAIL, "--key", key)
        with log.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--listen", str(self._socket),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=errors,
                env=python_environment(), start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(PermissionError, ProcessLookupError):  # ahead of the guests
            os.setpriority(os.PRIO_PROCESS, self._process.pid, PRIORITY)
        async with asyncio.timeout(START):
            while not self._listens():
                if self.pid is None:
                    raise OSError(f"F did not start: {log.read_text(errors='replace')[-300:]}")
                await asyncio.sleep(POLL)
        self.dirty = False

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    async def end(self) -> None:
        """Kill it: it has no state to save."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
