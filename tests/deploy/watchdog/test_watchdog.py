"""The watchdog restarts a supervisor, keeps its sockets, forwards signals, reaps orphans."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.host.spawn import python_command, python_environment
from deploy.watchdog.client import WatchdogClient
from deploy.watchdog.process import LIMIT, LONG_PAUSE
from tests.errors import logs

pytestmark = pytest.mark.usefixtures("end_with_tests")

# Keeps its socket in every life but the first, in which it makes it.  Its argument says what it
# does then.
SUPERVISOR = """
import os, signal, socket, subprocess, sys, time
from deploy.watchdog.client import WatchdogClient
watchdog, action = WatchdogClient.of_this_process(), sys.argv[1]
sock = watchdog.sockets.get("http")
if sock is None:
    sock = socket.create_server(("127.0.0.1", 0))
    watchdog.keep({"http": sock})
if action not in ("never up", "orphan"):
    watchdog.up()
if action == "orphan":  # outlives us until its input ends with us
    subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(os.getpid(), watchdog.restarts, sock.getsockname()[1], watchdog.ended or "-", flush=True)
if action == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if action == "down":
    watchdog.down()
    sys.exit(9)
if action == "exit":
    sys.exit(0)
while watchdog.restarts:
    client, _ = sock.accept()
    client.sendall(b"served")
    client.close()
time.sleep(60)
"""


class Life(NamedTuple):
    """What one supervisor printed."""

    pid: int
    restarts: int
    port: int
    ended: str


def _start(action: str) -> subprocess.Popen[str]:
    command = python_command("deploy.watchdog.process", sys.executable, "-c", SUPERVISOR, action)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=python_environment(), stdout=pipe, stderr=pipe, text=True)


def _life(watchdog: subprocess.Popen[str]) -> Life:
    assert watchdog.stdout is not None
    pid, restarts, port, ended = watchdog.stdout.readline().split(maxsplit=3)
    return Life(int(pid), int(restarts), int(port), ended.strip())


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _open_sockets(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # just closed
            count += os.readlink(entry).startswith("socket:")
    return count


def test_orphans_of_a_killed_supervisor_are_reaped() -> None:
    with _start("orphan") as watchdog:
        supervisor = _life(watchdog).pid
        (orphan,) = _children(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        # The orphan's input ends with the supervisor; then the orphan ends, and the watchdog.
        assert watchdog.wait(timeout=20) == 128 + signal.SIGKILL
        assert not Path(f"/proc/{orphan}").exists()


def test_killed_supervisor_is_restarted_and_its_sockets_refuse_no_client() -> None:
    with _start("serve") as watchdog:
        first = _life(watchdog)
        for number in range(1, 3):
            (pid,) = _children(watchdog.pid)
            pidfd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            assert select.select([pidfd], [], [], 20)[0]  # it must not accept the connection
            os.close(pidfd)
            # Only the watchdog has the socket now: the connection waits in its queue.
            with socket.create_connection(("127.0.0.1", first.port), timeout=20) as client:
                assert client.recv(10) == b"served"
            life = _life(watchdog)
            assert life.pid != first.pid
            assert life[1:] == (number, first.port, f"killed by signal {int(signal.SIGKILL)}")
        watchdog.send_signal(signal.SIGTERM)
        assert watchdog.wait(timeout=20) == 128 + signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first.port), timeout=5)


@pytest.mark.parametrize("action,status", [("exit", 0), ("down", 9), ("never up", 128 + 9)])
def test_supervisor_is_not_restarted_when_its_end_was_requested_or_it_never_came_up(
    action: str, status: int
) -> None:
    with _start(action) as watchdog:
        first = _life(watchdog)
        if action == "never up":
            os.kill(first.pid, signal.SIGKILL)
        rest, _ = watchdog.communicate(timeout=20)
        assert (watchdog.returncode, rest) == (status, "")


def test_supervisor_that_dies_repeatedly_is_restarted_after_longer_pauses_until_its_end() -> None:
    with _start("die") as watchdog:
        assert watchdog.stdout is not None
        assert watchdog.stderr is not None
        events = [json.loads(watchdog.stderr.readline())["event"] for _ in range(LIMIT + 1)]
        assert all("restarting it" in event for event in events)
        assert events[-1].endswith(f" {LONG_PAUSE:g} s")
        watchdog.send_signal(signal.SIGTERM)
        lives, _ = watchdog.communicate(timeout=20)
    assert len(lives.splitlines()) == LIMIT + 1
    assert watchdog.returncode == 128 + signal.SIGKILL


def test_watchdog_restarts_nothing_and_ends_nothing_after_sighup() -> None:
    with _start("serve") as watchdog:
        first = _life(watchdog)
        watchdog.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20  # a handled signal gives no event
        while _open_sockets(watchdog.pid) > 1:
            assert time.monotonic() < deadline, "it keeps the listening socket"
        assert _children(watchdog.pid) == [first.pid]
        os.kill(first.pid, signal.SIGKILL)
        rest, _ = watchdog.communicate(timeout=20)
        assert rest == ""


def test_watchdog_that_takes_no_message_is_logged() -> None:
    ours, theirs = socket.socketpair()
    client = WatchdogClient(ours)
    theirs.close()
    with ours, logs("TV0732"):
        client.up()
