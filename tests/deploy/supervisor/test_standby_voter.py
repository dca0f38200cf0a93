"""A spare voter opens nothing until it is told, and does not outlive who might tell it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.deploy.supervisor.test_supervisor_records import ROOT
from voter.sockets import listen_tcp

CONFIG = """
vote = "1/1"
[journal]
directory = "journal"
[[replica]]
name = "g1"
link = "unix:nowhere"
"""


def _spare(directory: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    (directory / "voter.toml").write_text(CONFIG)
    ours, theirs = socket.socketpair()
    with theirs:
        words = [
            sys.executable,
            "-m",
            "deploy.supervisor.standby_voter",
            "--config",
            str(directory / "voter.toml"),
        ]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=ROOT, stdin=theirs.fileno(), stderr=pipe), ours


def test_a_spare_ends_with_its_supervisor_and_has_opened_nothing(scratch: Path) -> None:
    spare, channel = _spare(scratch)
    with spare:
        channel.close()
        _, said = spare.communicate(timeout=20)
    assert (spare.returncode, said) == (0, b"")
    assert os.listdir(scratch) == ["voter.toml"]


def test_a_spare_that_is_told_its_sockets_is_the_voter_in_the_same_process(scratch: Path) -> None:
    spare, channel = _spare(scratch)
    with spare, listen_tcp("127.0.0.1:0") as sock, channel:
        socket.send_fds(channel, [b"http"], [sock.fileno()])
        address = "{}:{}".format(*sock.getsockname())
        with urllib.request.urlopen(f"http://{address}/livez", timeout=20) as answer:
            assert answer.status == 200
        assert (scratch / "journal").is_dir()
        spare.terminate()
        assert spare.wait(timeout=20) == 0


def test_what_a_spare_has_imported_is_all_that_a_voter_needs() -> None:
    """Else the first request after a restart would wait for imports."""
    code = "import sys, deploy.supervisor.standby_voter; print(*sys.modules)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"voter.runner", "voter.journal", "h11", "voter.frontend.http"} <= loaded
    assert not {"libvirt", "structlog", "deploy.supervisor.supervisor"} & loaded
