"""Processes are identified, followed, ended and reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from deploy.host.child import Child
from deploy.host.files import LogFile, read_tail
from deploy.host.identity import identify

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


async def started(command: list[str], log: Path) -> Child:
    """Start a child and wait until it has written to its log."""
    with LogFile(log).open() as output:
        child = Child.start(command, log=output)
    async with asyncio.timeout(20):
        while not read_tail(log, 1):  # noqa: ASYNC110 - a file gives no event
            await asyncio.sleep(0.01)
    return child


def test_identity_differs_for_another_process_with_the_same_pid() -> None:
    mine = identify(os.getpid())
    assert mine is not None and mine.alive
    assert not msgspec.structs.replace(mine, start_ticks=mine.start_ticks + 1).alive
    assert not msgspec.structs.replace(mine, boot_id="another boot").alive
    assert Child.adopt(msgspec.structs.replace(mine, start_ticks=1)) is None


def test_zombie_is_not_running() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert identify(process.pid) is None


async def test_child_is_followed_by_its_parent_and_by_an_adopter_until_its_end(
    scratch: Path,
) -> None:
    child = await started(["sh", "-c", "echo hello; exec sleep 60"], scratch / "log")
    adopted = Child.adopt(child.identity)
    assert adopted is not None
    assert child.status == adopted.status == "running"
    await child.end(5.0)
    await adopted.wait()
    assert (child.status, adopted.status) == ("killed by SIGTERM", "ended")
    assert identify(child.pid) is None


async def test_child_that_ignores_sigterm_is_killed(scratch: Path) -> None:
    child = await started([sys.executable, "-c", IGNORES_SIGTERM], scratch / "log")
    await child.end(0.1)
    assert child.status == f"killed by {signal.SIGKILL.name}"
