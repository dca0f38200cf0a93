"""Each shipped alert fires on a real node: Debian's Prometheus scrapes it while it is broken.

The node stands on a file system of 420 MiB.  Real: the guests that crash and lie, the killed
processes, the full disk, the end of the node.  Planted: the voter's wall clock, by a module that
Python loads at its start and that adds what a file says.  The rules' ``for:`` is left out
(tests/deploy/monitoring/prometheus.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.host.spawn import python_command, python_environment
from deploy.monitoring.install import MONITORING
from tests.deploy.monitoring.prometheus import prometheus
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode

pytestmark = pytest.mark.vm

CLOCK = '''"""Planted: lets the wall clock of the voter jump by the seconds in a file."""
import os, time
_real, _file = time.time_ns, os.environ["TRIVISOR_TEST_CLOCK"]
def _time_ns():
    with open(_file) as file:
        return _real() + int(file.read()) * 10**9
time.time_ns = _time_ns
'''


class Node:
    """A node's directory, and the command on it."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self._environment = environment

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            python_command("trivisor", *words, "--dir", self.directory),
            env=self._environment, capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def succeed(self, *words: str) -> None:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(shared_scratch: Path) -> Iterator[Path]:
    """Give a file system of 420 MiB: three guests need 330."""
    disk = shared_scratch / "alerts"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=420m,mode=700", "trivisor", str(disk)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def clock(scratch: Path) -> Path:
    """Give the file with the seconds that the voter's wall clock is wrong."""
    (scratch / "planted").mkdir()
    (scratch / "planted" / "sitecustomize.py").write_text(CLOCK)
    path = scratch / "offset"
    path.write_text("0")
    return path


@pytest.fixture
def node(small_disk: Path, clock: Path) -> Iterator[Node]:
    environment = python_environment() | {"TRIVISOR_TEST_CLOCK": str(clock)}
    environment["PYTHONPATH"] += f"{os.pathsep}{clock.parent / 'planted'}"
    made = Node(small_disk / "n", environment)
    try:
        made.succeed("up", "--http", "127.0.0.1:0", "--allow-faults")
        yield made
    finally:
        made.run("down")


def fill_disk(path: Path) -> None:
    """Use all room of a file system by one file."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def put(address: str, body: bytes, name: str = "-") -> int:
    """Write through the vote, as a request with this id; return the status."""
    url, headers = f"http://{address}/kv/a", {"X-Request-Id": name}
    request = urllib.request.Request(url, body, headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_every_alert_fires(node: Node, clock: Path, scratch: Path) -> None:
    before = node.status()
    rules = re.findall(r"alert: (\w+)", (MONITORING / "trivisor.rules.yml").read_text())
    targets = {"voter": before["http"], "supervisor": before["dashboard"]}
    seen: set[str] = set()
    with prometheus(scratch / "prometheus", targets) as server:

        def expect(*names: str) -> dict[str, dict[str, Any]]:
            firing = server.until_firing(*(f"Trivisor{name}" for name in names))
            seen.update(firing)
            return firing

        wait_until(lambda: len(server.get("/query?query=up==1")["result"]) == 2)
        expect("DiskNearlyFull")
        assert server.firing().keys() == {"TrivisorDiskNearlyFull"}

        node.succeed("inject", "corrupt-reply", "g3")
        assert put(before["http"], b"1", "checkout-17") == 201
        firing = expect("ReplicaDissented", "ReplicaAway", "NoSpareReplica")
        assert firing["TrivisorReplicaDissented"]["labels"]["replica"] == "g3"
        trace = json.loads(node.run("trace", "checkout-17", "--json").stdout)
        assert (trace["outcome"], trace["replicas"]["g3"]) == ("released", "dissents")
        assert node.run("trace", "nobody").returncode == ExitCode.FAILED
        node.succeed("inject", "crash", "g2")
        wait_until(lambda: node.status()["status"] == "refusing")
        refused = node.run("request", "PUT", "/kv/a", "--data", "2", "--no-retry")
        assert refused.returncode == ExitCode.NO_MAJORITY
        expect("Refusing", "RequestsFailed")

        clock.write_text("3600")
        expect("ClockStepped")

        for guest in ("g2", "g3"):
            node.succeed("heal", guest)
        fill_disk(node.directory.parent / "fill")
        wait_until(lambda: put(before["http"], bytes(900_000)) == 503)  # its segment is filled
        expect("JournalFull", "StorageFailed")
        os.kill(before["voter"]["pid"], signal.SIGKILL)
        expect("VoterRestarted")
        os.kill(before["supervisor"]["pid"], signal.SIGKILL)
        expect("SupervisorRestarted")
        (node.directory.parent / "fill").unlink()
        node.succeed("down")
        expect("TargetDown")
        assert node.run("trace", "checkout-17").returncode == ExitCode.NOT_UP
    assert seen == set(rules)
