"""Scratch directories of nodes, and how processes end with their parents.

Each layer ends with the one above it, so that a run that is cut short leaves nothing behind:

- A *worker* ends when its standard input does.  The runner's death closes it, even by SIGKILL.  The
  worker then closes its node, or kills it after ``worker.CLOSE_GRACE`` seconds.
- The *zygote* ends when its socket does, and the kernel kills *voters* with the zygote
  (PR_SET_PDEATHSIG).
- *Guests* are ended by their worker.  If the worker was killed too, they live on, because libvirt
  detaches them.  The next runner sweeps their directory (``sweep_abandoned``), which it recognizes
  by its lock: the kernel released it with the dead process.  All guests and modules whose command
  line names the directory are killed.
- On a Dask cluster the worker's parent is the Dask worker, which closes the worker's input when it
  ends.  If only the campaign was killed, the Dask worker closes its node when it has had no
  mission for ``dask_worker.IDLE`` seconds.
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
LOCK = "lock"
"""Name of the file that is locked while the directories are in use."""
GRACE = 30.0
"""Seconds for the workers of a dead runner to end their guests and themselves."""
KILL_TIMEOUT = 10.0
"""Seconds to wait for killed processes to be gone."""


class ScratchDirectories:
    """The directories of one process's nodes, for its lifetime.  Raises OSError."""

    def __init__(self) -> None:
        # A socket's path has at most 107 bytes, so not below the results directory.
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        new = self.path / f".{LOCK}"
        self._lock = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path / LOCK)  # so it is never seen unlocked

    def make(self, name: str) -> Path:
        """Return an empty directory of this name; end the processes of a former one first."""
        directory = self.path / name
        end_processes(directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        return directory

    def close(self) -> None:
        """Kill the processes that still run there, and remove the directories."""
        if self._lock < 0:
            return
        end_processes(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def sweep_abandoned(progress: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Remove what dead runners of this user left; return their directories.

    Their workers get some time to end before they are killed.
    """
    swept = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):  # in use, or being swept by another process
            if path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if processes_of(path):
                    progress(f"ending the processes that a killed runner left in {path}")
                    _wait_gone(path, GRACE, guests=False)  # a worker ends its guests
                    end_processes(path)
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
            finally:
                os.close(lock)
    return swept


def processes_of(directory: Path, *, guests: bool = True) -> list[int]:
    """Return the pids of QEMUs and Python modules whose command line names the directory.

    Without ``guests``: of modules (workers, voters) only.
    """
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and _names(entry, directory, guests=guests)
    ]


def end_processes(directory: Path) -> list[int]:
    """Kill the processes of a directory, and wait until they are gone; return their pids."""
    killed = processes_of(directory)
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            _kill(pid, directory)
    if killed:
        _wait_gone(directory, KILL_TIMEOUT)
    return killed


def _kill(pid: int, directory: Path) -> None:
    """Kill a process if its pid has not been reused."""
    pidfd = os.pidfd_open(pid)
    try:
        if _names(Path(f"/proc/{pid}"), directory, guests=True):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _wait_gone(directory: Path, seconds: float, *, guests: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while found := processes_of(directory, guests=guests):
        left = deadline - time.monotonic()
        if left <= 0 or not wait_end(found[0], left):
            return


def _names(entry: Path, directory: Path, *, guests: bool) -> bool:
    """Return whether a process is a guest, worker or voter of the directory.

    A user's editor on a log there is not.  A zombie has no command line any more.
    """
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # it has just ended
    ours = words[1:2] == [b"-m"] or (guests and b"qemu-system" in words[0])
    name = os.fsencode(directory)
    return ours and any(word == name or name + b"/" in word for word in words)
