"""Worker processes as their runner controls them: real processes, a fake node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.scratch import ScratchDirectory, processes_of, sweep_abandoned
from faultinject.campaign.records import MissionPlan, NodeSpec
from faultinject.campaign.workers.messages import Task, Worker
from faultinject.campaign.workers.worker_process import WorkerLost, WorkerProcess
from tests.errors import logs
from tests.faultinject.campaign.fake_node import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.processes import ROOT, following
from tests.waiting import wait_until


def mission(index: int) -> MissionPlan:
    return MissionPlan(
        index=index, order=index, stratum="f0", design="voted", repair=False, k=0, voter_hit=False,
        seed=index, length=20,
    )  # fmt: skip


@pytest.fixture
def directories(home: Path) -> Iterator[ScratchDirectory]:
    directories = ScratchDirectory("c")
    yield directories
    directories.close()


@pytest.fixture
def worker(directories: ScratchDirectory) -> Iterator[WorkerProcess]:
    worker = WorkerProcess("w1", Worker(module=FAKE, spec=NodeSpec()), directories)
    yield worker
    worker.kill()


def test_run_uses_one_process_for_all_missions(worker: WorkerProcess, home: Path) -> None:
    first = worker.run(Task(plan=mission(3)))
    pid = worker.pid
    second = worker.run(Task(plan=mission(4), attempt=2))
    assert (first.row.index, second.row.index) == (3, 4)
    assert (second.row.worker, second.row.attempt) == ("w1", 2)
    assert first.facts.host == "fake"
    assert worker.pid == pid
    wait_until(lambda: len(fake_guests(home)) == 1)
    worker.end()
    worker.wait()
    assert not fake_guests(home)


def test_worker_that_does_not_end_is_killed(worker: WorkerProcess, home: Path) -> None:
    worker.run(Task(plan=mission(3)))
    with logs("TV0537"):
        worker.wait(0.01)  # it was not asked to end
    wait_until(lambda: not fake_guests(home))


def test_run_replaces_a_dead_worker_and_ends_its_guest(worker: WorkerProcess, home: Path) -> None:
    behave(home, die={"7": 1})
    with pytest.raises(WorkerLost, match="it ended without a report") as lost:
        worker.run(Task(plan=mission(7)))
    assert lost.value.how == "lost"
    assert lost.value.error_code == "TV0530"
    assert not fake_guests(home)
    assert worker.run(Task(plan=mission(7), attempt=2)).row.attempt == 2


def test_run_kills_a_worker_that_reports_nothing(
    worker: WorkerProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(home, hang={"1": 1})
    worker.open()
    monkeypatch.setattr(
        "faultinject.campaign.workers.worker_process.mission_timeout", lambda *_: 0.5
    )
    with pytest.raises(WorkerLost, match="reported nothing"):
        worker.run(Task(plan=mission(1)))
    assert not fake_guests(home)


def test_end_interrupts_a_mission(worker: WorkerProcess, home: Path) -> None:
    behave(home, hang={"1": 1})
    worker.open()
    lost: list[Exception] = []

    def run() -> None:
        with pytest.raises(WorkerLost) as caught:
            worker.run(Task(plan=mission(1)))
        lost.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: began(home))
    worker.end()
    worker.wait()
    thread.join(10)
    assert lost and not fake_guests(home)
    with pytest.raises(WorkerLost, match="asked to end"):
        worker.run(Task(plan=mission(2)))


HOLDER = """
import sys
from deploy.host.scratch import ScratchDirectory
from faultinject.campaign.workers.worker_process import WorkerProcess
from faultinject.campaign.workers.messages import Task, Worker
from faultinject.campaign.records import NodeSpec
from tests.faultinject.campaign.workers.test_worker_process import mission
from tests.faultinject.campaign.fake_node import FAKE
worker = WorkerProcess("w1", Worker(module=FAKE, spec=NodeSpec()), ScratchDirectory("c"))
worker.open()
print(worker.pid, flush=True)
worker.run(Task(plan=mission(1)))
"""


def holder(home: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a runner whose worker is in the middle of a mission; return the worker's pid too."""
    process = subprocess.Popen(
        following(sys.executable, "-c", HOLDER), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    wait_until(lambda: began(home))
    return process, pid


def test_a_worker_ends_itself_and_its_guest_when_its_runner_is_killed(home: Path) -> None:
    behave(home, hang={"1": 1})
    process, _ = holder(home)
    wait_until(lambda: len(fake_guests(home)) == 1)
    process.kill()
    process.wait()
    wait_until(lambda: not fake_guests(home))
    wait_until(lambda: not processes_of(home))
    assert sweep_abandoned() and not list(home.glob("tv-c-*"))


def test_sweep_ends_guests_of_a_killed_runner_and_worker(home: Path) -> None:
    behave(home, hang={"1": 1})
    process, pid = holder(home)
    os.kill(pid, signal.SIGSTOP)  # it notices nothing
    process.kill()
    process.wait()
    os.kill(pid, signal.SIGKILL)
    assert len(fake_guests(home)) == 1
    began_at = time.monotonic()
    assert len(sweep_abandoned()) == 1
    assert not fake_guests(home) and not list(home.glob("tv-c-*"))
    assert time.monotonic() - began_at < 40


def test_sweep_ignores_directories_in_use(worker: WorkerProcess, home: Path) -> None:
    worker.open()
    # A process has no command line for a moment after its exec.
    wait_until(lambda: len(fake_guests(home)) == 1)
    assert sweep_abandoned() == []
    assert len(fake_guests(home)) == 1
