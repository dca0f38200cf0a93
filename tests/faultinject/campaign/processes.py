"""Processes of a test, which outlive neither the test nor the test run.

A test run may end by Ctrl-C, SIGTERM or SIGKILL, and fixtures are torn down only after the first.
So the kernel kills each process when its parent ends (``following``).  A killed runner or Dask
worker closes the pipe to its node, and the node ends its guests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from deploy.host.identity import wait_end
from deploy.host.scratch import end_processes
from faultinject.bench.usage import family

__all__ = ["Processes", "following", "kill_command"]

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 20.0
"""Seconds for a process to end after SIGTERM. It is killed then."""

# $0 is the expected parent.  If it has ended already, nothing is started.
START = '[ "$PPID" = "$0" ] && exec "$@"'


def following(*command: str) -> list[str]:
    """Return a command that the kernel kills as soon as this process ends.

    Start it in the main thread: to the kernel the thread that starts a process is its parent.
    """
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", START, str(os.getpid()), *command]


def kill_command(guard: subprocess.Popen[bytes]) -> None:
    """Kill a command together with its guard, so that neither cleans up, and wait for both."""
    pids = family(guard.pid)[:2]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    guard.wait()
    assert all(wait_end(pid, 30) for pid in pids)


class Processes:
    """A context manager for the processes of one test.  All have ended when it is left.

    Processes are ended in reverse order, each before the next is asked: what others need was
    started first.  Each is asked (SIGTERM), and killed after ``patience`` seconds.  Then guests,
    voters and workers that name a path below ``home`` are killed.
    """

    def __init__(self, home: Path, *, patience: float = PATIENCE) -> None:
        self.home = home
        self._patience = patience
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(
        self, *command: str, log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own.  Its output is appended to ``log``."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                following(*command),
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def end(self) -> None:
        """End all processes, and what they left below ``home``."""
        try:
            for process in reversed(self._started):
                self._end(process)
        finally:  # also if Ctrl-C interrupts the waiting
            for process in self._started:
                process.kill()
            for process in self._started:
                process.wait()
            while end_processes(self.home):  # a worker may have started a guest meanwhile
                pass

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(self._patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
