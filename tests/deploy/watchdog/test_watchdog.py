"""The nanny starts a supervisor again, keeps its sockets, passes signals on, buries the dead."""

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

from deploy.watchdog.watchdog import LIMIT

ROOT = Path(__file__).resolve().parents[3]

# Starts a process that outlives it, says both pids, and waits to be killed.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""


def _nanny(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.watchdog.watchdog", sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_supervisors_exit_status_is_told() -> None:
    with _nanny("raise SystemExit(7)") as nanny:
        assert nanny.wait(timeout=20) == 7


def test_sigterm_is_passed_on() -> None:
    with _nanny("import time; print('up', flush=True); time.sleep(60)") as nanny:
        assert nanny.stdout is not None
        assert nanny.stdout.readline() == "up\n"
        nanny.send_signal(signal.SIGTERM)
        assert nanny.wait(timeout=20) == 128 + signal.SIGTERM


def test_what_a_killed_supervisor_leaves_is_buried_when_it_ends() -> None:
    with _nanny(PARENT) as nanny:
        assert nanny.stdout is not None
        orphan = int(nanny.stdout.readline())
        (supervisor,) = _children(nanny.pid)
        os.kill(supervisor, signal.SIGKILL)
        # Its input ends with the supervisor, so the orphan ends as well, and then the nanny.
        assert nanny.wait(timeout=20) == 128 + signal.SIGKILL
        deadline = time.monotonic() + 5
        while Path(f"/proc/{orphan}").exists():
            assert time.monotonic() < deadline, "the orphan is still there, if only as a zombie"


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


# ------------------------------------------------------- started again, with its sockets

# Serves its kept socket in every life but the first, in which it makes it.  Told by its arguments
# what to do after that.
SUPERVISOR = """
import os, signal, socket, sys, time
from deploy.watchdog.client import WatchdogClient
nursery = WatchdogClient.of_this_process()
sock = nursery.sockets.get("http")
if sock is None:
    sock = socket.create_server(("127.0.0.1", 0))
    nursery.keep({"http": sock})
if sys.argv[1] != "never up":
    nursery.up()
print(os.getpid(), nursery.restarts, sock.getsockname()[1], nursery.ended or "-", flush=True)
if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "down":
    nursery.down()
    sys.exit(9)
if sys.argv[1] == "done":
    sys.exit(0)
while nursery.restarts:
    client, _ = sock.accept()
    client.sendall(b"served")
    client.close()
time.sleep(60)
"""


class Life(NamedTuple):
    """What one supervisor said of itself."""

    pid: int
    restarts: int
    port: int
    ended: str


def _supervised(word: str) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        "-m",
        "deploy.watchdog.watchdog",
        sys.executable,
        "-c",
        SUPERVISOR,
        word,
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def _life(nanny: subprocess.Popen[str]) -> Life:
    assert nanny.stdout is not None
    pid, restarts, port, ended = nanny.stdout.readline().split(maxsplit=3)
    return Life(int(pid), int(restarts), int(port), ended.strip())


def test_a_killed_supervisor_is_started_again_and_its_sockets_refuse_nobody() -> None:
    with _supervised("serve") as nanny:
        first = _life(nanny)
        for number in range(1, 3):
            (pid,) = _children(nanny.pid)
            pidfd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            assert select.select([pidfd], [], [], 20)[0]  # else it may take the connection with it
            os.close(pidfd)
            # Nobody serves now: the nanny alone has the socket, and this waits in its queue.
            with socket.create_connection(("127.0.0.1", first.port), timeout=20) as client:
                assert client.recv(10) == b"served"
            life = _life(nanny)
            assert life.pid != first.pid
            assert life[1:] == (number, first.port, f"killed by signal {int(signal.SIGKILL)}")
        nanny.send_signal(signal.SIGTERM)
        assert nanny.wait(timeout=20) == 128 + signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first.port), timeout=5)


@pytest.mark.parametrize("word,status", [("done", 0), ("down", 9), ("never up", 128 + 9)])
def test_one_that_ended_as_asked_or_never_came_up_is_not_started_again(
    word: str, status: int
) -> None:
    with _supervised(word) as nanny:
        first = _life(nanny)
        if word == "never up":
            os.kill(first.pid, signal.SIGKILL)
        rest, _ = nanny.communicate(timeout=20)
        assert (nanny.returncode, rest) == (status, "")


def test_one_that_dies_again_and_again_is_given_up_and_that_is_said() -> None:
    with _supervised("die") as nanny:
        lives, said = nanny.communicate(timeout=60)
    assert len(lives.splitlines()) == LIMIT + 1
    words = [json.loads(line)["event"] for line in said.splitlines()]
    assert "given up" in words[-1]
    assert [word for word in words if "started again" in word] == words[:-1]
    assert nanny.returncode == 128 + signal.SIGKILL


def test_a_nanny_that_is_told_to_stand_down_starts_nothing_and_ends_nothing() -> None:
    with _supervised("serve") as nanny:
        first = _life(nanny)
        nanny.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20  # a signal that was heeded gives no event
        while _holds_sockets(nanny.pid) > 1:
            assert time.monotonic() < deadline, "it keeps the listening socket"
        assert _children(nanny.pid) == [first.pid]
        os.kill(first.pid, signal.SIGKILL)
        rest, _ = nanny.communicate(timeout=20)
        assert rest == ""


def _holds_sockets(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now
            count += os.readlink(entry).startswith("socket:")
    return count
