"""QEMU's debug stub for a guest: a unix socket for a debugger.

A debugger that connects stops the CPU; when it disconnects, the CPU continues.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from deploy.errors import HypervisorFailed
from deploy.machine.account import Account
from deploy.machine.hypervisor import Domain, RunState, finish
from deploy.machine.spec import GuestSpec

__all__ = ["debug_stub", "monitor_word", "stub_device", "why_no_stub"]

_TIMEOUT = 3.0
"""Seconds for each step; milliseconds are usual."""
_EMULATOR = "qemu-system-x86_64"


def stub_device(path: str | os.PathLike[str]) -> str:
    """Return QEMU's option for a listening unix socket; QEMU reads a comma that is doubled."""
    # Named: without "path=", QEMU takes what precedes a "=" in the path for the option's name.
    return f"unix:path={os.fspath(path).replace(',', ',,')},server=on,wait=off"


def monitor_word(text: str) -> str:
    """Return a text as one argument of a command of QEMU's human monitor."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def why_no_stub(emulator: str = _EMULATOR) -> str:
    """Return QEMU's error if this host's QEMU has no debug stub, "" if it has one.

    Starts a machine that never runs: 0.1 s.
    """
    with tempfile.TemporaryDirectory(prefix="tvg-") as directory:
        words = [emulator, "-machine", "microvm", "-accel", "tcg", "-nodefaults"]
        words += ["-display", "none", "-S", "-monitor", "stdio"]
        words += ["-gdb", stub_device(f"{directory}/stub")]
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


@contextlib.asynccontextmanager
async def debug_stub(
    domain: Domain, guest: GuestSpec, account: Account | None, alive: Callable[[], bool]
) -> AsyncIterator[Path]:
    """Have a running domain's stub listen on a unix socket until the block ends; yield its path.

    It is in a directory made for that: a QEMU with a user of its own (``account``) may write
    nowhere else.  The CPU stops when a debugger connects.  Afterwards it runs or not as before,
    unless the domain is no longer ``alive``.  Raises HypervisorFailed if QEMU has no stub.
    """
    ran = await _runs(domain)
    place = Path(guest.console_socket).with_suffix(".gdb")
    path = place / "s"
    place.mkdir(mode=0o700, exist_ok=True)
    try:
        if account is not None and account.own:
            os.chown(place, account.uid, account.gid)
        command = f"gdbserver {monitor_word(stub_device(path))}"
        answer = await domain.monitor(command, timeout=_TIMEOUT)
        if not answer.startswith("Waiting for gdb"):
            raise HypervisorFailed(
                f"QEMU has no debug stub at {path}: {answer}", error_code="TV0534"
            )
        yield path
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if alive():  # otherwise the stub ended with QEMU
            await finish(_end(domain, ran=ran))


async def _end(domain: Domain, *, ran: bool) -> None:
    await domain.monitor("gdbserver none", timeout=_TIMEOUT)
    runs = await _runs(domain)
    if ran and not runs:
        await domain.resume(timeout=_TIMEOUT)
    elif runs and not ran:
        await domain.suspend(timeout=_TIMEOUT)


async def _runs(domain: Domain) -> bool:
    return await domain.state() is not RunState.PAUSED
