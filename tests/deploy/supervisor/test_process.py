"""The supervisor's process under a service manager: what it reports of start, life and end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.host.spawn import python_environment
from tests.deploy.supervisor.running import plan
from voter.commands.terminal import ExitCode

SUPERVISOR = """
import sys
from pathlib import Path
from deploy.node.records import Layout
from deploy.supervisor.process import StartReport, run_supervisor
from tests.deploy.fake_node import FakeNode
sys.exit(run_supervisor(
    Layout(Path(sys.argv[1])), make_node=FakeNode, make_faults=None, report=StartReport(None)
))
"""


class Supervised:
    """A supervisor's process and what its service manager has received."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self._sock = sock
        self.messages: list[list[str]] = []

    def until(self, line: str) -> None:
        """Receive messages until one has this line."""
        while not self.messages or line not in self.messages[-1]:
            self.messages.append(self._sock.recv(4096).decode().split("\n"))

    @property
    def lines(self) -> list[str]:
        return [line for message in self.messages for line in message]


@contextmanager
def supervised(directory: Path, **settings: str) -> Iterator[Supervised]:
    plan(directory, allow_faults=False, **settings)
    environment = python_environment() | {
        "NOTIFY_SOCKET": str(directory.with_suffix(".notify")),
        "WATCHDOG_USEC": "1000000",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(environment["NOTIFY_SOCKET"])
        sock.settimeout(60)
        with subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(directory)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                yield Supervised(process, sock)
            finally:
                process.terminate()


def test_service_manager_is_notified_of_steps_readiness_life_and_end(scratch: Path) -> None:
    with supervised(scratch / "node") as node:
        node.until("READY=1")
        assert "STATUS=g1 is ready" in node.lines
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in node.lines)
        node.messages.clear()
        node.until("WATCHDOG=1")
        node.process.send_signal(signal.SIGTERM)
        node.until("STOPPING=1")
        assert node.process.wait(timeout=60) == 0
        assert "READY=1" not in node.lines


def test_children_cannot_notify_the_service_manager(scratch: Path) -> None:
    with supervised(scratch / "node") as node:
        node.until("READY=1")
        task = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
        children = [Path(f"/proc/{pid}/environ").read_bytes() for pid in task.read_text().split()]
        assert children
        assert not any(b"NOTIFY_SOCKET" in each for each in children)
        assert not any(b"WATCHDOG_USEC" in each for each in children)


def test_start_that_fails_reports_why_and_never_that_it_is_ready(scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with supervised(scratch / "node", http=f"127.0.0.1:{port}") as node:
            assert node.process.wait(timeout=60) == 1
            node.until(f"STATUS=cannot listen on 127.0.0.1:{port}: Address already in use; "
                       "choose another port")  # fmt: skip
            assert "READY=1" not in node.lines


def test_supervisor_of_a_directory_that_was_replaced_does_not_start(scratch: Path) -> None:
    plan(scratch / "node", allow_faults=False)
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, str(scratch / "node")],
        env=python_environment("supervisor"), cwd=Path.cwd(), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == ExitCode.FOREIGN
    assert '"error_code": "TV0723"' in done.stderr
