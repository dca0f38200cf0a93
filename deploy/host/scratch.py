"""Scratch directories of commands, by which what a killed command left is found and ended.

A command that starts processes makes one and locks it (``ScratchDirectory``).  Each layer ends with
the one above it:

- A command's guard ends everything that the command left (``deploy.host.guard``).
- A campaign's *worker* ends when its standard input does.  The runner's death closes it, even by
  SIGKILL.  The worker then closes its node, or kills it after ``worker.CLOSE_GRACE`` seconds.
- The *zygote* ends when its socket does, and the kernel kills *voters* with the zygote
  (PR_SET_PDEATHSIG).
- If command and guard were both killed, processes live on.  The next such command, `trivisor down`
  and `trivisor doctor` find the directory unlocked: the kernel released the lock with the dead
  process.  ``sweep_abandoned`` kills what carries the directory in its environment (``MARKER``),
  and the guests and modules whose command line names it: libvirt gives QEMU another environment.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from deploy.host.files import sweep_links
from deploy.host.identity import wait_end
from deploy.host.search import command_line, other_pids

__all__ = [
    "MARKER", "ScratchDirectory", "end_processes", "find_abandoned", "processes_of",
    "sweep_abandoned",
]  # fmt: skip

LOCK = "scratch.lock"
"""Name of the file that is locked while the directory is in use."""
MARKER = "TRIVISOR_SCRATCH"
"""The variable that names the directory in the environment of what the command starts."""
KILL_TIMEOUT = 10.0
"""Seconds to wait for killed processes to be gone."""


class ScratchDirectory:
    """A directory for what a command starts, until ``close`` or the end of the ``with`` block.

    ``kind``: a lower-case word for its name.  ``below``: where it is made, instead of the directory
    for temporary files.  Raises OSError.
    """

    def __init__(self, kind: str, below: Path | None = None) -> None:
        # A socket's path has at most 107 bytes, so not below the results directory.
        self.path = Path(tempfile.mkdtemp(prefix=f"tv-{kind}-", dir=below)).absolute()
        new = self.path / f".{LOCK}"
        self._lock = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path / LOCK)  # so it is never seen unlocked
        os.environ[MARKER] = str(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make(self, name: str) -> Path:
        """Return an empty directory of this name; end the processes of a former one first."""
        directory = self.path / name
        end_processes(directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        return directory

    def close(self) -> None:
        """Kill the processes that still run there, and remove the directory."""
        if self._lock < 0:
            return
        end_processes(self.path)
        _remove(self.path)
        sweep_links()
        os.close(self._lock)
        self._lock = -1
        if os.environ.get(MARKER) == str(self.path):
            del os.environ[MARKER]


def find_abandoned(below: Path | None = None) -> dict[Path, list[int]]:
    """Return the directories that dead commands of this user left, and the processes of each."""
    return {path: processes_of(path) for path in _abandoned(below)}


def sweep_abandoned(
    progress: Callable[[str], None] = lambda _: None, below: Path | None = None
) -> list[Path]:
    """End and remove what dead commands of this user left; return their directories.

    ``below``: where they made them, as for ``ScratchDirectory``.
    """
    swept = []
    for path in _abandoned(below):
        if processes_of(path):
            progress(f"ending the processes that a killed command left in {path}")
            end_processes(path)
        _remove(path)
        swept.append(path)
    if swept:
        sweep_links()
    return swept


def _remove(path: Path) -> None:
    """Remove a directory, its lock last: if this is interrupted, a sweep finds the rest."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK:
            entry.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _abandoned(below: Path | None) -> Iterator[Path]:
    """Yield each directory of this user that no process has locked, while we hold its lock."""
    for path in sorted((below or Path(tempfile.gettempdir())).glob("tv-[a-z]*-*")):
        with contextlib.suppress(OSError):  # in use, or being swept by another process
            if path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path.absolute()
            finally:
                os.close(lock)


def processes_of(directory: Path) -> list[int]:
    """Return the pids of the processes of a directory: by its marker, or by their command line."""
    return [pid for pid in other_pids() if _belongs(pid, directory)]


def end_processes(directory: Path) -> list[int]:
    """Kill the processes of a directory, and wait until they are gone; return their pids.

    A process that starts another meanwhile, as a watchdog does, is killed in the next turn.
    """
    killed: list[int] = []
    deadline = time.monotonic() + KILL_TIMEOUT
    while (found := processes_of(directory)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                _kill(pid, directory)
        killed += found
        for pid in found:
            wait_end(pid, max(0.0, deadline - time.monotonic()))
    return killed


def _kill(pid: int, directory: Path) -> None:
    """Kill a process if its pid has not been reused."""
    pidfd = os.pidfd_open(pid)
    try:
        if _belongs(pid, directory):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _belongs(pid: int, directory: Path) -> bool:
    """Return whether a process carries the directory's marker, or is a guest or module there.

    A user's editor on a log there is not.  A zombie has no command line any more.
    """
    name = os.fspath(directory)
    words = command_line(pid)
    if not words:
        return False
    qemu = "qemu-system" in words[0]
    if (qemu or words[1:2] == ["-m"]) and any(w == name or f"{name}/" in w for w in words):
        return True
    entry = Path(f"/proc/{pid}")
    try:
        if qemu and any(  # libvirt may know it by another path
            os.readlink(each).startswith(f"{name}/") for each in (entry / "fd").iterdir()
        ):
            return True
        variables = (entry / "environ").read_bytes().split(b"\0")
        return os.fsencode(f"{MARKER}={name}") in variables
    except OSError:
        return False  # it has just ended, or is another user's
