"""The CPU priority of a QEMU process: always below the voter's, sometimes below the other guests'.

Linux keeps a nice value for each thread.  With autogroups, which most kernels use, it only counts
among the threads of one session.  QEMU has its own session, so the session's value decides.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from pathlib import Path

import structlog

__all__ = ["LOWEST", "Yielding", "set_lowest", "set_nice"]

LOWEST = 19
"""The lowest priority: about 4 % of a CPU that a guest at nice 5 also wants, and all idle time."""

_PASSES = 20
"""Passes over a process's threads at most; one more follows each pass that found a new thread."""

_GROUP_TIMEOUT = 2.0
"""Seconds of retrying to set a session's value: without root the kernel allows ten a second."""

_AUTOGROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")
_CAP_SYS_NICE = 23
_FIRST_USER_NAMESPACE = "user:[4026531837]"  # the kernel's number for the host's user namespace

_log = structlog.get_logger(__name__)


async def set_nice(pid: int, *, nice: int) -> bool:
    """Set the nice value (0 to 19) of all threads of a process; return False if not permitted.

    Threads created later inherit it.  The session's value is set too; a process in the root group
    has none (EINVAL) and needs none.
    """
    try:
        _set_threads(pid, nice)
        await _set_group(pid, nice)
    except OSError as error:
        _log.warning(
            "cannot set a guest's priority",
            pid=pid,
            nice=nice,
            error=str(error),
            error_code="TV0120",
        )
        return False
    return True


async def set_lowest(pid: int, *, revertible_to: int) -> bool:
    """Give a process the lowest priority if `set_nice` can revert it; return whether it did.

    Anybody may raise a session's priority again.  Raising a thread's priority needs root or
    RLIMIT_NICE.  If this fails half way, the caller reverts it with `set_nice`.
    """
    try:
        threads, group = _may_raise(pid, revertible_to), _grouped(pid)
        if threads:
            _set_threads(pid, LOWEST)
        if group:
            await _set_group(pid, LOWEST)
    except OSError as error:
        _log.warning(
            "cannot lower a guest's priority", pid=pid, error=str(error), error_code="TV0120"
        )
        return False
    return threads or group


class Yielding:
    """Which of a guest's QEMUs, one after another, has the lowest priority instead of `nice`."""

    def __init__(self, nice: int) -> None:
        self._nice = nice
        self._wanted = False  # what was asked for last: a QEMU that starts must know
        self._starting: int | None = None  # the pid of a QEMU that libvirt has not started yet
        self._lowered: int | None = None  # the pid of a QEMU that has the lowest priority
        self._irreversible: int | None = None  # the pid of one whose priority cannot be raised

    def yields(self, pid: int | None) -> bool:
        """Return whether this QEMU has the lowest priority."""
        return pid is not None and self._lowered == pid

    async def set(self, pid: int | None, yields: bool) -> None:
        """Lower this QEMU's priority, or raise it again; do nothing if that is impossible.

        Without a pid, this is for the QEMU that starts, now or next.
        """
        self._wanted = yields
        pid = pid or self._starting
        if pid is None or yields == self.yields(pid) or (yields and pid == self._irreversible):
            return
        if yields:
            self._lowered = pid
            if await set_lowest(pid, revertible_to=self._nice):
                return
            self._irreversible = pid
        if await set_nice(pid, nice=self._nice):
            self._lowered = None

    async def begin(self, pid: int | None) -> None:
        """Take the pid of a QEMU that is being started; None once its start is over.

        It yields from now on if it must.  Its start takes .3 s of processor time.
        """
        self._starting = pid
        if pid is not None:
            await self.set(pid, self._wanted)

    async def started(self, pid: int) -> None:
        """Give a new QEMU the value `nice`, or the lowest priority if it must yield."""
        if not self.yields(pid):
            await set_nice(pid, nice=self._nice)
        await self.set(pid, self._wanted)

    async def end(self, pid: int) -> None:
        """Give a QEMU whose priority is unknown the value `nice`."""
        self._lowered = None if await set_nice(pid, nice=self._nice) else pid


def _set_threads(pid: int, nice: int) -> None:
    """Set the value of all threads, including those created meanwhile.

    A new thread inherits the value of its creator, so the pass that changes nothing is the last.
    """
    tasks = Path(f"/proc/{pid}/task")
    for _ in range(_PASSES):
        changed = [_set_thread(int(thread.name), nice) for thread in tasks.iterdir()]
        if not any(changed):
            return
    raise OSError(errno.EAGAIN, "it creates threads too fast", str(tasks))


def _set_thread(thread: int, nice: int) -> bool:
    """Set a thread's value; return False if it already has that value or has ended."""
    try:
        if os.getpriority(os.PRIO_PROCESS, thread) == nice:
            return False
        os.setpriority(os.PRIO_PROCESS, thread, nice)
    except ProcessLookupError:
        return False
    return True


async def _set_group(pid: int, nice: int) -> None:
    """Set the value of a process's session, if it has one."""
    group = Path(f"/proc/{pid}/autogroup")
    if not group.exists():
        return
    deadline = time.monotonic() + _GROUP_TIMEOUT
    while True:
        try:
            group.write_text(str(nice))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            if error.errno != errno.EAGAIN or time.monotonic() >= deadline:
                raise
        else:
            return
        await asyncio.sleep(0.02)  # the kernel sends no event when it accepts changes again


def _grouped(pid: int) -> bool:
    """Return whether the value of the process's session counts."""
    try:
        enabled = _AUTOGROUPS.read_text().strip() == "1"
    except FileNotFoundError:
        return False
    return enabled and Path(f"/proc/{pid}/autogroup").exists()


def _may_raise(pid: int, nice: int) -> bool:
    """Return whether this process may set threads with a higher nice value back to `nice`."""
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_NICE)  # from 1 for 19 to 40 for -20
    except PermissionError:  # another user's: then the capability decides
        limit = 0
    if limit == resource.RLIM_INFINITY or limit >= 20 - nice:
        return True
    status = Path("/proc/thread-self/status").read_text()
    capable = int(status.partition("CapEff:")[2].split()[0], 16) >> _CAP_SYS_NICE & 1
    return bool(capable) and os.readlink("/proc/self/ns/user") == _FIRST_USER_NAMESPACE
