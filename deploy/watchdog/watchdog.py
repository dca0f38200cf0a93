"""The parent of a supervisor: starts it again, keeps its sockets, buries what it leaves behind.

``python -m deploy.watchdog.watchdog [--report-fd N] COMMAND...`` runs the supervisor as its child.

- A supervisor that has come up ("up", below) and then ends unasked is started again: at most
  ``LIMIT`` times within ``WINDOW`` seconds, with a pause that doubles.
- The listening sockets that a supervisor gives it are handed to the next one, so that a voter
  refuses nobody although its supervisor died too.
- QEMU, voter and proxy that outlive a supervisor become this process's children, not init's: when
  the next supervisor ends one of them it is gone at once.  Where init is slow to wait for strangers
  (in containers that takes up to half a minute), libvirt would take the dead QEMU for one that
  refuses to die.

It ends when it has no children left.  Standard library only: it must not die.  What it is told, one
word (or ``keep`` and names, with a descriptor for each) in a message on the socket that it hands
over as "nanny" among LISTEN_FDS; ``deploy.watchdog.client`` is the supervisor's end:

``keep NAME...``  hold these sockets       ``drop``  close them
``up``            start me again           ``down``  do not

SIGTERM and SIGINT are passed on and mean ``down``; SIGHUP means ``down`` and is not passed on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from deploy.host.subreaper import become_subreaper

__all__ = ["LIMIT", "WINDOW", "Watchdog", "main"]

LIMIT = 5
"""Starts anew within WINDOW seconds before a supervisor is given up."""
WINDOW = 60.0
FIRST_PAUSE = 0.2
"""Seconds before the second start anew within the window (the first is at once); doubles."""
FIRST_FD = 3  # where LISTEN_FDS begin (sd_listen_fds(3))
HIGH_FD = 100  # above all that are handed over
CHANNEL = "nanny"
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Watchdog:
    """One supervisor's parent, from its first start until nothing of it is left."""

    def __init__(self, command: Sequence[str], report_fd: int | None) -> None:
        """``report_fd`` is for the first supervisor only, and closed here once it has it."""
        self._command = list(command)
        self._report_fd = report_fd
        self._child = 0  # the supervisor's pid; 0: it has ended, its number may be another's
        self._channel: socket.socket | None = None
        self._kept: dict[str, int] = {}
        self._wanted = False
        self._over = False  # it was told that nothing is to be started any more
        self._due: float | None = None  # steady seconds at which it is started again
        self._starts: list[float] = []  # anew, within the window
        self._restarts = 0
        self._how = ""
        self._status = 0
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in _HEARD:
            signal.signal(number, _noted)

    def run(self) -> int:
        """Look after the supervisor until nothing is left; return its last exit status."""
        self._start()
        while self._reap() or self._due is not None:
            watched: list[int | socket.socket] = [self._wake]
            if self._channel is not None:
                watched.append(self._channel)
            pause = None if self._due is None else max(0.0, self._due - time.monotonic())
            readable, _, _ = select.select(watched, [], [], pause)
            if self._wake in readable:
                self._heed(os.read(self._wake, 512))
            if self._channel in readable:
                self._listen()
            if self._due is not None and time.monotonic() >= self._due:
                try:
                    self._start()
                except OSError:  # too many processes or open files: not for ever, it is hoped
                    self._due = time.monotonic() + 1
        return self._status

    # -------------------------------------------------------------- children

    def _start(self) -> None:
        self._due = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        # Until the child has handlers of its own, a signal to it must not end in our wake-up pipe.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        self._child = os.fork()
        if self._child == 0:
            try:
                self._become_supervisor(theirs)
            finally:
                os._exit(127)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        theirs.close()
        if self._report_fd is not None:
            os.close(self._report_fd)  # the supervisor's alone: its end must be seen
            self._report_fd = None

    def _become_supervisor(self, channel: socket.socket) -> None:
        """In the child: hand over the sockets at 3, 4, ..., and be the supervisor."""
        handed = {**self._kept, CHANNEL: channel.fileno()}
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in handed.values()]
        command = self._command
        if self._report_fd is not None:
            command = [
                *command,
                "--report-fd",
                str(fcntl.fcntl(self._report_fd, fcntl.F_DUPFD, HIGH_FD)),
            ]
        os.closerange(FIRST_FD, HIGH_FD)
        for at, fd in enumerate(high):
            os.dup2(fd, FIRST_FD + at)
            os.close(fd)
        environment = os.environ | {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(handed)),
            "LISTEN_FDNAMES": ":".join(handed),
            "TRIVISOR_RESTARTS": str(self._restarts),
            "TRIVISOR_ENDED": self._how,
        }
        for number in _HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.execve(command[0], command, environment)

    def _reap(self) -> bool:
        """Bury the dead; whether any child lives."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._child = 0
                self._ended(os.waitstatus_to_exitcode(status))

    def _ended(self, status: int) -> None:
        """The supervisor has ended: start it again, unless that was asked for or is no use."""
        while self._channel is not None:  # what it said last
            self._listen()
        self._status = status if status >= 0 else 128 - status
        self._how = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        if not self._wanted or status == 0:
            self._stand_down()
            return
        now = time.monotonic()
        self._starts = [at for at in self._starts if now - at < WINDOW]
        if len(self._starts) >= LIMIT:
            _say(f"the supervisor ended ({self._how}), {LIMIT + 1} times within {WINDOW:g} s: "
                 "it is given up; guests and voter run on without it")  # fmt: skip
            self._stand_down()
            return
        pause = FIRST_PAUSE * 2 ** (len(self._starts) - 1) if self._starts else 0.0
        self._due = now + pause
        self._starts.append(self._due)
        self._restarts += 1
        _say(f"the supervisor ended ({self._how}): it is started again in {pause:g} s")

    # ----------------------------------------------------------- what is said

    def _heed(self, numbers: bytes) -> None:
        """Act on signals."""
        for number in numbers:
            if number == signal.SIGCHLD:
                continue
            self._stand_down()
            if number != signal.SIGHUP and self._child:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child, number)

    def _listen(self) -> None:
        """Take one message of the supervisor's; the channel is None once it has ended."""
        assert self._channel is not None
        try:
            message, fds, _, _ = socket.recv_fds(self._channel, 4096, 16)
        except BlockingIOError:
            # Nothing more, and not the end: something else holds its end of a dead supervisor's.
            message, fds = b"", []
            if self._child:
                return
        except OSError:
            message, fds = b"", []
        word, *names = message.decode(errors="replace").split()[:17] or [""]
        if word == "keep" and len(names) == len(fds) and not self._over:
            self._drop()
            for name, fd in zip(names, fds, strict=True):
                os.set_inheritable(fd, False)
                self._kept[name] = fd
            return
        for fd in fds:
            os.close(fd)
        if word == "":
            self._channel.close()
            self._channel = None
        elif word == "up":
            self._wanted = not self._over
        elif word == "down":
            self._stand_down()
        elif word == "drop":
            self._drop()

    def _stand_down(self) -> None:
        """Start nothing any more, whatever is said later; only bury."""
        self._over = True
        self._wanted = False
        self._due = None
        self._drop()

    def _drop(self) -> None:
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()


def _noted(number: int, frame: object) -> None:
    """Do nothing: the number comes out of the wake-up pipe."""


def _say(text: str) -> None:
    """Write a line into the supervisor's log, in its form."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"event": f"nanny: {text}", "level": "error", "timestamp": at})
    with contextlib.suppress(OSError):  # a full disk, say: that is no reason to give up
        os.write(2, line.encode() + b"\n")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status once it and all it left behind have ended."""
    become_subreaper()
    words = list(arguments)
    report_fd = None
    if words[:1] == ["--report-fd"]:
        report_fd = int(words[1])
        words = words[2:]
    return Watchdog(words, report_fd).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
