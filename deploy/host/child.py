"""A process that this node started or adopted, followed by a pidfd until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from deploy.host.identity import ProcessIdentity, boot_id, identify

__all__ = ["Child"]

KILL_SECONDS = 10.0
"""Seconds for a process to end after SIGKILL; after that `Child.end` raises TimeoutError."""


class Child:
    """A process and its pidfd, by which no other process is ever signalled or waited for."""

    def __init__(
        self, identity: ProcessIdentity, pidfd: int, child: subprocess.Popen[bytes] | None
    ):
        self.identity = identity
        self._pidfd = pidfd
        self._child = child
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._ended)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log: IO[bytes],
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: socket.socket | None = None,
        cwd: Path | None = None,
        stdout: IO[bytes] | int | None = None,
    ) -> Child:
        """Start a process in its own session, its output going to ``log``.  Raises OSError."""
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
            stdout=log if stdout is None else stdout,
            stderr=log,
            env=env,
            pass_fds=pass_fds,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            pidfd = os.pidfd_open(child.pid)
            identity = identify(child.pid)
        except OSError:
            child.kill()
            child.wait()
            raise
        if identity is None:
            # It has ended already.  Its pid stays reserved until it is reaped.
            identity = ProcessIdentity(pid=child.pid, start_ticks=0, boot_id=boot_id())
        return cls(identity, pidfd, child)

    @classmethod
    def adopt(cls, identity: ProcessIdentity) -> Child | None:
        """Follow a process that another supervisor started; None if it has ended."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        if not identity.alive:  # checked after the pidfd was opened: the pid cannot be reused now
            os.close(pidfd)
            return None
        return cls(identity, pidfd, None)

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.identity.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._gone.is_set()

    @property
    def code(self) -> int | None:
        """Its exit status, -N if signal N killed it; None while it runs, or if it was adopted."""
        return self._child.returncode if self._child is not None and not self.running else None

    @property
    def killed(self) -> bool:
        """Whether a signal ended it (False for an adopted process)."""
        return self.code is not None and self.code < 0

    @property
    def status(self) -> str:
        """How it ended, as text; for an adopted process only that it ended."""
        if self.running:
            return "running"
        code = self.code
        if code is None:
            return "ended"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._child is not None:
            self._child.wait()  # it is a zombie: this does not block
        self._gone.set()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._gone.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; do nothing if it has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, grace: float) -> None:
        """Send SIGTERM; after ``grace`` seconds SIGKILL.  Raises TimeoutError if it survives."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            async with asyncio.timeout(KILL_SECONDS):
                await self.wait()
