"""A bound on the processor time of one process, by a control group of the kernel.

The group has the lowest weight: it gets what others leave.  Its quota bounds it on an idle host
too.  Nothing is recorded: the group's name holds the process id, so any later process can lift the
bound or remove what is left.  Control groups are often closed to a process, or to all of a
container.  Then there is no bound, and the caller lowers the priority instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import structlog

__all__ = ["GROUPS", "LOWEST_WEIGHT", "FULL_SHARE", "Mechanism", "lift", "limit", "sweep"]

GROUPS = Path("/sys/fs/cgroup")
"""Where the kernel's control groups are mounted."""

FULL_SHARE = 100
"""Percent of one processor: no bound."""

LOWEST_WEIGHT = 0
"""As a share: the lowest weight without a quota, so all of an idle processor."""

Mechanism = Literal["none", "cgroup v1", "cgroup v2", "priority"]
"""How a share was bounded.  `priority`: no control group could be made, and the process has the
lowest priority instead, which bounds it only while others want the processor."""

_PREFIX = "trivisor-share-"
_PERIOD = 100_000
"""Microseconds in which the quota may be used once; the kernel's default."""

Version = Literal["cgroup v1", "cgroup v2"]

_log = structlog.get_logger(__name__)


def limit(pid: int, percent: int) -> Mechanism | None:
    """Bound a process to so many percent of one processor, 0 to 100; return how, None if it cannot.

    FULL_SHARE does nothing.  LOWEST_WEIGHT sets the weight alone.  All threads are bound, also
    those made later.
    """
    if percent >= FULL_SHARE:
        return "none"
    for version, place in _places(pid):
        group = place / f"{_PREFIX}{pid}"
        try:
            group.mkdir(exist_ok=True)
            _bound(group, version, percent)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            _log.info("no control group", group=str(group), reason=error.strerror)
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        return version
    return None


def lift(pid: int) -> bool:
    """End the bound of a process; return whether it had one.  Does nothing to others."""
    lifted = False
    for version, group in _groups(pid):
        if group.name != f"{_PREFIX}{pid}":
            continue
        # In version 2 a group with bounded children has no processes of its own.
        own = [place for other, place in _groups(os.getpid()) if other == version]
        for place in (group.parent, *own):
            try:
                (place / "cgroup.procs").write_text(str(pid))
            except OSError:
                continue
            lifted = True
            break
        with contextlib.suppress(OSError):  # `sweep` removes it once it is empty
            group.rmdir()
    return lifted


def sweep() -> None:
    """Remove the groups of processes that have ended, where this process would make its own."""
    for _, place in _places(os.getpid()):
        for group in place.glob(f"{_PREFIX}*"):
            if not Path("/proc", group.name.removeprefix(_PREFIX)).exists():
                with contextlib.suppress(OSError):
                    group.rmdir()


def _bound(group: Path, version: Version, percent: int) -> None:
    quota = percent * _PERIOD // 100
    if version == "cgroup v1":
        _write(group / "cpu.shares", "2")
        if percent:
            _write(group / "cpu.cfs_period_us", str(_PERIOD))
            _write(group / "cpu.cfs_quota_us", str(quota))
    else:
        _write(group / "cpu.weight", "1")
        if percent:
            _write(group / "cpu.max", f"{quota} {_PERIOD}")


def _write(file: Path, text: str) -> None:
    """Set a value of a group.  Raises OSError, also if the directory is not a control group."""
    with file.open("r+", encoding="ascii") as opened:
        opened.write(text)


def _places(pid: int) -> Iterator[tuple[Version, Path]]:
    """Yield where a group that bounds this process's time may be made."""
    for version, group in _groups(pid):
        if version == "cgroup v1":
            yield version, group
            continue
        # Only the root may have both processes and bounded children: else the parent has them.
        for place in (group, group.parent):
            with contextlib.suppress(OSError):
                if "cpu" in (place / "cgroup.subtree_control").read_text().split():
                    yield version, place


def _groups(pid: int) -> Iterator[tuple[Version, Path]]:
    """Yield the groups that bound a process's time, as far as they can be seen."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # it has ended
    for line in lines:
        number, controllers, path = line.split(":", 2)
        inside = path.removeprefix("/")
        if "cpu" in controllers.split(","):
            for root in (GROUPS / controllers, GROUPS / "cpu"):
                if (root / inside / "cgroup.procs").exists():
                    yield "cgroup v1", root / inside
                    break
        elif number == "0" and (GROUPS / inside / "cgroup.procs").exists():
            yield "cgroup v2", GROUPS / inside
