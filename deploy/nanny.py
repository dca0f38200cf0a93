"""The parent of a supervisor: buries the dead that a killed supervisor cannot bury any more.

``python -m deploy.nanny COMMAND...`` runs the supervisor as its child.  QEMU, voter and proxy that
outlive a supervisor become this process's children, not init's: when the next supervisor ends one
of them it is gone at once.  Where init is slow to wait for strangers (in containers that takes up
to half a minute), libvirt would take the dead QEMU for one that refuses to die.  Ends when it has
no children left.  Standard library only; holds nothing open, decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from deploy.subreaper import become_subreaper

__all__ = ["main"]


def main(command: Sequence[str]) -> int:
    """Run the command; return its exit status once it and all it left behind have ended.

    SIGTERM and SIGINT are passed on to it.
    """
    become_subreaper()
    forwarded = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)  # until there is someone to tell
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        os.execv(command[0], list(command))

    supervisor = [child]  # empty once it has ended: its number may then be somebody else's

    def forward(number: int, frame: object) -> None:
        for pid in supervisor:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in forwarded:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    os.closerange(3, 256)  # the report's pipe is the supervisor's: its end must be seen
    status = 0
    while True:
        try:
            pid, wait_status = os.wait()
        except ChildProcessError:
            return status
        if pid in supervisor:
            supervisor.clear()
            child_status = os.waitstatus_to_exitcode(wait_status)
            status = child_status if child_status >= 0 else 128 - child_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
