"""Run a command, with or without a deadline, and leave none of its processes behind.

Usage: deadline.py [--grace=SECONDS] SECONDS|none COMMAND [ARGUMENT...]

libvirt starts each QEMU as a daemon: a process without a parent, in a session of its own, without
our environment. So this process makes itself the *subreaper* of everything that it starts (Linux
`prctl`): an orphan becomes its child, and its process tree is always exactly what the command
started. It never ends a process by name.

At the deadline, at SIGINT, SIGTERM or SIGHUP, and when its own parent dies, it sends SIGINT to the
command, waits for it to clean up (--grace), and then ends what is left: SIGTERM, after another
grace period SIGKILL.

Exit status: the command's; 124 if the deadline passed; 128 plus the signal's number if a signal
ended it; 1 if the command succeeded but left a QEMU running. (A daemon that ends automatically
after a while, like the libvirtd of a session, is ended and reported, but is not a failure.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

__all__ = ["descendants", "end_all", "main"]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TERM_GRACE = 15.0  # seconds between SIGINT and SIGTERM, and SIGTERM and SIGKILL; see --grace
KILL_GRACE = 15.0  # seconds until a killed process must be gone
LEAVE = 2.0  # seconds for helpers of a command that has ended (multiprocessing's, say) to end too
POLL = 0.1  # seconds; there is no event for "an orphan of mine has ended"


class Ended(Exception):
    """A signal asks this process to end."""


def become_subreaper() -> None:
    """Adopt every orphan among this process's descendants, and get SIGTERM if the parent dies.

    Raises OSError if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, signal.SIGTERM)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def parents() -> Iterator[tuple[int, int]]:
    """Yield (pid, parent's pid) of every living process; zombies are left out."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended just now
        # The command's name is in parentheses and may contain anything.
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state not in "ZX":
            yield int(entry.name), int(parent)


def descendants(root: int) -> list[int]:
    """Return the pids of all living processes below `root`, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = [root]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        found += level
    return found


def describe(pid: int) -> str:
    """Return the command line of a process, shortened."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return "(gone)"
    return words.decode(errors="replace").strip()[:160]


def reap() -> None:
    """Collect the exit statuses of children and adopted orphans that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def end_all(grace: float = TERM_GRACE) -> list[str]:
    """End every descendant of this process and return what they were ("PID COMMAND").

    Asks with SIGTERM first, kills after `grace` seconds, and looks until none is left, because a
    process may start another while it is being ended. Raises TimeoutError if one survives SIGKILL.
    """
    seen: dict[int, str] = {}
    start = time.monotonic()
    asked: set[int] = set()
    while pids := descendants(os.getpid()):
        waited = time.monotonic() - start
        if waited > grace + KILL_GRACE:
            raise TimeoutError(f"cannot end: {[describe(pid) for pid in pids]}")
        for pid in pids:
            seen.setdefault(pid, f"{pid} {describe(pid)}")
            if waited > grace or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if waited > grace else signal.SIGTERM)
        reap()
        time.sleep(POLL)
    reap()
    return list(seen.values())


def wait_for_descendants(seconds: float) -> None:
    """Wait until no descendant is left, for so many seconds at most."""
    until = time.monotonic() + seconds
    while descendants(os.getpid()) and time.monotonic() < until:
        reap()
        time.sleep(POLL)


def raise_ended(number: int, _frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that the command's processes are ended on the way out."""
    raise Ended(signal.Signals(number).name)


def main(arguments: list[str]) -> int:
    """Run the command and return the exit status described above."""
    grace = TERM_GRACE
    if arguments[0].startswith("--grace="):
        grace = float(arguments.pop(0).partition("=")[2])
    seconds, command = None if arguments[0] == "none" else float(arguments[0]), arguments[1:]
    become_subreaper()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, raise_ended)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"==> the deadline of {seconds:.0f} s has passed: ending the command", flush=True)
        status = 124
    except Ended as ended:
        print(f"==> {ended}: ending the command", flush=True)
        status = 128 + signal.Signals[str(ended)].value
    finished = process.returncode is not None
    if not finished:
        with contextlib.suppress(subprocess.TimeoutExpired, Ended):
            process.send_signal(signal.SIGINT)
            process.wait(timeout=grace)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # what is left is ended in any case
    if finished:
        wait_for_descendants(LEAVE)
    left = end_all(grace)
    if not finished:
        return status
    if left:
        print("==> the command left these processes running; ending them:", flush=True)
        print("".join(f"    {line}\n" for line in left), flush=True)
    if status == 0 and any(
        "qemu-system" in line.partition(" ")[2].partition(" ")[0] for line in left
    ):
        print("==> the command left a QEMU running, which is a failure", flush=True)
        return 1
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
