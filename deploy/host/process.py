"""The QEMU process behind a guest: found, proven, watched. Linux's /proc and pidfds."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from deploy.host.subreaper import become_subreaper

__all__ = [
    "QemuProcess",
    "adopt_orphans",
    "bound_files",
    "find_qemu",
    "ram_file",
    "resident_bytes",
]

_NO_CHILD_PAUSE = 0.05
_OTHERS_PAUSE = 0.02
"""Seconds."""

_log = structlog.get_logger(__name__)


def adopt_orphans() -> None:
    """Make this process the parent of the QEMUs that it starts, instead of the host's init.

    Libvirt detaches QEMU, so that its parent becomes init. A dead QEMU stays a zombie until that
    reaps it, and libvirt waits for just that: measured 1.2 to 2 s with an init that looks once a
    second, 0.2 s where we reap it ourselves. In a container whose init reaps nothing, libvirt would
    wait until it gives up.

    From then on a thread reaps every dead QEMU that was not started by this process itself: also
    those that libvirt starts in passing, to learn what QEMU can do, and those of a child of ours
    that has died.
    """
    with _reaper_lock:
        if _reaper.is_alive():
            return
        try:
            become_subreaper()
        except OSError as error:
            _log.warning("cannot adopt QEMU processes", error=error.strerror)
            return
        _reaper.start()


def _reap_orphans() -> None:
    """Wait for children to end, and reap those that are QEMUs of nobody else here."""
    pause = threading.Event()
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pause.wait(_NO_CHILD_PAUSE)  # none at all: there is nothing to wait for
            continue
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_orphaned_qemu(int(entry.name)):
                _reap(int(entry.name))
        # It may be a child that another part of this process waits for: leave it the time.
        pause.wait(_OTHERS_PAUSE)


_reaper_lock = threading.Lock()
_reaper = threading.Thread(target=_reap_orphans, name="reap orphans", daemon=True)


def find_qemu(uuid: str, *, naming: str) -> int | None:
    """Return the pid of the living QEMU whose machine has this uuid, or None.

    `naming` is a path of ours that its command line must name as well (its disk): with both it is
    ours beyond doubt, whatever libvirt's records say.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_ours(_command_line(int(entry.name)), uuid, naming):
            return int(entry.name)
    return None


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds, in bytes. Raises OSError if it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def ram_file(pid: int, *, size: int) -> Path:
    """Return a path by which a guest's memory can be opened and mapped, if its spec has `ram_file`.

    `size` is the guest's memory in bytes. Raises FileNotFoundError if QEMU holds no such file, and
    OSError if it has ended or is not ours to look into.
    """
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()).startswith("/memfd:") and entry.stat().st_size == size:
            return entry
    raise FileNotFoundError(f"QEMU {pid} has no shared memory file of {size} bytes")


def bound_files(pid: int, *, limit: int) -> None:
    """Let a process make no file longer than `limit` bytes; more ends it.

    A guest that provokes QEMU into complaining without end would fill the disk with QEMU's log.
    """
    try:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
    except OSError as error:
        _log.warning("the size of a guest's files is not bounded", pid=pid, error=str(error))


class QemuProcess:
    """A hold on one process that can never become another: a pidfd. Made in a running event loop.

    `on_exit` is called in that loop once, as soon as the process has ended, unless close() came
    first. Raises ProcessLookupError if there is no such process.
    """

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._loop.add_reader(self._fd, self._exited)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, by the kernel's word at this moment."""
        return not self._gone.is_set() and not _readable(self._fd)

    async def gone(self) -> None:
        """Wait until the process has ended."""
        await self._gone.wait()

    def kill(self) -> None:
        """Kill the process at once. Raises PermissionError if it is another user's."""
        self._signal(signal.SIGKILL)

    def wake(self) -> None:
        """Let the process go on if a signal had stopped it."""
        try:
            self._signal(signal.SIGCONT)
        except PermissionError:
            _log.debug("not ours to wake", pid=self.pid)

    def close(self) -> None:
        """Let go of the process; it lives on."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _signal(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                _log.debug("it had ended already", pid=self.pid)

    def _exited(self) -> None:
        try:
            # Ours only if it is our child (adopt_orphans); else its parent reaps it.
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            _log.debug("its parent reaps it", pid=self.pid)
        self.close()
        self._gone.set()
        self._on_exit()


def _readable(fd: int) -> bool:
    """A pidfd becomes readable when its process ends."""
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _is_orphaned_qemu(pid: int) -> bool:
    """Whether it is a dead QEMU that libvirt started here: ours by adoption, in another session."""
    try:
        name, rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    except OSError:
        return False
    state, parent, _group, session = rest.split()[:4]
    dead_child = state == "Z" and int(parent) == os.getpid()
    return dead_child and "(qemu-" in name and int(session) != os.getsid(0)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        _log.debug("reaped by another", pid=pid)


def _command_line(pid: int) -> list[str]:
    """The words of a process's command line; empty if it has ended or is a zombie."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def _is_ours(words: Iterable[str], uuid: str, naming: str) -> bool:
    words = list(words)
    if "-uuid" not in words[:-1] or not any(naming in word for word in words):
        return False
    return words[words.index("-uuid") + 1] == uuid
