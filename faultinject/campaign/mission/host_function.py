"""F of a station: the planted function once on the host, a process that is made anew after a hit.

Nobody starts it again within a mission: a hit F stays as it is until the next clean start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

from faultinject.campaign.mission.voters import PRIORITY
from faultinject.history.workload import KEY
from faultinject.services import FRAIL

__all__ = ["HostFunction"]

ROOT = Path(__file__).resolve().parents[3]
START = 20.0
"""Seconds until it must listen, on a busy host."""
POLL = 0.005
"""Seconds between looks at whether it listens: nothing tells."""


class HostFunction:
    """``directory`` is its own, for its socket, key and log.  ``dirty``: it was hit."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self.dirty = False

    @property
    def address(self) -> str:
        """Where it listens, as a voter's configuration has it."""
        return f"unix:{self._socket}"

    @property
    def _socket(self) -> Path:
        return self._directory / "f.sock"

    @property
    def pid(self) -> int | None:
        """Its process, while it lives."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def renew(self) -> None:
        """Have a sound F, a new one if it was hit or has ended.  Raises OSError, TimeoutError."""
        if self.pid is not None and not self.dirty:
            return
        await self.end()
        self._directory.mkdir(exist_ok=True)
        key, log = self._directory / "key", self._directory / "log"
        key.write_text(KEY.hex())
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with log.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "deploy.authorizer", "--function", str(FRAIL),
                "--key", str(key), "--listen", str(self._socket),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=errors,
                env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(PermissionError, ProcessLookupError):  # before the guests
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
        """Kill it: it holds nothing."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
