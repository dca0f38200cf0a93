"""A standby voter: a process that has imported everything and waits for its sockets.

``python -m deploy.supervisor.standby_voter --config FILE`` runs with a unix socket as its standard
input.  One message on it, the names of the listening sockets with their descriptors, makes this
process the voter, as ``python -m voter --config FILE`` with LISTEN_FDS would be.  Until then it
opens nothing, neither configuration nor journal.  It ends when the socket is closed, so it does not
outlive its supervisor.

The imports take 0.25 s of CPU time, and more on a busy host.  A standby saves a restarted voter
that time.
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
"""Sockets that can be passed."""


def main(arguments: Sequence[str]) -> int:
    """Wait, then run the voter; return its exit status, 0 if it was never needed."""
    with socket.socket(fileno=0) as channel:
        try:
            message, fds, _, _ = socket.recv_fds(channel, 4096, MOST)
        except ConnectionResetError:
            return 0
    if not message:
        return 0
    os.open(os.devnull, os.O_RDONLY)  # becomes standard input, the lowest free descriptor
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
