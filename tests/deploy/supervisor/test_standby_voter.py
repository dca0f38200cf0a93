"""A standby voter opens nothing until it receives its sockets, and ends with its supervisor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from deploy.host.spawn import python_command, python_environment
from voter.sockets import listen_tcp

CONFIG = """
vote = "1/1"
[journal]
directory = "journal"
[[replica]]
name = "g1"
link = "unix:nowhere"
"""


def _standby(directory: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    config = directory / "voter.toml"
    config.write_text(CONFIG)
    command = python_command("deploy.supervisor.standby_voter", "--config", config)
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            command, env=python_environment(), stdin=theirs.fileno(), stderr=subprocess.PIPE
        )
    return process, ours


def test_standby_ends_with_its_supervisor_and_has_opened_nothing(scratch: Path) -> None:
    standby, channel = _standby(scratch)
    with standby:
        channel.close()
        _, errors = standby.communicate(timeout=20)
    assert (standby.returncode, errors) == (0, b"")
    assert os.listdir(scratch) == ["voter.toml"]


def test_standby_becomes_the_voter_when_it_receives_its_sockets(scratch: Path) -> None:
    standby, channel = _standby(scratch)
    with standby, listen_tcp("127.0.0.1:0") as sock, channel:
        socket.send_fds(channel, [b"http"], [sock.fileno()])
        address = "{}:{}".format(*sock.getsockname())
        with urllib.request.urlopen(f"http://{address}/livez", timeout=20) as answer:
            assert answer.status == 200
        assert (scratch / "journal").is_dir()
        standby.terminate()
        assert standby.wait(timeout=20) == 0


def test_standby_has_imported_all_that_a_voter_needs() -> None:
    """Otherwise the first request after a restart waits for imports."""
    code = "import sys, deploy.supervisor.standby_voter; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=python_environment(), capture_output=True, check=True
    )
    loaded = set(done.stdout.decode().split())
    assert {"voter.runner", "voter.journal", "h11", "voter.frontend.http"} <= loaded
    assert not {"libvirt", "structlog", "deploy.supervisor.supervisor"} & loaded
