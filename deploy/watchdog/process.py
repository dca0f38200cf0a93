"""The watchdog: a supervisor's parent, which restarts it, keeps its sockets and reaps its orphans.

``python -m deploy.watchdog.process [--report-fd N] COMMAND...`` runs the supervisor as its child.

- After "up" (below), the watchdog restarts a supervisor that ends without a request to, with a
  pause that doubles.  After ``LIMIT`` restarts within ``WINDOW`` seconds the pause is LONG_PAUSE.
- It keeps duplicates of the supervisor's listening sockets and passes them to the next supervisor.
  So no client is refused while the supervisor and the voter are dead.
- QEMU, voter and proxy that outlive a supervisor become this process's children, which it reaps at
  once.  Some inits, as in containers, take up to half a minute.  Libvirt would report that a dead
  QEMU cannot be ended.

It ends when it has no children left.  It imports the standard library only and must not fail.  Its
messages come through a socket that the supervisor inherits as CHANNEL among LISTEN_FDS
(``deploy.watchdog.client``):

``keep NAME...``  keep these sockets (one descriptor for each name)
``drop``          close them
``up``            restart the supervisor from now on
``down``          restart nothing any more

SIGTERM and SIGINT are forwarded and mean ``down``; SIGHUP means ``down`` and is not forwarded.
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

from deploy.host.spawn import PROCESS_NAME, become_subreaper

__all__ = ["CHANNEL", "LIMIT", "LOG_PREFIX", "WINDOW", "Watchdog", "main"]

LIMIT = 5
"""Restarts within WINDOW seconds; each further one waits LONG_PAUSE seconds.  None is final: what
ends the supervisor, for example a full disk, may pass."""
WINDOW = 60.0
LONG_PAUSE = 30.0
FIRST_PAUSE = 0.2
"""Seconds before the second restart within the window (the first is immediate); doubles."""
FIRST_FD = 3  # where LISTEN_FDS begin (sd_listen_fds(3))
HIGH_FD = 100  # above all descriptors that are passed on
CHANNEL = "watchdog"
LOG_PREFIX = "watchdog: "
"""The start of this process's messages in the supervisor's log."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Watchdog:
    """The parent of one supervisor and its successors, until none of its children is left."""

    def __init__(self, command: Sequence[str], report_fd: int | None) -> None:
        """Only the first supervisor inherits ``report_fd``, which is then closed here."""
        self._command = list(command)
        self._report_fd = report_fd
        self._child = 0  # the supervisor's pid; 0 after it has ended, as the pid may be reused
        self._channel: socket.socket | None = None
        self._kept: dict[str, int] = {}
        self._wanted = False  # restart the supervisor when it ends
        self._final = False  # after "down": restart nothing any more
        self._due: float | None = None  # when the next supervisor starts, by time.monotonic
        self._starts: list[float] = []  # restarts within the window
        self._restarts = 0
        self._ending = ""  # how the last supervisor ended
        self._status = 0
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _ignore)

    def run(self) -> int:
        """Run until no child is left; return the supervisor's last exit status."""
        self._start()
        while self._reap() or self._due is not None:
            watched: list[int | socket.socket] = [self._wake]
            if self._channel is not None:
                watched.append(self._channel)
            pause = None if self._due is None else max(0.0, self._due - time.monotonic())
            readable, _, _ = select.select(watched, [], [], pause)
            if self._wake in readable:
                self._handle_signals(os.read(self._wake, 512))
            if self._channel in readable:
                self._receive()
            if self._due is not None and time.monotonic() >= self._due:
                try:
                    self._start()
                except OSError:  # too many processes or open files: retry
                    self._due = time.monotonic() + 1
        return self._status

    # ---- children

    def _start(self) -> None:
        self._due = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        # Until the child has its own handlers, a signal to it must not write to our wake-up pipe.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._child = os.fork()
        if self._child == 0:
            try:
                self._become_supervisor(theirs)
            finally:
                os._exit(127)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        if self._report_fd is not None:
            os.close(self._report_fd)  # only the supervisor holds it, so its end closes the pipe
            self._report_fd = None

    def _become_supervisor(self, channel: socket.socket) -> None:
        """In the child: put the sockets at descriptors 3, 4, ... and execute the supervisor."""
        passed = {**self._kept, CHANNEL: channel.fileno()}
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in passed.values()]
        command = self._command
        if self._report_fd is not None:
            report = fcntl.fcntl(self._report_fd, fcntl.F_DUPFD, HIGH_FD)
            command = [*command, "--report-fd", str(report)]
        os.closerange(FIRST_FD, HIGH_FD)
        for at, fd in enumerate(high):
            os.dup2(fd, FIRST_FD + at)
            os.close(fd)
        environment = os.environ | {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(passed)),
            "LISTEN_FDNAMES": ":".join(passed),
            "TRIVISOR_RESTARTS": str(self._restarts),
            "TRIVISOR_ENDED": self._ending,
            PROCESS_NAME: "supervisor",
        }
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.execve(command[0], command, environment)

    def _reap(self) -> bool:
        """Reap children that have ended; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._child = 0
                self._supervisor_ended(os.waitstatus_to_exitcode(status))

    def _supervisor_ended(self, status: int) -> None:
        """Schedule the next start, unless the end was requested or restarts do not help."""
        while self._channel is not None:  # its last messages
            self._receive()
        self._status = status if status >= 0 else 128 - status
        self._ending = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        if not self._wanted or status == 0:
            self._stop_restarting()
            return
        now = time.monotonic()
        self._starts = [at for at in self._starts if now - at < WINDOW]
        pause = FIRST_PAUSE * 2 ** (len(self._starts) - 1) if self._starts else 0.0
        if len(self._starts) >= LIMIT:
            pause = LONG_PAUSE
        self._due = now + pause
        self._starts.append(self._due)
        self._restarts += 1
        _log(f"the supervisor ended ({self._ending}): restarting it in {pause:g} s")

    # ---- signals and messages

    def _handle_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                continue
            self._stop_restarting()
            if number != signal.SIGHUP and self._child:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child, number)

    def _receive(self) -> None:
        """Handle one message of the supervisor; the channel is None after its end."""
        assert self._channel is not None
        try:
            message, fds, _, _ = socket.recv_fds(self._channel, 4096, 16)
        except BlockingIOError:
            # No message, and not the end: another process holds a dead supervisor's socket.
            message, fds = b"", []
            if self._child:
                return
        except OSError:
            message, fds = b"", []
        verb, *names = message.decode(errors="replace").split()[:17] or [""]
        if verb == "keep" and len(names) == len(fds) and not self._final:
            self._drop()
            for name, fd in zip(names, fds, strict=True):
                os.set_inheritable(fd, False)
                self._kept[name] = fd
            return
        for fd in fds:
            os.close(fd)
        if verb == "":
            self._channel.close()
            self._channel = None
        elif verb == "up":
            self._wanted = not self._final
        elif verb == "down":
            self._stop_restarting()
        elif verb == "drop":
            self._drop()

    def _stop_restarting(self) -> None:
        """Start nothing any more, whatever messages follow; only reap."""
        self._final = True
        self._wanted = False
        self._due = None
        self._drop()

    def _drop(self) -> None:
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()


def _ignore(number: int, frame: object) -> None:
    """Do nothing: the wake-up pipe delivers the signal's number."""


def _log(text: str) -> None:
    """Write a line into the supervisor's log, in its format."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry = {"event": f"{LOG_PREFIX}{text}", "level": "error", "timestamp": at}
    line = json.dumps(entry, allow_nan=False)
    with contextlib.suppress(OSError):  # for example a full disk: continue without the line
        os.write(2, line.encode() + b"\n")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status once it and all its orphans have ended."""
    become_subreaper()
    words = list(arguments)
    report_fd = None
    if words[:1] == ["--report-fd"]:
        report_fd = int(words[1])
        words = words[2:]
    return Watchdog(words, report_fd).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
