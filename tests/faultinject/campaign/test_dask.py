"""The same missions on a Dask cluster: a real scheduler, real worker processes, fake stations."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultinject.campaign.fake_station import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.test_campaign_command import begin, call, environment, stored
from tests.faultinject.campaign.test_hand import wait_until
from tests.faultinject.campaign.test_runner import MISSIONS
from voter.commands.terminal import ExitCode

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(120)


class Cluster:
    """A scheduler and its workers, as a user starts them: processes of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.workers: list[subprocess.Popen[bytes]] = []
        self._log = home / "scheduler.log"
        self.scheduler = self._start(
            self._log, "scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"
        )
        self.address = self._wait_address()

    def add_worker(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny: who is killed stays dead."""
        words = (self.address, "--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        worker = self._start(
            self.home / f"{name}.log", "worker", *words,
            "--local-directory", str(self.home / f"{name}.d"), "--memory-limit", "0",
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.terminate()
        for process in (*self.workers, self.scheduler):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
                cwd=ROOT, env=environment(self.home) | {"PYTHONPATH": str(ROOT)},
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def _wait_address(self) -> str:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"Scheduler at:\s+(tcp://\S+)", self._log.read_text())):
            assert time.monotonic() < deadline and self.scheduler.poll() is None
            time.sleep(0.05)
        return found[1]


@pytest.fixture
def cluster(scratch: Path) -> Iterator[Cluster]:
    cluster = Cluster(scratch)
    yield cluster
    cluster.close()


def outcomes(home: Path) -> dict[int, str]:
    table = home / "rows.csv"
    call(home, "export", str(home / "r"), "--out", str(table))
    lines = [line.split(",") for line in table.read_text().splitlines()]
    mission, outcome = lines[0].index("mission"), lines[0].index("outcome")
    return {int(line[mission]): line[outcome] for line in lines[1:]}


def test_two_workers_run_the_plan(cluster: Cluster, scratch: Path) -> None:
    behave(scratch, meet=2)
    cluster.add_worker("east")
    cluster.add_worker("west")
    words = begin(scratch, "--scheduler", cluster.address, "--workers", "2")
    said = call(scratch, *words)
    assert "30 of 30 missions" in said
    assert Counter(began(scratch)) == Counter(range(MISSIONS))
    told = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert told["state"] == "complete" and told["runs"][0]["scheduler"] == cluster.address
    table = scratch / "rows.csv"
    call(scratch, "export", str(scratch / "r"), "--out", str(table))
    assert "east" in table.read_text() and "west" in table.read_text()
    # Stations end with the campaign, not with the cluster.
    wait_until(lambda: not fake_guests(scratch))
    assert not list(scratch.glob("tv-c-*"))
    # The same plan run here comes out the same.
    behave(scratch)
    words = begin(scratch)
    words[words.index(str(scratch / "r"))] = str(scratch / "s")
    call(scratch, *words)
    told = json.loads(call(scratch, "agree", str(scratch / "r"), str(scratch / "s"), "--json"))
    assert told["both"] == MISSIONS and told["other_outcome"] == 0


def test_a_killed_workers_missions_are_run_by_others(cluster: Cluster, scratch: Path) -> None:
    behave(scratch, pause=0.1)
    east = cluster.add_worker("east")
    cluster.add_worker("west")
    runner = subprocess.Popen(
        [sys.executable, "-m", "trivisor", "campaign",
         *begin(scratch, "--scheduler", cluster.address, "--workers", "2")],
        cwd=ROOT, env=environment(scratch), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: len(stored(scratch)) >= 4, 40)
    east.kill()
    assert runner.wait(60) == 0
    assert sorted(stored(scratch)) == list(range(MISSIONS))
    runs = Counter(began(scratch))
    assert set(runs) == set(range(MISSIONS)) and sum(runs.values()) <= MISSIONS + 2
    # Its own worker process noticed, and ended the guest.
    wait_until(lambda: not fake_guests(scratch), 30)


def test_a_killed_runner_on_a_cluster_is_resumed(cluster: Cluster, scratch: Path) -> None:
    behave(scratch, pause=0.1)
    cluster.add_worker("east")
    runner = subprocess.Popen(
        [sys.executable, "-m", "trivisor", "campaign",
         *begin(scratch, "--scheduler", cluster.address)],
        cwd=ROOT, env=environment(scratch), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: len(stored(scratch)) >= 4, 40)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    words = ("resume", str(scratch / "r"), "--station", FAKE, "--no-report")
    call(scratch, *words, "--scheduler", cluster.address)
    assert sorted(stored(scratch)) == list(range(MISSIONS))
    wait_until(lambda: not fake_guests(scratch) and not list(scratch.glob("tv-c-*")), 30)


def test_an_interrupted_runner_ends_its_stations_and_the_workers_serve_others(
    cluster: Cluster, scratch: Path
) -> None:
    behave(scratch, hang={str(index): 1 for index in range(MISSIONS)})
    cluster.add_worker("east")
    runner = subprocess.Popen(
        [sys.executable, "-m", "trivisor", "campaign",
         *begin(scratch, "--scheduler", cluster.address)],
        cwd=ROOT, env=environment(scratch), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: began(scratch), 40)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(40) == ExitCode.INTERRUPTED
    assert not fake_guests(scratch) and not list(scratch.glob("tv-c-*"))
    behave(scratch)
    words = ("resume", str(scratch / "r"), "--station", FAKE, "--no-report")
    call(scratch, *words, "--scheduler", cluster.address)
    assert sorted(stored(scratch)) == list(range(MISSIONS))


def test_no_scheduler_is_an_error_with_a_remedy(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(scratch, *begin(scratch, "--scheduler", "tcp://127.0.0.1:9"), code=ExitCode.FAILED)
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in said and "remedy:" in said
    assert not began(scratch)


def test_a_cluster_where_no_worker_has_a_station(cluster: Cluster, scratch: Path) -> None:
    behave(scratch, refuse="there is no QEMU on this worker")
    cluster.add_worker("east")
    words = begin(scratch, "--scheduler", cluster.address)
    said = call(scratch, *words, code=ExitCode.FAILED)
    assert "there is no QEMU on this worker" in said
    assert not began(scratch)
