"""The runner: order, losses, full disks, stops.  Real workers with fake nodes, a real store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.scratch import ScratchDirectory
from faultinject.campaign.records import MissionPlan, MissionRow, NodeSpec
from faultinject.campaign.run.dispatch import Ending, Stop, StopReason, run_missions
from faultinject.campaign.store.store import Store, StoreFull
from faultinject.campaign.workers.messages import Task, Worker, WorkerFailure
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost, WorkerProcess
from tests.faultinject.campaign.fake_node import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.specs import FACTS

SPEC = """
title = "Tests of the runner"
question = "inequality4"
faults = { "hang" = 1.0 }
strata = [
    { guests_hit = 0, missions = 10 },
    { guests_hit = 1, missions = 10 },
    { guests_hit = 2, missions = 6 },
    { guests_hit = 3, missions = 4 },
]
"""
MISSIONS = 30


class Recorder:
    """An observer that keeps its notifications."""

    def __init__(self) -> None:
        self.rows: list[MissionRow] = []
        self.duplicates: list[MissionRow] = []
        self.troubles: list[str] = []

    def row(self, row: MissionRow, *, again: bool) -> None:
        (self.duplicates if again else self.rows).append(row)

    def trouble(self, text: str) -> None:
        self.troubles.append(text)

    def poll(self) -> None: ...


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store.create(home / "results", SPEC, 7) as store:
        yield store


def run(
    store: Store, workers: int = 2, *, first: int | None = None, stop: Stop | None = None
) -> tuple[Ending, Recorder]:
    observer, directories = Recorder(), ScratchDirectory("c")
    try:
        processes = [
            WorkerProcess(f"w{number}", Worker(module=FAKE, spec=NodeSpec()), directories)
            for number in range(1, workers + 1)
        ]
        return run_missions(store, processes, observer, stop or Stop(), first=first), observer
    finally:
        directories.close()


def test_run_missions_runs_each_mission_once_in_the_plans_order(store: Store, home: Path) -> None:
    ending, observer = run(store, workers=1)
    assert (ending.why, ending.missions) == (StopReason.COMPLETE, MISSIONS)
    assert began(home) == [store.plan.index_at(place) for place in range(MISSIONS)]
    assert store.done == MISSIONS and not store.partial and not observer.duplicates
    assert store.meta().runs[-1].state == "complete"
    assert store.meta().facts["w1, run 1"].host == "fake"
    assert not fake_guests(home) and not list(home.glob("tv-c-*"))


def test_run_missions_shares_missions_between_workers(store: Store, home: Path) -> None:
    behave(home, meet=2)
    ending, observer = run(store)
    assert ending.why is StopReason.COMPLETE
    assert Counter(began(home)) == Counter(range(MISSIONS))
    assert {row.worker for row in observer.rows} == {"w1", "w2"}


def test_run_missions_stops_after_the_first_part(store: Store, home: Path) -> None:
    ending, _ = run(store, first=12)
    assert ending.why is StopReason.FIRST and store.done == store.prefix() == 12
    ending, _ = run(store)
    assert ending.why is StopReason.COMPLETE and ending.missions == MISSIONS - 12
    assert len(began(home)) == MISSIONS
    ending, _ = run(store)  # with nothing to do no worker starts
    assert (ending.why, ending.missions) == (StopReason.COMPLETE, 0)


def test_run_missions_repeats_the_mission_of_a_lost_worker(store: Store, home: Path) -> None:
    behave(home, die={"3": 1}, lose={"9": 2})
    ending, observer = run(store)
    assert ending.why is StopReason.COMPLETE and store.done == MISSIONS
    assert Counter(began(home)) == Counter(range(MISSIONS)) + Counter({3: 1, 9: 2})
    third, ninth = store.row(3), store.row(9)
    assert third is not None and (third.attempt, third.excluded) == (2, "")
    assert ninth is not None and (ninth.attempt, ninth.excluded) == (3, "")
    assert len(observer.troubles) == 3 and not fake_guests(home)


def test_run_missions_voids_a_mission_that_loses_every_worker(store: Store, home: Path) -> None:
    behave(home, lose={"9": 99})
    ending, _ = run(store)
    assert ending.why is StopReason.COMPLETE and store.done == MISSIONS
    row = store.row(9)
    assert row is not None and row.outcome is None
    assert "lost 3 times" in row.excluded and "the fake node is gone" in row.excluded
    assert began(home).count(9) == 3


def test_run_missions_aborts_when_workers_are_lost_one_after_the_other(
    store: Store, home: Path
) -> None:
    behave(home, lose={str(index): 99 for index in range(MISSIONS)})
    ending, _ = run(store, workers=1)
    assert ending.why is StopReason.FAILED and "one after the other" in ending.problem
    assert store.done <= 2 and store.meta().runs[-1].state.startswith("failed: ")


def test_run_missions_fails_when_no_node_can_be_opened(store: Store, home: Path) -> None:
    behave(home, refuse="this host has no gdbstub")
    ending, _ = run(store)
    assert (ending.why, ending.missions) == (StopReason.FAILED, 0)
    assert "no gdbstub" in ending.problem and ending.remedy == "install QEMU"
    assert ending.error_code == "TV0532"
    assert not began(home)


def test_run_missions_stops_when_a_workers_disk_is_full(store: Store, home: Path) -> None:
    behave(home, full={"9": 1})
    ending, _ = run(store)
    assert ending.why is StopReason.FULL and store.row(9) is None
    assert store.meta().runs[-1].state == "disk full"
    ending, _ = run(store)
    assert ending.why is StopReason.COMPLETE and store.done == MISSIONS


class Full(Store):
    """A store on a disk that is full after some rows."""

    room = 0

    def add(self, row: MissionRow) -> bool:
        if self.done >= self.room:
            raise StoreFull("the disk is full")
        return super().add(row)


def test_run_missions_stops_when_the_stores_disk_is_full(home: Path) -> None:
    with Full.create(home / "results", SPEC, 7) as store:
        assert isinstance(store, Full)
        store.room = 11
        ending, _ = run(store)
        assert ending.why is StopReason.FULL and ending.remedy and not fake_guests(home)
    with Store.open(home / "results") as again:
        assert again.done == 11
        ending, _ = run(again)
        assert ending.why is StopReason.COMPLETE and again.done == MISSIONS


def test_stop_ends_workers_and_their_guests(store: Store, home: Path) -> None:
    behave(home, pause=0.3)
    stop = Stop()

    def request_later() -> None:
        while len(began(home)) < 6:
            time.sleep(0.01)
        stop.request()

    thread = threading.Thread(target=request_later)
    thread.start()
    ending, _ = run(store, stop=stop)
    thread.join()
    assert ending.why is StopReason.INTERRUPTED and 0 < store.done < MISSIONS
    assert not fake_guests(home)
    behave(home)
    ending, _ = run(store)
    assert ending.why is StopReason.COMPLETE and store.done == MISSIONS


def test_second_stop_kills_a_worker_that_hangs(store: Store, home: Path) -> None:
    behave(home, hang={str(index): 1 for index in range(MISSIONS)}, stuck=True)
    stop = Stop()

    def stop_twice() -> None:
        deadline = time.monotonic() + 20
        while not began(home) and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.request()
        time.sleep(0.5)
        stop.request()

    asker = threading.Thread(target=stop_twice)
    asker.start()
    start = time.monotonic()
    ending, _ = run(store, stop=stop)
    asker.join()
    assert began(home) and ending.why is StopReason.INTERRUPTED
    assert time.monotonic() - start < 50, "the worker hangs for ten minutes"
    assert not fake_guests(home)


# ------------------------------------------------------- workers without processes


class Puppet:
    """A worker without a process."""

    def __init__(self, name: str, *, refuses: WorkerFailure | None = None) -> None:
        self.name = name
        self.refuses: WorkerFailure | None = refuses
        self.missions: list[int] = []

    def open(self) -> None:
        if self.refuses:
            raise WorkerLost("no node", how=self.refuses)

    def run(self, task: Task) -> MissionResult:
        if self.refuses:
            raise WorkerLost("no node", how=self.refuses)
        self.missions.append(task.plan.index)
        row = MissionRow(index=task.plan.index, worker=self.name)
        return MissionResult(row=row, facts=FACTS)

    def end(self) -> None: ...
    def wait(self) -> None: ...
    def kill(self) -> None: ...


def test_run_missions_drops_a_worker_without_a_node(store: Store) -> None:
    observer = Recorder()
    good, bad = Puppet("good"), Puppet("bad", refuses="refused")
    ending = run_missions(store, [good, bad], observer, Stop())
    assert ending.why is StopReason.COMPLETE and len(good.missions) == MISSIONS


class Doubled(Store):
    """A store that returns each pending mission twice."""

    def pending(self) -> Iterator[MissionPlan]:
        for plan in super().pending():
            yield plan
            yield plan


def test_run_missions_stores_a_repeated_mission_once(home: Path) -> None:
    with Doubled.create(home / "results", SPEC, 7) as store:
        observer = Recorder()
        ending = run_missions(store, [Puppet("w1"), Puppet("w2")], observer, Stop())
        assert ending.missions == store.done == len(observer.rows) == MISSIONS
        assert len(observer.duplicates) == MISSIONS
        tallies = store.by_stratum().values()
        assert sum(tally.trials + tally.excluded for tally in tallies) == MISSIONS
