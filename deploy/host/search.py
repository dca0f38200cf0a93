"""Processes found by what they use, whether or not they were recorded.

A process of a node has its node's directory as its working directory, and PROCESS_NAME in its
environment.  A QEMU has its guest's disk open.  Both follow a directory that is moved, and neither
is true of a copy.

Standard library only: the guard imports this module (``deploy.host.guard``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from deploy.host.spawn import PROCESS_NAME

__all__ = ["command_line", "other_pids", "programs_in", "running_qemus", "uses_disk"]


def other_pids() -> Iterator[int]:
    """Yield the pid of each process on this host, except this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield int(entry.name)


def command_line(pid: int) -> list[str]:
    """Return a process's command line; empty if it has ended or is a zombie."""
    try:
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return []
    return words.removesuffix("\0").split("\0") if words else []


def programs_in(directory: Path) -> Iterator[tuple[int, str]]:
    """Yield pid and name (PROCESS_NAME) of each process of a node that works in the directory.

    After the directory was deleted, its last path decides; after its file system was unmounted, the
    path in the command line.  A voter that still waits for its sockets is a "standby".
    """
    try:
        wanted = directory.stat()
    except OSError:
        wanted = None
    deleted = f"{os.path.realpath(directory)} (deleted)"
    mark = f"{PROCESS_NAME}=".encode()
    for pid in other_pids():
        entry = Path(f"/proc/{pid}")
        try:
            place = entry / "cwd"
            here = wanted is not None and os.path.samestat(place.stat(), wanted)
            gone = os.readlink(place) == deleted
            if not here and not gone and not (wanted is None and _lost(place, directory, entry)):
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
            standby = os.readlink(entry / "fd" / "0").startswith("socket:")
        except OSError:
            continue  # it has ended, or is another user's
        for variable in variables:
            name = variable.removeprefix(mark).decode(errors="replace")
            if variable.startswith(mark) and name:
                yield pid, "standby" if name == "voter" and standby else name


def running_qemus() -> Iterator[tuple[int, str]]:
    """Yield the pid and the machine's uuid of each QEMU that runs on this host."""
    for pid in other_pids():
        words = command_line(pid)
        if "-uuid" in words[:-1]:
            yield pid, words[words.index("-uuid") + 1]


def uses_disk(pid: int, disk: Path, *, moved: bool = False) -> bool:
    """Return whether a process has this very file open, or had it at this path until its deletion.

    A copy of the file is another one.  With `moved`, a deleted file in a deleted directory also
    counts if it had the name of `disk`.  If the process is another user's, the path in its command
    line decides.
    """
    try:
        wanted = disk.stat()
    except OSError:
        wanted = None
    try:
        files = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return any(str(disk) in word for word in command_line(pid))
    except OSError:
        return False  # it has ended
    for entry in files:
        try:
            place, deleted, _ = os.readlink(entry).partition(" (deleted)")
            file = Path(place)
            if wanted is not None and os.path.samestat(entry.stat(), wanted):
                return True
            if wanted is None and file.name == disk.name and _lost(entry, disk, entry.parents[1]):
                return True
        except OSError:
            continue  # just closed
        if deleted and (
            place == os.path.realpath(disk)
            or (moved and file.name == disk.name and not file.parent.exists())
        ):
            return True
    return False


def _lost(link: Path, path: Path, process: Path) -> bool:
    """Return whether what `link` refers to has no path, and the process was started with `path`."""
    if os.readlink(process / "ns" / "mnt") != os.readlink("/proc/self/ns/mnt"):
        return False  # a container's: the same path means another directory
    try:
        if os.path.samestat(os.stat(os.readlink(link)), link.stat()):
            return False
    except (FileNotFoundError, NotADirectoryError):
        pass  # nothing has that path
    words = command_line(int(process.name))
    named = (os.fspath(path), f"{path}/", f'"{path}"')
    return any(word == named[0] or named[1] in word or named[2] in word for word in words)
