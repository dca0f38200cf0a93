"""QEMU's debug stub for a guest: a unix socket for a debugger.

A debugger that connects stops the CPU; when it disconnects, the CPU continues.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from deploy.errors import HypervisorFailed
from deploy.machine.hypervisor import Domain, RunState

__all__ = ["DebugStub", "why_no_stub"]

_TIMEOUT = 3.0
"""Seconds for each step; milliseconds are usual."""
_EMULATOR = "qemu-system-x86_64"


def why_no_stub(emulator: str = _EMULATOR) -> str:
    """Return QEMU's error if this host's QEMU has no debug stub, "" if it has one.

    Starts a machine that never runs: 0.1 s.
    """
    with tempfile.TemporaryDirectory(prefix="tvg-") as directory:
        words = [emulator, "-machine", "microvm", "-accel", "tcg", "-nodefaults"]
        words += ["-display", "none", "-S", "-monitor", "stdio"]
        words += ["-gdb", f"unix:{directory}/stub,server=on,wait=off"]
        try:
            done = subprocess.run(
                words, check=False, input=b"quit\n", capture_output=True, timeout=10 * _TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if not done.returncode:
        return ""
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    return errors[-1] if errors else f"it ended with status {done.returncode}"


class DebugStub:
    """The debug stub of a running domain, at the unix socket ``path``."""

    def __init__(self, domain: Domain, path: Path) -> None:
        self.path = path
        self._domain = domain
        self._ran = False

    async def start(self) -> None:
        """Have QEMU listen.  Raises HypervisorFailed if it cannot."""
        self._ran = await self._runs()
        device = f"unix:{str(self.path).replace(',', ',,')},server=on,wait=off"
        answer = await self._domain.monitor(f"gdbserver {device}", timeout=_TIMEOUT)
        if not answer.startswith("Waiting for gdb"):
            raise HypervisorFailed(f"QEMU has no debug stub at {self.path}: {answer}")

    async def end(self) -> None:
        """Stop listening; the CPU runs or not as before `start`.  Raises HypervisorFailed."""
        await self._domain.monitor("gdbserver none", timeout=_TIMEOUT)
        runs = await self._runs()
        if self._ran and not runs:
            await self._domain.resume(timeout=_TIMEOUT)
        elif runs and not self._ran:
            await self._domain.suspend(timeout=_TIMEOUT)

    async def _runs(self) -> bool:
        return await self._domain.state() is not RunState.PAUSED
