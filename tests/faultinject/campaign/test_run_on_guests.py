"""Campaigns on real guests: a killed and resumed run, a killed worker of a cluster."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from faultinject.campaign.store.store import Store
from tests.conftest import left_qemus
from tests.faultinject.campaign.dask_cluster import DaskCluster
from tests.faultinject.campaign.processes import ROOT, Processes, kill_command

pytestmark = pytest.mark.vm

# No crash: reverting a guest that ended takes a boot.
SPEC = """
title = "Tests of the runner on real guests"
question = "inequality4"
faults = { "hang" = 1.0, "drop-reply" = 1.0 }
strata = [
    { guests_hit = 0, missions = 6 },
    { guests_hit = 1, missions = 6 },
    { guests_hit = 2, missions = 1 },
    { guests_hit = 3, missions = 1 },
    { guests_hit = 0, design = "nv", missions = 2 },
]
"""
MISSIONS = 16
BOOT = 240.0
"""Seconds for nodes to open while other tests run."""


def environment(scratch: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def processes(scratch: Path) -> Iterator[Processes]:
    with Processes(scratch) as processes:
        yield processes


def campaign(processes: Processes, *words: str) -> subprocess.Popen[bytes]:
    scratch = processes.home
    return processes.start(
        sys.executable, "-m", "trivisor", "campaign", *words,
        log=scratch / "log", environment=environment(scratch),
    )  # fmt: skip


def begin(scratch: Path, *, clean: int = 6) -> tuple[str, ...]:
    spec = SPEC.replace("guests_hit = 0, missions = 6", f"guests_hit = 0, missions = {clean}")
    (scratch / "spec.toml").write_text(spec)
    return ("run", str(scratch / "spec.toml"), "--out", str(scratch / "r"), "--no-report")


def stored(scratch: Path) -> dict[int, tuple[str, str]]:
    """Return the observations and the worker of each stored mission."""
    path = scratch / "r" / "campaign.sqlite"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute("SELECT mission, requests, worker FROM missions").fetchall()
        except sqlite3.OperationalError:
            return {}  # it is being created
    return {mission: (requests, worker) for mission, requests, worker in rows}


def prefix(scratch: Path) -> int:
    """Return the missions of the plan's order before the first one that is not stored."""
    with Store.open(scratch / "r", write=False) as store:
        return store.prefix()


def wait_stored(scratch: Path, count: int, runner: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT
    while len(stored(scratch)) < count:
        assert runner.poll() is None, (scratch / "log").read_text()
        assert time.monotonic() < deadline, (scratch / "log").read_text()
        time.sleep(0.1)


def wait_no_qemu(scratch: Path) -> None:
    deadline = time.monotonic() + 40
    while left := left_qemus(str(scratch)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.readme
def test_run_leaves_no_guest_when_killed_or_interrupted_and_resumes(
    scratch: Path, processes: Processes
) -> None:
    runner = campaign(processes, *begin(scratch), "--workers", "1")
    wait_stored(scratch, 3, runner)
    assert len(left_qemus(str(scratch))) == 3
    kill_command(runner)
    wait_no_qemu(scratch)  # the worker ends them itself
    first = stored(scratch)

    resume = ("resume", str(scratch / "r"), "--no-report", "--workers", "1")
    runner = campaign(processes, *resume)
    wait_stored(scratch, len(first) + 2, runner)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(60) == 130
    assert not left_qemus(str(scratch)) and not list(scratch.glob("tv-c-*"))
    second = stored(scratch)
    assert first.items() <= second.items() and len(second) < MISSIONS

    runner = campaign(processes, *resume)
    assert runner.wait(BOOT) == 0, (scratch / "log").read_text()
    last = stored(scratch)
    assert second.items() <= last.items() and set(last) == set(range(MISSIONS))
    assert not left_qemus(str(scratch)) and not list(scratch.glob("tv-c-*"))


def test_run_on_a_cluster_continues_when_a_worker_is_killed(
    scratch: Path, processes: Processes
) -> None:
    pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
    cluster = DaskCluster(processes, environment(scratch))
    east, west = cluster.add_worker("east"), cluster.add_worker("west")
    words = (*begin(scratch, clean=3000), "--scheduler", cluster.address, "--workers", "2")
    runner = campaign(processes, *words)
    deadline = time.monotonic() + BOOT
    while {worker for _, worker in stored(scratch).values()} != {"east", "west"}:
        assert runner.poll() is None and time.monotonic() < deadline, stored(scratch)
        time.sleep(0.1)
    assert len(left_qemus(str(scratch))) == 6
    east.kill()
    done = len(stored(scratch))
    # The prefix grows: none of the lost worker's missions is missing.
    while prefix(scratch) < done + 5:
        assert runner.poll() is None and time.monotonic() < deadline, stored(scratch)
        time.sleep(0.1)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(60) == 130
    wait_no_qemu(scratch)
    assert west.poll() is None, "a Dask worker serves the next campaign"
