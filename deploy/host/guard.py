"""The guard of a command: whatever ends the command, nothing that it started is left running.

``guard_command`` forks.  The child runs the command, in a session of its own.  The parent is the
guard.  It is the subreaper of everything below it: an orphan becomes its child, also a QEMU that
libvirt has detached.  So its process tree is exactly what the command started.

- The first SIGINT, SIGTERM, SIGHUP or SIGQUIT goes to the command, which cleans up as after Ctrl-C.
  It has ``CLEANUP`` seconds.  A second signal leaves it ``HURRY`` seconds.
- When the command has ended, however it ended, the guard ends what is left.
- If the guard itself is killed, the command gets SIGTERM and cleans up.

If both are killed at once, the scratch directory shows what is left (``deploy.host.scratch``).

Standard library only: .ci/deadline.py imports this module before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from deploy.host.search import command_line, other_pids
from deploy.host.spawn import become_subreaper, end_with_parent

__all__ = ["END_SIGNALS", "describe_process", "end_children", "guard_command", "wait_for_children"]

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask a command to end."""

CLEANUP = 90.0
"""Seconds for a command to clean up after the first signal: `down` may take 60."""
HURRY = 5.0
"""Seconds for it after the second signal."""
REPEAT = 2.0
"""Seconds within which a signal is a copy of the first: `timeout` and a terminal send two, and on a
busy host the second one may be seen late."""
LEAVE = 1.0
"""Seconds for helpers of a command that has ended (multiprocessing's, for example) to end too."""
TERM_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL to what is left."""
KILL_GRACE = 15.0
"""Seconds until a killed process must be gone."""
POLL = 0.05  # seconds; there is no event for "an orphan has become my child"

_SESSION_DAEMONS = frozenset({"libvirtd", "virtqemud", "virtlogd"})
"""Daemons of `qemu:///session`.  Other nodes may use them; unused, they end after 30 s."""


def _stat(pid: int) -> tuple[str, int] | None:
    """Return the command name and the parent of a living process; None of a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None  # it ended just now
    # The name is in parentheses and may contain anything.
    head, _, rest = stat.rpartition(")")
    state, parent = rest.split()[:2]
    return None if state in "ZX" else (head.partition("(")[2], int(parent))


def _children() -> Iterator[tuple[int, str]]:
    """Yield pid and command name of each living child."""
    me = os.getpid()
    for pid in other_pids():
        if (found := _stat(pid)) is not None and found[1] == me:
            yield pid, found[0]


def describe_process(pid: int) -> str:
    """Return pid and command line of a process, shortened."""
    words = os.fsencode(" ".join(command_line(pid))).decode(errors="replace")
    return f"{pid} {words[:160]}"


def _reap(command: int = 0) -> int | None:
    """Reap children that have ended; return the exit status of ``command`` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, found = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == command:
                status = os.waitstatus_to_exitcode(found)
    return status


def wait_for_children(seconds: float) -> None:
    """Wait until no child is left, for so many seconds at most."""
    until = time.monotonic() + seconds
    while any(_children()) and time.monotonic() < until:
        _reap()
        time.sleep(POLL)
    _reap()


def end_children(grace: float = TERM_GRACE, *, spare: frozenset[str] = frozenset()) -> list[str]:
    """End all children of this process, which must be a subreaper, and all that they started.

    Each child gets SIGTERM, and may end its own children.  Its orphans become ours and get it next.
    After ``grace`` seconds all get SIGKILL.  Commands with a name in ``spare`` are left alone.
    Returns pid and command line of each.  Raises TimeoutError if one survives SIGKILL.
    """
    seen: dict[int, str] = {}
    start = time.monotonic()
    while pids := [pid for pid, name in _children() if name not in spare]:
        waited = time.monotonic() - start
        if waited > grace + KILL_GRACE:
            raise TimeoutError(f"cannot end: {[describe_process(pid) for pid in pids]}")
        for pid in pids:  # ours, and not reaped yet: no pid is reused
            new = pid not in seen
            seen.setdefault(pid, describe_process(pid))
            if waited > grace:
                os.kill(pid, signal.SIGKILL)
            elif new:
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)  # it may be stopped
        _reap()
        time.sleep(POLL)
    _reap()
    return list(seen.values())


def guard_command(
    *, leaves: bool = False, after_failure: Callable[[], object] = lambda: None
) -> None:
    """Fork, return in the child as the command, and guard it in the parent until both end.

    ``leaves``: whether what a successful command started continues to run, as a node after `up`.
    ``after_failure``: called in the guard unless the command succeeded: its clean-up may be
    incomplete.  SIGHUP stays ignored if it was (nohup).  Call it while the process has one thread.
    Raises OSError.
    """
    become_subreaper()
    hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ending = frozenset(END_SIGNALS if hangup else set(END_SIGNALS) - {signal.SIGHUP})
    watched = ending | {signal.SIGCHLD, signal.SIGTSTP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    for number in ending:
        signal.signal(number, signal.SIG_DFL)  # an ignored signal cannot be waited for
    guard = os.getpid()
    command = os.fork()
    if command:
        os._exit(_Guard(command, watched, leaves=leaves).run(after_failure))
    os.setsid()  # signals of the terminal reach the guard only
    for number in ending:
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(guard, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Have a signal do what Ctrl-C does: KeyboardInterrupt, or the end of asyncio's main task."""
    signal.raise_signal(signal.SIGINT)


class _Guard:
    """The parent's part of ``guard_command``."""

    def __init__(self, command: int, watched: frozenset[signal.Signals], *, leaves: bool) -> None:
        self._command = command
        self._watched = watched
        self._leaves = leaves
        self._signals: list[int] = []  # that asked to end: two count
        self._first = 0.0  # when the first came
        self._deadline: float | None = None

    def run(self, after_failure: Callable[[], object]) -> int:
        """Return the command's exit status, 128 plus the number if a signal ended it."""
        status = self._wait()
        if status == 0 and self._leaves:
            return 0
        if status is not None and status >= 0 and not self._signals:
            wait_for_children(LEAVE)
        try:
            ended = end_children(spare=_SESSION_DAEMONS)
        except (TimeoutError, OSError) as error:
            _print(f"error: {error}")
            return 1
        if ended:
            _print("these processes were left running and have been ended:", *ended)
        if status != 0:
            after_failure()
        if status is None or -status in self._signals:  # also while Python itself was ending
            return 128 + signal.SIGINT  # as of a command that cleaned up
        return status if status >= 0 else 128 - status

    def _wait(self) -> int | None:
        """Return the command's exit status; None if it does not end in time."""
        while (status := _reap(self._command)) is None:
            if self._deadline is None:
                number = signal.sigwaitinfo(self._watched).si_signo
            else:
                left = self._deadline - time.monotonic()
                info = signal.sigtimedwait(self._watched, max(0.0, left))
                if info is None:
                    _print("the command did not clean up in time: ending it")
                    return _reap(self._command)
                number = info.si_signo
            if number == signal.SIGTSTP:
                self._stop()
            elif number != signal.SIGCHLD:
                self._ask(number)
        return status

    def _ask(self, number: int) -> None:
        """Ask the command to end: the first time gently, the second time soon."""
        now = time.monotonic()
        if not self._signals:
            self._first, self._deadline = now, now + CLEANUP
        elif len(self._signals) == 1 and now - self._first > REPEAT:
            self._deadline = now + HURRY
        else:
            return
        self._signals.append(number)
        os.kill(self._command, number)

    def _stop(self) -> None:
        """Stop the command and ourselves (Ctrl-Z), until a shell continues us."""
        with contextlib.suppress(ProcessLookupError):  # it has not made its session yet
            os.killpg(self._command, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._command, signal.SIGCONT)


def _print(*lines: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        os.write(2, "".join(f"trivisor: {line}\n" for line in lines).encode())
