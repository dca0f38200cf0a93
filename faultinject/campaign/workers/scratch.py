"""Where stations live: short directories, held by the process that made them, swept after its end.

A runner that is killed cannot clear up.  Its workers notice and end their guests themselves; what
is left of one that was killed too is found by whoever makes berths next, by the lock that nobody
holds any more, and ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deploy.host.identity import wait_end

__all__ = ["ScratchDirectories", "end_processes", "processes_of", "sweep_abandoned"]

PREFIX = "tv-c-"
HOLD = "held"
"""Name of the file that is locked for as long as the berths are in use."""
GRACE = 30.0
"""Seconds for what a dead runner left to end by itself; workers give their guests less."""
KILL_PATIENCE = 10.0


class ScratchDirectories:
    """A directory for the stations of one process, for as long as that lives.  Raises OSError."""

    def __init__(self) -> None:
        # Unix sockets end at 107 bytes, so not below the results' directory, which may be deep.
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        aside = self.path / f".{HOLD}"
        self._lock = os.open(aside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        aside.rename(self.path / HOLD)  # never seen without its lock

    def make(self, name: str) -> Path:
        """Return an empty directory of this name; what a former user left there is ended first."""
        berth = self.path / name
        end_processes(berth)
        shutil.rmtree(berth, ignore_errors=True)
        berth.mkdir(mode=0o700)
        return berth

    def close(self) -> None:
        """End what still runs there, and remove it all."""
        if self._lock < 0:
            return
        end_processes(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def sweep_abandoned(progress: Callable[[str], None] = lambda _: None) -> list[Path]:
    """End and remove what dead runners of this user left; return their directories.

    Their workers are given the time to end by themselves.
    """
    swept = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):  # another's, or another sweeps it at this moment
            if path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / HOLD, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if processes_of(path):
                    progress(f"what a runner that was killed left in {path} is ended")
                    _wait_gone(path, GRACE, guests=False)  # a worker ends its own
                    end_processes(path)
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
            finally:
                os.close(lock)
    return swept


def processes_of(directory: Path, *, guests: bool = True) -> list[int]:
    """Return the pids of living QEMUs and Python modules whose command line names the directory.

    Not ``guests``: of the modules (workers, voters) only.
    """
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and _names(entry, directory, guests=guests)
    ]


def end_processes(directory: Path) -> list[int]:
    """Kill what lives in a station's directory, and wait until it is gone; return the pids."""
    killed = processes_of(directory)
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            _kill(pid, directory)
    if killed:
        _wait_gone(directory, KILL_PATIENCE)
    return killed


def _kill(pid: int, directory: Path) -> None:
    """Kill a process if it is still the one that was found, and no other of its number."""
    hold = os.pidfd_open(pid)
    try:
        if _names(Path(f"/proc/{pid}"), directory, guests=True):
            signal.pidfd_send_signal(hold, signal.SIGKILL)
    finally:
        os.close(hold)


def _wait_gone(directory: Path, seconds: float, *, guests: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while found := processes_of(directory, guests=guests):
        left = deadline - time.monotonic()
        if left <= 0 or not wait_end(found[0], left):
            return


def _names(entry: Path, directory: Path, *, guests: bool) -> bool:
    """Whether it is one of ours: a guest, a worker or a voter, not a user's editor on a log there.

    A zombie has no command line any more.
    """
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # it ended just now
    ours = words[1:2] == [b"-m"] or (guests and b"qemu-system" in words[0])
    name = os.fsencode(directory)
    return ours and any(word == name or name + b"/" in word for word in words)
