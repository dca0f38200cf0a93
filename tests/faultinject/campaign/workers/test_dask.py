"""Missions on a Dask cluster: a real scheduler, real worker processes, fake nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultinject.campaign.dask_cluster import DaskCluster
from tests.faultinject.campaign.fake_node import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.processes import Processes, kill_command
from tests.faultinject.campaign.test_campaign_command import begin, call, environment, stored
from tests.faultinject.campaign.workers.test_dispatch import MISSIONS
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")


@pytest.fixture
def cluster(scratch: Path) -> Iterator[DaskCluster]:
    with Processes(scratch) as processes:
        yield DaskCluster(processes, environment(scratch))


def start(cluster: DaskCluster, *more: str) -> subprocess.Popen[bytes]:
    """Start a campaign on the cluster."""
    home = cluster.processes.home
    words = begin(home, "--scheduler", cluster.address, *more)
    return cluster.processes.start(
        sys.executable, "-m", "trivisor", "campaign", *words,
        log=home / "log", environment=environment(home),
    )  # fmt: skip


def test_run_on_a_cluster_shares_missions_between_workers(
    cluster: DaskCluster, scratch: Path
) -> None:
    behave(scratch, meet=2)
    cluster.add_worker("east")
    cluster.add_worker("west")
    words = begin(scratch, "--scheduler", cluster.address, "--workers", "2")
    text = call(scratch, *words)
    assert "30 of 30 missions" in text
    assert Counter(began(scratch)) == Counter(range(MISSIONS))
    shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert shown["state"] == "complete" and shown["runs"][0]["scheduler"] == cluster.address
    table = scratch / "rows.csv"
    call(scratch, "export", str(scratch / "r"), "--out", str(table))
    assert "east" in table.read_text() and "west" in table.read_text()
    # Nodes end with the campaign, not with the cluster.
    wait_until(lambda: not fake_guests(scratch))
    assert not list(scratch.glob("tv-c-*"))
    # The same plan run here comes out the same.
    behave(scratch)
    words = begin(scratch)
    words[words.index(str(scratch / "r"))] = str(scratch / "s")
    call(scratch, *words)
    shown = json.loads(call(scratch, "agree", str(scratch / "r"), str(scratch / "s"), "--json"))
    assert shown["both"] == MISSIONS and shown["other_outcome"] == 0


def test_run_on_a_cluster_repeats_missions_of_a_killed_worker(
    cluster: DaskCluster, scratch: Path
) -> None:
    behave(scratch, pause=0.1)
    east = cluster.add_worker("east")
    cluster.add_worker("west")
    runner = start(cluster, "--workers", "2")
    wait_until(lambda: len(stored(scratch)) >= 4)
    east.kill()
    assert runner.wait(60) == 0
    assert sorted(stored(scratch)) == list(range(MISSIONS))
    runs = Counter(began(scratch))
    assert set(runs) == set(range(MISSIONS)) and sum(runs.values()) <= MISSIONS + 2
    # Its own worker process noticed, and ended the guest.
    wait_until(lambda: not fake_guests(scratch))


def test_resume_on_a_cluster_after_a_killed_runner(cluster: DaskCluster, scratch: Path) -> None:
    behave(scratch, pause=0.1)
    cluster.add_worker("east")
    runner = start(cluster)
    wait_until(lambda: len(stored(scratch)) >= 4)
    kill_command(runner)
    words = ("resume", str(scratch / "r"), "--worker-module", FAKE, "--no-report")
    call(scratch, *words, "--scheduler", cluster.address)
    assert sorted(stored(scratch)) == list(range(MISSIONS))
    wait_until(lambda: not fake_guests(scratch) and not list(scratch.glob("tv-c-*")))


def test_run_on_a_cluster_closes_its_nodes_when_interrupted(
    cluster: DaskCluster, scratch: Path
) -> None:
    behave(scratch, hang={str(index): 1 for index in range(MISSIONS)})
    cluster.add_worker("east")
    runner = start(cluster)
    wait_until(lambda: began(scratch))
    runner.send_signal(signal.SIGINT)
    assert runner.wait(40) == ExitCode.INTERRUPTED
    assert not fake_guests(scratch) and not list(scratch.glob("tv-c-*"))
    behave(scratch)
    words = ("resume", str(scratch / "r"), "--worker-module", FAKE, "--no-report")
    call(scratch, *words, "--scheduler", cluster.address)
    assert sorted(stored(scratch)) == list(range(MISSIONS))


def test_run_reports_the_remedy_when_there_is_no_scheduler(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = call(scratch, *begin(scratch, "--scheduler", "tcp://127.0.0.1:9"), code=ExitCode.FAILED)
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in text and "remedy:" in text
    assert "error TV0531: " in text
    assert not began(scratch)


def test_run_on_a_cluster_fails_when_no_worker_has_a_node(
    cluster: DaskCluster, scratch: Path
) -> None:
    behave(scratch, refuse="there is no QEMU on this worker")
    cluster.add_worker("east")
    words = begin(scratch, "--scheduler", cluster.address)
    text = call(scratch, *words, code=ExitCode.FAILED)
    assert "there is no QEMU on this worker" in text
    assert not began(scratch)


@pytest.mark.parametrize(
    "lost,said",
    [("scheduler", "the scheduler at tcp://"), ("workers", "the cluster has no worker any more")],
)
def test_run_whose_cluster_is_lost_is_partial_and_can_be_resumed(
    cluster: DaskCluster, scratch: Path, lost: str, said: str
) -> None:
    behave(scratch, pause=0.2)
    workers = [cluster.add_worker("east"), cluster.add_worker("west")]
    runner = start(cluster, "--workers", "2")
    wait_until(lambda: len(stored(scratch)) >= 3)
    if lost == "scheduler":
        cluster.kill_scheduler()
    else:
        for worker in workers:
            worker.kill()
    assert runner.wait(120) == ExitCode.FAILED
    text = (scratch / "log").read_text()
    assert "partial" in text and f"trivisor campaign resume {scratch / 'r'}" in text
    assert said in text
    assert "Traceback" not in text and "defect" not in text
    done = len(stored(scratch))
    assert 3 <= done < MISSIONS
    shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert said in shown["state"] and shown["done"] == done
    wait_until(lambda: not fake_guests(scratch) and not list(scratch.glob("tv-c-*")))
    behave(scratch)
    call(scratch, "resume", str(scratch / "r"), "--worker-module", FAKE, "--no-report")
    assert sorted(stored(scratch)) == list(range(MISSIONS))


def test_run_that_waits_for_a_worker_ends_on_ctrl_c(cluster: DaskCluster, scratch: Path) -> None:
    runner = start(cluster)
    wait_until(lambda: "Receive client connection" in (scratch / "scheduler.log").read_text())
    runner.send_signal(signal.SIGINT)
    assert runner.wait(20) == ExitCode.INTERRUPTED
    text = (scratch / "log").read_text()
    assert f"trivisor campaign resume {scratch / 'r'}" in text
    assert "Traceback" not in text
