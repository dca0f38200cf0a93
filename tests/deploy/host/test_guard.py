"""A guard ends whatever its command leaves, however the command or the guard ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.host.guard import REPEAT
from deploy.host.identity import wait_end
from deploy.host.spawn import python_environment

# A guarded command that starts a daemon as libvirt starts a QEMU (a fork, a new session, an empty
# environment), prints its own pid and the daemon's, and waits.  Words say how it behaves.
COMMAND = """
import os, signal, subprocess, sys, time
from deploy.host.guard import guard_command
words = sys.argv[1:]
guard_command(leaves="leaves" in words, after_failure=lambda: print("swept", flush=True))
daemon = "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_DFL)"
if "stubborn" in words:
    daemon = daemon.replace("SIG_DFL", "SIG_IGN")
daemon += "; print(os.getpid(), flush=True) if os.fork() == 0 else os._exit(0); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", daemon], env={}, stdout=subprocess.PIPE, text=True)
pids = f"{os.getpid()} {child.stdout.readline().strip()}"
child.wait()
if "deaf" in words:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
try:
    print(pids, flush=True)  # a signal may come from now on
    while "return" not in words and "fail" not in words:
        time.sleep(0.1)
        if "print" in words:
            print("something to read", flush=True)
except KeyboardInterrupt:
    if "slow" in words:
        print("cleaning up", flush=True)
        time.sleep(300)
    print("cleaned up", flush=True)
    sys.exit(130)
sys.exit(3 if "fail" in words else 0)
"""


@contextmanager
def guarded(*words: str, before: str = "") -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Start the command; yield its guard, and the pids of command and daemon."""
    with subprocess.Popen(
        [sys.executable, "-c", before + COMMAND, *words],
        env=python_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as guard:  # fmt: skip
        command = daemon = 0
        try:
            assert guard.stdout is not None
            command, daemon = map(int, guard.stdout.readline().split())
            yield guard, command, daemon
        finally:
            for pid in filter(None, (guard.pid, command, daemon)):
                if pid == guard.pid:
                    guard.kill()
                elif alive(pid):
                    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    return not wait_end(pid, 0.0)


def read(guard: subprocess.Popen[str]) -> str:
    assert guard.stdout is not None
    return guard.stdout.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signal_has_the_command_clean_up_and_ends_its_daemon(number: signal.Signals) -> None:
    with guarded() as (guard, command, daemon):
        guard.send_signal(number)
        assert guard.wait(30) == 130
        assert read(guard) == "cleaned up\nswept\n"
        assert not alive(command)
        assert not alive(daemon)


@pytest.mark.parametrize("words,code", [(["return"], 0), (["fail"], 3)])
def test_daemon_is_ended_and_named_after_the_command(words: list[str], code: int) -> None:
    with guarded(*words) as (guard, _, daemon):
        assert guard.wait(30) == code
        assert not alive(daemon)
        assert guard.stderr is not None
        assert str(daemon) in guard.stderr.read()


def test_daemon_continues_after_a_successful_command_that_leaves_it() -> None:
    with guarded("leaves", "return") as (guard, _, daemon):
        assert guard.wait(30) == 0
        assert alive(daemon)
        os.kill(daemon, signal.SIGKILL)
    with guarded("leaves", "fail") as (guard, _, daemon):
        assert guard.wait(30) == 3
        assert not alive(daemon)


def test_killed_command_leaves_nothing_and_is_swept() -> None:
    with guarded() as (guard, command, daemon):
        os.kill(command, signal.SIGKILL)
        assert guard.wait(30) == 128 + signal.SIGKILL
        assert read(guard) == "swept\n"
        assert not alive(daemon)


def test_command_cleans_up_when_its_guard_is_killed() -> None:
    with guarded() as (guard, command, _):
        guard.kill()
        assert wait_end(command, 30)
        assert read(guard) == "cleaned up\n"


def test_daemon_that_ignores_sigterm_is_killed() -> None:
    with guarded("stubborn") as (guard, _, daemon):
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(60) == 130
        assert not alive(daemon)


@pytest.mark.parametrize("word", ["slow", "deaf"])
def test_second_signal_shortens_the_clean_up(word: str) -> None:
    with guarded(word) as (guard, command, daemon):
        guard.send_signal(signal.SIGTERM)
        time.sleep(REPEAT + 1)  # sooner it would be a copy of the first
        assert guard.poll() is None
        guard.send_signal(signal.SIGINT)
        assert guard.wait(60) != 0
        assert not alive(command)
        assert not alive(daemon)


def test_signal_sent_twice_at_once_counts_once() -> None:
    """`timeout` signals its child and then its group; a terminal and its shell both send SIGHUP."""
    with guarded() as (guard, _, daemon):
        for _ in range(5):
            guard.send_signal(signal.SIGTERM)
        assert guard.wait(30) == 130
        assert read(guard) == "cleaned up\nswept\n"
        assert not alive(daemon)


def test_ignored_hangup_stays_ignored_and_ignored_interrupt_does_not() -> None:
    """As with nohup, and in the background of a script."""
    ignoring = "import signal\n" + "".join(
        f"signal.signal(signal.{name}, signal.SIG_IGN)\n" for name in ("SIGHUP", "SIGINT")
    )
    with guarded("print", before=ignoring) as (guard, command, daemon):
        guard.send_signal(signal.SIGHUP)
        assert guard.stdout is not None
        for _ in range(5):
            assert guard.stdout.readline() == "something to read\n"
        assert alive(command)
        guard.send_signal(signal.SIGINT)
        assert guard.wait(30) == 130
        assert not alive(daemon)


def test_command_whose_output_is_closed_leaves_nothing() -> None:
    with guarded("print") as (guard, _, daemon):
        assert guard.stdout is not None
        guard.stdout.close()
        assert guard.wait(30) != 0
        assert not alive(daemon)


def test_stop_signal_stops_command_and_guard_until_they_continue() -> None:
    with guarded("print") as (guard, command, daemon):
        guard.send_signal(signal.SIGTSTP)
        for pid in (guard.pid, command):
            state = ""
            deadline = time.monotonic() + 30
            while state != "T" and time.monotonic() < deadline:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                time.sleep(0.02)
            assert state == "T"
        guard.send_signal(signal.SIGCONT)
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(30) == 130
        assert not alive(daemon)
