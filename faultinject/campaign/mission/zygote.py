"""A process that has imported the voter, and forks one voter for each mission.

Theory of operation: the imports take a quarter of a second of processor time, more than a mission.
So they are made once.  A forked voter is the real one: ``voter.daemon.main`` with a configuration
file and inherited listening sockets (the LISTEN_FDS convention).  It is a process of its own, so it
can be killed, stopped and damaged without effect on anything else.

``python -m faultinject.campaign.mission.zygote`` has a unix socket as standard input.  The first
message carries the listening sockets.  Then each line of JSON starts a voter and is answered by its
process id.  The zygote ends when the socket does, and the kernel ends its voters with it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path

from deploy.host.spawn import end_with_parent, python_command, python_environment
from voter import daemon
from voter.sockets import FIRST_FD

__all__ = ["Zygote", "main"]

MOST = 8
"""Most sockets that can be passed."""
HIGH_FD = 64
"""Above all descriptors in use: inherited sockets are parked from here on while they move."""
START = 30.0
"""Seconds for the imports, on a busy host."""


class Zygote:
    """The process, as its parent controls it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._lost = False

    @classmethod
    async def start(cls, sockets: dict[str, socket.socket], log: Path) -> Zygote:
        """Start it with the voters' listening sockets, by their LISTEN_FDNAMES names.

        Raises TimeoutError, OSError.
        """
        ours, theirs = socket.socketpair()
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = await asyncio.create_subprocess_exec(
                *python_command(__name__),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env=python_environment(),
                start_new_session=True,
            )
        finally:
            os.close(errors)
            theirs.close()
        fds = [sock.fileno() for sock in sockets.values()]
        socket.send_fds(ours, [":".join(sockets).encode()], fds)
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        zygote = cls(process, reader, writer)
        async with asyncio.timeout(START):
            if await reader.readline() != b"ready\n":
                raise OSError(f"the process that forks voters did not start: see {log}")
        return zygote

    async def fork(self, config: Path, log: Path) -> int:
        """Start a voter; return its process id.  Raises OSError, TimeoutError.

        After a failure it starts no more voters: a late answer could be mistaken for the next one.
        """
        if self._lost:
            raise OSError("the process that forks voters did not answer in time")
        self._lost = True  # until the answer has come
        self._writer.write(json.dumps([str(config), str(log)], allow_nan=False).encode() + b"\n")
        async with asyncio.timeout(START):
            line = await self._reader.readline()
        self._lost = False
        if not line.strip().isdigit():
            raise OSError("the process that forks voters has ended")
        return int(line)

    async def end(self) -> None:
        """End it, and all its voters."""
        self._writer.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def main() -> int:
    """Fork voters until standard input ends."""
    channel = socket.socket(fileno=os.dup(0))
    names, fds, _, _ = socket.recv_fds(channel, 4096, MOST)
    if not names:
        return 0
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    gc.collect()
    gc.freeze()  # pages shared with the voters stay shared
    stream = channel.makefile("rwb", buffering=0)
    stream.write(b"ready\n")
    own = os.getpid()
    while line := stream.readline():
        config, log = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                end_with_parent(own)
                channel.close()
                stream.close()
                status = _become_voter(config, log, names.decode(), fds)
            finally:
                os._exit(status)
        stream.write(b"%d\n" % child)
    return 0


def _become_voter(config: str, log: str, names: str, fds: list[int]) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    high = [os.dup2(fd, HIGH_FD + at) for at, fd in enumerate(fds)]
    for at, fd in enumerate(high):
        os.dup2(fd, FIRST_FD + at)
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(fds))
    os.environ["LISTEN_FDNAMES"] = names
    return daemon.main(["--config", config])


if __name__ == "__main__":
    sys.exit(main())
