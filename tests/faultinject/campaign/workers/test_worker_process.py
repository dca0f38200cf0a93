"""A worker process as its runner holds it: real processes, a fake station."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faultinject.campaign.records import MissionPlan, StationSpec
from faultinject.campaign.workers.scratch import ScratchDirectories, processes_of, sweep_abandoned
from faultinject.campaign.workers.tasks import Task, Worker
from faultinject.campaign.workers.worker_process import WorkerLost, WorkerProcess
from tests.faultinject.campaign.fake_station import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.processes import ROOT, following


def mission(index: int) -> MissionPlan:
    return MissionPlan(
        index=index, order=index, stratum="f0", design="voted", repair=False, k=0, voter_hit=False,
        seed=index, length=20,
    )  # fmt: skip


def wait_until(what: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_STATION", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    return scratch


@pytest.fixture
def berths(home: Path) -> Iterator[ScratchDirectories]:
    berths = ScratchDirectories()
    yield berths
    berths.close()


@pytest.fixture
def hand(berths: ScratchDirectories) -> Iterator[WorkerProcess]:
    hand = WorkerProcess("w1", Worker(station=FAKE, spec=StationSpec()), berths)
    yield hand
    hand.kill()


def test_missions_are_run_one_by_one_in_one_worker(hand: WorkerProcess, home: Path) -> None:
    first = hand.run(Task(plan=mission(3)))
    pid = hand.pid
    second = hand.run(Task(plan=mission(4), attempt=2))
    assert (first.row.index, second.row.index) == (3, 4)
    assert (second.row.worker, second.row.attempt) == ("w1", 2)
    assert first.facts.host == "fake"
    assert hand.pid == pid
    wait_until(lambda: len(fake_guests(home)) == 1)
    hand.end()
    hand.wait()
    assert not fake_guests(home)


def test_a_worker_that_dies_is_replaced_and_its_guest_ended(
    hand: WorkerProcess, home: Path
) -> None:
    behave(home, die={"7": 1})
    with pytest.raises(WorkerLost, match="it ended before it had told") as lost:
        hand.run(Task(plan=mission(7)))
    assert lost.value.how == "lost"
    assert not fake_guests(home)
    assert hand.run(Task(plan=mission(7), attempt=2)).row.attempt == 2


def test_a_lost_station_says_why(hand: WorkerProcess, home: Path) -> None:
    behave(home, lose={"1": 1})
    with pytest.raises(WorkerLost, match="the fake node is gone") as lost:
        hand.run(Task(plan=mission(1)))
    assert lost.value.how == "lost"


def test_a_full_disk_is_told_as_one(hand: WorkerProcess, home: Path) -> None:
    behave(home, full={"1": 1})
    with pytest.raises(WorkerLost, match="No space left") as lost:
        hand.run(Task(plan=mission(1)))
    assert lost.value.how == "full"


def test_a_station_that_cannot_be_had_is_refused_with_its_remedy(
    hand: WorkerProcess, home: Path
) -> None:
    behave(home, refuse="there is no QEMU")
    with pytest.raises(WorkerLost, match="there is no QEMU") as lost:
        hand.open()
    assert (lost.value.how, lost.value.remedy) == ("refused", "give it what it lacks")


def test_a_worker_that_tells_nothing_is_given_up(
    hand: WorkerProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(home, hang={"1": 1})
    hand.open()
    monkeypatch.setattr(
        "faultinject.campaign.workers.worker_process.mission_patience", lambda *_: 0.5
    )
    with pytest.raises(WorkerLost, match="told nothing"):
        hand.run(Task(plan=mission(1)))
    assert not fake_guests(home)


def test_ending_in_the_middle_of_a_mission(hand: WorkerProcess, home: Path) -> None:
    behave(home, hang={"1": 1})
    hand.open()
    lost: list[Exception] = []

    def run() -> None:
        with pytest.raises(WorkerLost) as caught:
            hand.run(Task(plan=mission(1)))
        lost.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: began(home))
    hand.end()
    hand.wait()
    thread.join(10)
    assert lost and not fake_guests(home)
    with pytest.raises(WorkerLost, match="told to end"):
        hand.run(Task(plan=mission(2)))


HOLDER = """
import sys
from faultinject.campaign.workers.scratch import ScratchDirectories
from faultinject.campaign.workers.worker_process import WorkerProcess
from faultinject.campaign.workers.tasks import Task, Worker
from faultinject.campaign.records import StationSpec
from tests.faultinject.campaign.workers.test_worker_process import mission
from tests.faultinject.campaign.fake_station import FAKE
hand = WorkerProcess("w1", Worker(station=FAKE, spec=StationSpec()), ScratchDirectories())
hand.open()
print(hand.pid, flush=True)
hand.run(Task(plan=mission(1)))
"""


def holder(home: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds a worker in the middle of a mission; return the worker's pid."""
    process = subprocess.Popen(
        following(sys.executable, "-c", HOLDER), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    wait_until(lambda: began(home))
    return process, pid


def test_a_worker_whose_runner_is_killed_ends_itself_and_its_guest(home: Path) -> None:
    behave(home, hang={"1": 1})
    process, _ = holder(home)
    wait_until(lambda: len(fake_guests(home)) == 1)
    process.kill()
    process.wait()
    wait_until(lambda: not fake_guests(home))
    wait_until(lambda: not processes_of(home))
    assert sweep_abandoned() and not list(home.glob("tv-c-*"))


def test_what_a_killed_runner_and_a_killed_worker_left_is_swept(home: Path) -> None:
    behave(home, hang={"1": 1})
    process, worker = holder(home)
    os.kill(worker, signal.SIGSTOP)  # it notices nothing
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)
    assert len(fake_guests(home)) == 1
    began_at = time.monotonic()
    assert len(sweep_abandoned()) == 1
    assert not fake_guests(home) and not list(home.glob("tv-c-*"))
    assert time.monotonic() - began_at < 40


def test_berths_that_are_in_use_are_not_swept(hand: WorkerProcess, home: Path) -> None:
    hand.open()
    # A process has no command line for a moment after its exec.
    wait_until(lambda: len(fake_guests(home)) == 1)
    assert sweep_abandoned() == []
    assert len(fake_guests(home)) == 1
