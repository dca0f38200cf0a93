"""Messages to the service manager, received on a real socket."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.errors import raises
from tests.project.tree import ROOT
from voter.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, scratch: Path) -> Iterator[tuple[socket.socket, str]]:
    """Give a service manager's socket and its address as NOTIFY_SOCKET names it."""
    path = str(scratch / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.bind(path if request.param == "path" else f"\0{path}")
        yield sock, path if request.param == "path" else f"@{path}"


def received(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


def test_message_arrives_and_children_inherit_nothing(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    notifier = Notifier.of_this_process(environment)
    assert environment == {}
    assert notifier.interval is None  # another process is watched
    notifier.send("READY=1", "STATUS=Serving")
    assert received(sock) == ["READY=1", "STATUS=Serving"]


@pytest.mark.parametrize("named", [False, True])
def test_interval_is_that_of_the_environment_in_seconds(named: bool) -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2500000"}
    environment |= {"WATCHDOG_PID": str(os.getpid())} if named else {}
    assert Notifier.of_this_process(environment).interval == 2.5


def test_without_a_service_manager_nothing_is_sent() -> None:
    notifier = Notifier.of_this_process({})
    notifier.send("READY=1")
    assert (notifier.address, notifier.interval) == ("", None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NOTIFY_SOCKET", "relative"),
        ("NOTIFY_SOCKET", "vsock:2:1"),
        ("WATCHDOG_USEC", "soon"),
        ("WATCHDOG_USEC", "-1"),
        ("WATCHDOG_USEC", "9" * 400),
        ("WATCHDOG_PID", "\u0663"),
    ],
)
def test_wrong_value_is_rejected_by_name(variable: str, value: str) -> None:
    with raises("TV0205", match=variable):
        Notifier.of_this_process({variable: value})


def test_manager_that_is_gone_or_reads_nothing_ends_and_stops_nothing(scratch: Path) -> None:
    Notifier(str(scratch / "missing")).send("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(scratch / "full"))
        for _ in range(1000):  # more than the queue of a socket holds
            Notifier(str(scratch / "full")).send("WATCHDOG=1")


async def test_loop_that_hangs_sends_no_sign_of_life(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier(address, interval=0.1)
    notifier.begin_watchdog()
    for _ in range(3):
        assert await asyncio.to_thread(received, sock) == ["WATCHDOG=1"]
    time.sleep(0.5)  # noqa: ASYNC251 - the loop hangs
    waiting = 0
    while select.select([sock], [], [], 0)[0]:
        waiting += len(received(sock))
    assert waiting <= 1  # one may have been sent just before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_voter_reports_start_life_and_end_and_leaves_no_socket(
    manager: tuple[socket.socket, str], scratch: Path, number: signal.Signals
) -> None:
    sock, address = manager
    sockets = [scratch / "native.sock", scratch / "control.sock"]
    config = scratch / "voter.toml"
    config.write_text(
        f'vote = "1/1"\n[listen]\nnative_unix = "{sockets[0]}"\ncontrol = "{sockets[1]}"\n'
        '[[replica]]\nname = "g1"\nlink = "unix:/nowhere"\n'
    )
    with subprocess.Popen(
        [sys.executable, "-m", "voter", "--config", str(config)],
        cwd=ROOT,
        env=os.environ | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"},
    ) as voter:
        try:
            messages = [received(sock)]
            while messages[-1] != ["WATCHDOG=1"]:
                messages.append(received(sock))
            assert messages[-2][0] == "READY=1"
            assert "native-unix" in messages[-2][1]
            assert all(path.is_socket() for path in sockets)
            voter.send_signal(number)
            while "STOPPING=1" not in messages[-1]:
                messages.append(received(sock))
            assert voter.wait(timeout=60) == 0
        finally:
            voter.kill()
    assert not any(path.exists() for path in sockets)


def test_voter_ignores_a_hangup_that_nohup_ignores(scratch: Path) -> None:
    config = scratch / "voter.toml"
    config.write_text(
        f'vote = "1/1"\n[listen]\nnative_unix = "{scratch / "n.sock"}"\n'
        '[[replica]]\nname = "g1"\nlink = "unix:/nowhere"\n'
    )
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        subprocess.Popen(
            ["nohup", sys.executable, "-m", "voter", "--config", str(config)],
            cwd=ROOT,
            env=os.environ | {"NOTIFY_SOCKET": _bound(sock, scratch / "notify")},
            stdout=subprocess.DEVNULL,
        ) as voter,
    ):
        try:
            while received(sock)[0] != "READY=1":
                pass
            voter.send_signal(signal.SIGHUP)
            voter.send_signal(signal.SIGTERM)
            assert voter.wait(timeout=60) == 0
            assert received(sock)[0] == "STOPPING=1"
        finally:
            voter.kill()


def _bound(sock: socket.socket, path: Path) -> str:
    sock.settimeout(30)
    sock.bind(str(path))
    return str(path)


def test_message_that_cannot_be_sent_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier(str(tmp_path / "none"), None).send("READY=1")
    (record,) = caplog.records
    assert getattr(record, "fields", {})["error_code"] == "TV0228"
