"""A voter that has not begun: everything is imported, and it waits to be told its sockets.

``python -m deploy.supervisor.standby_voter --config FILE`` with a unix socket as its standard
input.  One message on
it, the names of the listening sockets with their descriptors, makes this process the voter: from
then on it is ``python -m voter --config FILE``, in the LISTEN_FDS convention.  Until then it has
opened nothing, neither configuration nor journal.  If the socket ends instead, so does the process:
a spare does not outlive its supervisor.

Importing takes a quarter of a second of processor time, more where guests have the processors: that
is what a spare saves a voter that is started again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Sequence

from voter import daemon
from voter.sockets import FIRST_FD

__all__ = ["main"]

HIGH_FD = 64
MOST = 16
"""Sockets that can be handed over."""


def main(arguments: Sequence[str]) -> int:
    """Wait, then run the voter; return its exit status (0 if it never came to that)."""
    with socket.socket(fileno=0) as channel:
        try:
            message, fds, _, _ = socket.recv_fds(channel, 4096, MOST)
        except ConnectionResetError:
            return 0
    if not message:
        return 0
    os.open(os.devnull, os.O_RDONLY)  # the lowest free number: standard input
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in fds]
    for fd in fds:
        os.close(fd)
    for at, fd in enumerate(high):
        os.dup2(fd, FIRST_FD + at)
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(fds))
    os.environ["LISTEN_FDNAMES"] = message.decode().strip()
    return daemon.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
