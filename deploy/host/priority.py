"""The processor priority of a QEMU: behind the voter always, behind other guests for a while.

Linux keeps a nice value for each thread. With autogroups, which most kernels use, it counts only
inside a session, and QEMU has a session of its own: there the session's value decides.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from pathlib import Path

import structlog

__all__ = ["LAST", "hold_back", "step_aside"]

LAST = 19
"""The nice value that goes behind all others: some 4 % of a processor that a guest at nice 5 wants
too, and all that nobody wants."""

_PASSES = 20
"""Looks at the threads of a process at most: one more after each that found a new one."""

_GROUP_PATIENCE = 2.0
"""Seconds of trying to set a session's value: all on a host but root share ten changes a second."""

_AUTOGROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")
_CAP_SYS_NICE = 23
_FIRST_USER_NAMESPACE = "user:[4026531837]"  # the kernel's number for the host's own

_log = structlog.get_logger(__name__)


async def hold_back(pid: int, *, nice: int) -> bool:
    """Put all threads of a process behind others; False where this host does not let us.

    `nice` is 0 (normal) to 19. Threads yet to come inherit it. For a process that stands further
    behind, this is the way back. One that nobody gave a session since boot stands in the root
    group, which has no value to set (EINVAL) and needs none.
    """
    try:
        _set_threads(pid, nice)
        await _set_group(pid, nice)
    except OSError as error:
        _log.warning("cannot set the priority of a guest", pid=pid, nice=nice, error=str(error))
        return False
    return True


async def step_aside(pid: int, *, nice: int) -> bool:
    """Put a process behind all others if `hold_back` to `nice` can take that back; tell whether.

    The value of a session anybody may take back, that of a thread only root, or whom RLIMIT_NICE
    allows it. If it fails half way, it is for the caller to call `hold_back`.
    """
    try:
        threads, group = _may_return(pid, nice), _grouped(pid)
        if threads:
            _set_threads(pid, LAST)
        if group:
            await _set_group(pid, LAST)
    except OSError as error:
        _log.warning("a guest does not step aside", pid=pid, error=str(error))
        return False
    return threads or group


def _set_threads(pid: int, nice: int) -> None:
    """Set the value of all threads, also of those that are made meanwhile.

    A new thread has the value of the one that made it: a look that finds all set is the last one.
    """
    tasks = Path(f"/proc/{pid}/task")
    for _ in range(_PASSES):
        changed = [_set_thread(int(thread.name), nice) for thread in tasks.iterdir()]
        if not any(changed):
            return
    raise OSError(errno.EAGAIN, "its threads come too fast", str(tasks))


def _set_thread(thread: int, nice: int) -> bool:
    """Set the value of a thread; False if it has that value already, or has ended."""
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
    deadline = time.monotonic() + _GROUP_PATIENCE
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
        await asyncio.sleep(0.02)  # nothing tells when the kernel will take it


def _grouped(pid: int) -> bool:
    """Whether the value of its session is what counts for a process."""
    try:
        enabled = _AUTOGROUPS.read_text().strip() == "1"
    except FileNotFoundError:
        return False
    return enabled and Path(f"/proc/{pid}/autogroup").exists()


def _may_return(pid: int, nice: int) -> bool:
    """Whether we may set threads that stand further behind back to a nice value."""
    limit, _ = resource.prlimit(pid, resource.RLIMIT_NICE)  # counts from 1 for 19 to 40 for -20
    if limit == resource.RLIM_INFINITY or limit >= 20 - nice:
        return True
    status = Path("/proc/thread-self/status").read_text()
    held = int(status.partition("CapEff:")[2].split()[0], 16) >> _CAP_SYS_NICE & 1
    return bool(held) and os.readlink("/proc/self/ns/user") == _FIRST_USER_NAMESPACE
