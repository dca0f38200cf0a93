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
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy.host.guard import end_children, wait_for_children
from deploy.host.spawn import become_subreaper, end_with_parent

__all__ = ["main"]

TERM_GRACE = 15.0  # seconds between SIGINT and SIGTERM, and SIGTERM and SIGKILL; see --grace
LEAVE = 2.0  # seconds for helpers of a command that has ended (multiprocessing's, say) to end too


class Ended(Exception):
    """A signal asks this process to end."""


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
    end_with_parent(os.getppid(), signal.SIGTERM)
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
        wait_for_children(LEAVE)
    left = end_children(grace)
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
