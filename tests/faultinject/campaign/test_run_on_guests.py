"""The runner on real guests: killed and resumed here, a worker killed on a cluster."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from faultinject.campaign.store import Store
from tests.conftest import left_qemus

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

# No crash: putting back a guest that ended costs a boot.
SPEC = """
title = "Of the runner's tests on real guests"
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
"""Seconds for stations to be there while other tests run as well."""


def environment(scratch: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}


def start(scratch: Path, *words: str) -> subprocess.Popen[bytes]:
    with (scratch / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT, env=environment(scratch), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def campaign(scratch: Path, *words: str) -> subprocess.Popen[bytes]:
    return start(scratch, "trivisor", "campaign", *words)


def begin(scratch: Path, *, clean: int = 6) -> tuple[str, ...]:
    spec = SPEC.replace("guests_hit = 0, missions = 6", f"guests_hit = 0, missions = {clean}")
    (scratch / "spec.toml").write_text(spec)
    return ("run", str(scratch / "spec.toml"), "--out", str(scratch / "r"), "--no-report")


def stored(scratch: Path) -> dict[int, tuple[str | None, str]]:
    """Outcome and worker of each mission that is stored."""
    path = scratch / "r" / "campaign.sqlite"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute("SELECT mission, outcome, worker FROM missions").fetchall()
        except sqlite3.OperationalError:
            return {}  # it is being made
    return {mission: (outcome, worker) for mission, outcome, worker in rows}


def prefix(scratch: Path) -> int:
    """Missions of the plan's order up to the first one that is not stored."""
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


def test_killed_it_leaves_no_guest_and_resumes_and_interrupted_too(scratch: Path) -> None:
    runner = campaign(scratch, *begin(scratch), "--workers", "1")
    wait_stored(scratch, 3, runner)
    assert len(left_qemus(str(scratch))) == 3
    runner.kill()
    runner.wait()
    wait_no_qemu(scratch)  # by the worker itself: nobody else is there
    first = stored(scratch)

    resume = ("resume", str(scratch / "r"), "--no-report", "--workers", "1")
    runner = campaign(scratch, *resume)
    wait_stored(scratch, len(first) + 2, runner)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(60) == 130
    assert not left_qemus(str(scratch)) and not list(scratch.glob("tv-c-*"))
    second = stored(scratch)
    assert first.items() <= second.items() and len(second) < MISSIONS

    runner = campaign(scratch, *resume)
    assert runner.wait(BOOT) == 0, (scratch / "log").read_text()
    last = stored(scratch)
    assert second.items() <= last.items() and set(last) == set(range(MISSIONS))
    assert not left_qemus(str(scratch)) and not list(scratch.glob("tv-c-*"))


def test_two_dask_workers_with_guests_of_their_own_one_is_killed(scratch: Path) -> None:
    pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
    processes = [
        start(scratch, "distributed.cli.dask_scheduler",
              "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 40
        while not (found := re.search(r"tcp://[\d.]+:\d+", (scratch / "log").read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = found[0]
        processes += [
            start(scratch, "distributed.cli.dask_worker", address, "--name", name, "--nthreads",
                  "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0",
                  "--local-directory", str(scratch / name))
            for name in ("east", "west")
        ]  # fmt: skip
        words = (*begin(scratch, clean=3000), "--scheduler", address, "--workers", "2")
        runner = campaign(scratch, *words)
        deadline = time.monotonic() + BOOT
        while {worker for _, worker in stored(scratch).values()} != {"east", "west"}:
            assert runner.poll() is None and time.monotonic() < deadline, stored(scratch)
            time.sleep(0.1)
        assert len(left_qemus(str(scratch))) == 6
        processes[1].kill()
        done = len(stored(scratch))
        # All up to a later place of the order: none of the lost worker's missions is missing.
        while prefix(scratch) < done + 5:
            assert runner.poll() is None and time.monotonic() < deadline, stored(scratch)
            time.sleep(0.1)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(60) == 130
        wait_no_qemu(scratch)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            process.wait(30)
