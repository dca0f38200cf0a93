"""QEMU processes as the host sees them: found, verified, watched, killed; and their snapshot disks.

Libvirt detaches QEMU, so init becomes its parent.  A dead QEMU stays a zombie until its parent
reaps it, and libvirt waits for that: measured 1.2 to 2 s with an init that polls once a second.  In
a container whose init reaps nothing, libvirt waits until its own timeout.  `adopt_orphans` makes
this process the parent instead, and a thread reaps each dead QEMU: 0.2 s.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from deploy.errors import CannotRunHere, HypervisorFailed
from deploy.host.install import how_to_install
from deploy.host.search import other_pids, running_qemus, uses_disk
from deploy.host.spawn import become_subreaper
from deploy.machine.account import Account, run_as

__all__ = [
    "QemuProcess",
    "adopt_orphans",
    "find_qemu",
    "last_message",
    "limit_file_size",
    "make_snapshot_disk",
    "note_start",
    "ram_file",
    "suits_io_uring",
]

_NO_CHILD_PAUSE = 0.05
_OTHERS_PAUSE = 0.02
_PID_FILE_PAUSE = 0.01
"""Seconds."""

_SECTOR = 512  # bytes

_FILE_SLACK_MIB = 64
"""How much QEMU may write to a file beyond twice the guest's memory; a snapshot is smaller."""

_log = structlog.get_logger(__name__)


def adopt_orphans() -> None:
    """Become the parent of all QEMUs that libvirt starts from this process, and reap them.

    That includes the QEMUs that libvirt starts to query capabilities, and those of a dead child of
    this process.  QEMUs that this process started itself are not touched.
    """
    with _reaper_lock:
        if _reaper.is_alive():
            return
        try:
            become_subreaper()
        except OSError as error:
            _log.warning("cannot adopt QEMU processes", error=error.strerror, error_code="TV0128")
            return
        _reaper.start()


def _reap_orphans() -> None:
    pause = threading.Event()
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pause.wait(_NO_CHILD_PAUSE)  # no child at all
            continue
        for pid in other_pids():
            if _is_orphaned_qemu(pid):
                _reap(pid)
        # It may be a child that another part of this process waits for: give that part time.
        pause.wait(_OTHERS_PAUSE)


_reaper_lock = threading.Lock()
_reaper = threading.Thread(target=_reap_orphans, name="reap orphans", daemon=True)


def find_qemu(uuid: str, *, disk: Path) -> int | None:
    """Return the pid of the running QEMU whose machine has this uuid, or None.

    It must also use `disk`, a file of the node.  Both together prove that the process is the
    node's, whatever libvirt's records say, and wherever the node's directory was moved.
    """
    for pid, machine in running_qemus():
        if machine == uuid and uses_disk(pid, disk, moved=True):
            return pid
    return None


async def note_start(pid_file: Path, begun: Callable[[int], Awaitable[None]]) -> None:
    """Wait until libvirt, which starts a QEMU, writes its pid to a file; call ``begun`` with it.

    A file that is there already is that of a former QEMU.
    """

    def read() -> tuple[int, int, int] | None:
        try:
            status = pid_file.stat()
            return int(pid_file.read_text(encoding="ascii")), status.st_ino, status.st_mtime_ns
        except (OSError, ValueError):
            return None

    former = read()
    while True:
        found = read()
        if found is not None and found != former:
            return await begun(found[0])
        await asyncio.sleep(_PID_FILE_PAUSE)  # libvirt sends no event before QEMU runs


def ram_file(pid: int, *, size: int) -> Path:
    """Return a path by which a guest's memory can be opened and mapped, if its spec has `ram_file`.

    `size` is the guest's memory in bytes.  Raises FileNotFoundError if QEMU holds no such file, and
    OSError if it has ended or access is denied.
    """
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()).startswith("/memfd:") and entry.stat().st_size == size:
            return entry
    raise FileNotFoundError(f"QEMU {pid} has no shared memory file of {size} bytes")


def limit_file_size(pid: int, *, memory_mib: int, account: Account | None = None) -> None:
    """Have the kernel end a QEMU that writes a file longer than its guest's snapshot can be.

    Without a limit, a guest that makes QEMU log errors endlessly would fill the disk.  `account` is
    that of QEMU, if it is not this process's: in many containers root may not limit other users.
    """
    limit = (2 * memory_mib + _FILE_SLACK_MIB) << 20
    try:
        if account is None or not account.own:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
        else:
            run_as(account, "prlimit", f"--pid={pid}", f"--fsize={limit}")
    except (OSError, subprocess.CalledProcessError) as error:
        _log.warning(
            "cannot limit the size of a guest's files",
            pid=pid,
            error=str(error),
            error_code="TV0120",
        )


def last_message(log: Path) -> str:
    """Return what the last QEMU of libvirt's log printed last, after a colon."""
    text = ""
    if log.exists():
        text = log.read_text(encoding="utf-8", errors="replace").rpartition("starting up")[2]
    lines = [line for line in text.splitlines() if line.startswith("qemu-system-")]
    return f": {lines[-1]}" if lines else " (no message; too little memory makes a guest reset)"


async def make_snapshot_disk(path: Path) -> None:
    """Make an empty qcow2 file that will hold a snapshot, in place of what is at `path`.

    Raises CannotRunHere without qemu-img, HypervisorFailed if qemu-img fails.
    """
    path.unlink(missing_ok=True)
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise CannotRunHere(
            "qemu-img is missing", remedy=how_to_install("qemu-img"), error_code="TV0103"
        ) from error
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise HypervisorFailed(
            f"cannot make {path}: {errors.decode(errors='replace').strip()}", error_code="TV0121"
        )
    os.truncate(path, -(-path.stat().st_size // _SECTOR) * _SECTOR)
    path.chmod(0o600)  # it will hold the guest's memory


def suits_io_uring(disk: Path) -> bool:
    """Return whether QEMU can read this file with io_uring; False if there is none.

    QEMU 7.2 rounds the size of a file up to whole sectors.  If it reads beyond the end then, it
    waits for ever.  So the files of `make_snapshot_disk` have whole sectors, unless damaged.
    """
    return disk.exists() and disk.stat().st_size % _SECTOR == 0


class QemuProcess:
    """A running process and its pidfd, which never refers to another process.

    Made in a running event loop, which calls `on_exit` once when the process has ended, unless
    close() came first.  Raises ProcessLookupError if there is no such process.
    """

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(self._fd, self._exited)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, as the kernel reports it now."""
        return not self._ended.is_set() and not _readable(self._fd)

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self._ended.wait()

    def kill(self) -> None:
        """Kill the process at once.  Raises PermissionError if it is another user's."""
        self._signal(signal.SIGKILL)

    def wake(self) -> None:
        """Continue the process if a signal had stopped it."""
        try:
            self._signal(signal.SIGCONT)
        except PermissionError:
            _log.debug("no permission to continue a process", pid=self.pid)

    def close(self) -> None:
        """Stop watching the process; it continues to run."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _signal(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                _log.debug("the process had already ended", pid=self.pid)

    def _exited(self) -> None:
        try:
            # Reaps it if it is this process's child (adopt_orphans); otherwise its parent does.
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            _log.debug("another process reaps it", pid=self.pid)
        self.close()
        self._ended.set()
        self._on_exit()


def _readable(fd: int) -> bool:
    """Return whether a pidfd is readable, which means that its process has ended."""
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _is_orphaned_qemu(pid: int) -> bool:
    """Return whether it is a zombie QEMU that libvirt started: our child, in another session."""
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
        _log.debug("another thread reaped it", pid=pid)
