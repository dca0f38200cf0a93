"""Spreads missions over workers, in the plan's order, and has the store write each row as it ends.

One thread a worker waits for it; this one, the caller's, deals missions out, writes rows and tells
how it goes on: the store has one writer.  What is not written was not run: whoever resumes runs it
again, from the same plan.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain, takewhile
from queue import Empty, SimpleQueue
from typing import Protocol

import msgspec

from faultinject.campaign.records import MissionPlan, MissionRow, StationFacts
from faultinject.campaign.store.store import StoreError, StoreFull
from faultinject.campaign.workers.tasks import Task
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost
from faultinject.campaign.workers.worker_thread import MissionSource, WorkerEvent, WorkerThread

__all__ = ["ResultStore", "Ending", "Stop", "RunObserver", "StopReason", "run_missions"]

ATTEMPTS = 3
"""Workers that may be lost with a mission; then it is no trial (a void row) and says why."""
REFUSALS = 3
"""Times in a row that a worker may find no station before it is done without."""
LOSSES = 6
"""Workers lost, for each there is, with no mission run in between: then it is not the missions."""
LOOK_EVERY = 0.25
"""Seconds between looks at whether to stop: a signal's handler can wake no queue."""


class StopReason(StrEnum):
    """Why a run ended."""

    COMPLETE = "complete"
    FIRST = "first part done"  # as far as was asked for
    INTERRUPTED = "interrupted"
    FULL = "disk full"
    FAILED = "failed"


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended.  ``missions``: rows that it wrote, in ``seconds`` from the first station."""

    why: StopReason
    words: str = ""
    remedy: str = ""
    missions: int = 0
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """As the store keeps it."""
        return f"failed: {self.words}" if self.why is StopReason.FAILED else str(self.why)


class Stop:
    """Asked to stop: once (``gently``), or at once (``now``: workers are killed)."""

    def __init__(self) -> None:
        self.gently = threading.Event()
        self.now = threading.Event()

    def ask(self) -> None:
        """Ask; the second time means at once."""
        (self.now if self.gently.is_set() else self.gently).set()


class ResultStore(Protocol):
    """What is needed of ``store.Store``."""

    def pending(self) -> Iterator[MissionPlan]:
        """Planned and not stored, in the plan's order."""

    def add(self, row: MissionRow) -> bool:
        """Store a row; False if that mission is stored already."""

    def note_facts(self, worker: str, facts: StationFacts) -> None:
        """Store what a worker runs on."""

    def begin(self, workers: int, scheduler: str = "") -> int:
        """Note that a run begins; return its number."""

    def end(self, run: int, state: str) -> None:
        """Note how it ended."""


class RunObserver(Protocol):
    """Is told how a run goes on, in the caller's thread."""

    def row(self, row: MissionRow, *, again: bool) -> None:
        """A row was written; ``again``: it was there already."""

    def trouble(self, text: str) -> None:
        """Something went wrong that the run goes on after."""

    def look(self) -> None:
        """Called several times a second."""


class _Run:
    """One run: from its first worker to its last."""

    def __init__(
        self, book: ResultStore, workers: Sequence[MissionSource], teller: RunObserver, stop: Stop
    ) -> None:
        self._book = book
        self._teller = teller
        self._stop = stop
        self._events: SimpleQueue[WorkerEvent] = SimpleQueue()
        self._lanes = [WorkerThread(n, worker, self._events) for n, worker in enumerate(workers)]
        self._ready: deque[int] = deque()  # lanes with nothing to do
        self._again: deque[Task] = deque()
        self._busy: dict[int, Task] = {}
        self._living = set(range(len(workers)))
        self._opened = False
        self._losses = 0
        self._facts: dict[str, StationFacts] = {}
        self._ending: Ending | None = None
        self._missions = 0
        self._began: float | None = None

    def go(self, pending: Iterable[MissionPlan], done: StopReason) -> Ending:
        """Run them all, or as far as it gets."""
        tasks = (Task(plan=plan) for plan in pending)
        try:
            self._lanes[0].start()  # alone: what is wrong with all of them is told once
            while (ending := self._ending) is None:
                self._deal(tasks)
                if self._ready and not self._busy:  # nothing is left to give
                    self._finish(done)
                elif self._stop.gently.is_set():
                    self._finish(StopReason.INTERRUPTED)
                else:
                    self._hear()
        except StoreFull as error:
            ending = self._finish(StopReason.FULL, str(error), "make room, then resume")
        finally:
            self._close()
        return ending

    def _finish(self, why: StopReason, words: str = "", remedy: str = "") -> Ending:
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        self._ending = Ending(
            why=why, words=words, remedy=remedy, missions=self._missions, seconds=seconds
        )
        return self._ending

    def _deal(self, tasks: Iterator[Task]) -> None:
        """Give every idle worker a mission, those of lost workers first."""
        while self._ready:
            task = self._again.popleft() if self._again else next(tasks, None)
            if task is None:
                return
            lane = self._ready.popleft()
            self._busy[lane] = task
            self._lanes[lane].give(task)

    def _hear(self) -> None:
        """Take in what the lanes tell, for as long as they have something to tell."""
        with contextlib.suppress(Empty):
            self._take(self._events.get(timeout=LOOK_EVERY))
        self._teller.look()

    def _take(self, event: WorkerEvent) -> None:
        lane = self._lanes[event.lane]
        self._busy.pop(event.lane, None)
        if event.ran is not None:
            self._write(event.ran)
            lane.refusals = self._losses = 0
        elif isinstance(event.error, WorkerLost):
            self._take_loss(lane, event.task, event.error)
        elif event.error is not None:
            raise event.error
        elif not self._opened:
            self._open_others()
        if event.lane in self._living:
            self._ready.append(event.lane)

    def _open_others(self) -> None:
        self._opened = True
        self._began = time.monotonic()
        for lane in self._lanes[1:]:
            lane.start()

    def _write(self, ran: MissionResult) -> None:
        row = ran.row
        if self._facts.get(row.worker) != ran.facts:
            self._book.note_facts(row.worker, ran.facts)
            self._facts[row.worker] = ran.facts
        new = self._book.add(row)
        self._missions += new
        self._teller.row(row, again=not new)

    # -------------------------------------------------------------- losses

    def _take_loss(self, lane: WorkerThread, task: Task | None, error: WorkerLost) -> None:
        name = lane.worker.name
        if error.how == "full":
            self._back(task)
            self._finish(StopReason.FULL, f"{name}: {error}", "make room, then resume")
        elif error.how == "refused":
            self._back(task)  # it was not begun
            self._refused(lane, error)
        elif task is not None:
            self._lost(name, task, error)

    def _back(self, task: Task | None) -> None:
        if task is not None:
            self._again.append(task)

    def _refused(self, lane: WorkerThread, error: WorkerLost) -> None:
        """Do without a worker that finds no station; without any there is nothing to be done."""
        lane.refusals += 1
        if self._opened and lane.refusals < REFUSALS:
            self._teller.trouble(f"{lane.worker.name} has no station: {error}")
            return
        self._living.discard(self._lanes.index(lane))
        if not self._opened or not self._living:
            self._finish(StopReason.FAILED, f"no station can be had: {error}", error.remedy)
        else:
            self._teller.trouble(f"{lane.worker.name} is done without: {error}")

    def _lost(self, name: str, task: Task, error: WorkerLost) -> None:
        """Have a lost worker's mission run again, but not without end."""
        self._losses += 1
        if self._losses >= LOSSES * len(self._lanes):
            self._finish(
                StopReason.FAILED,
                f"{self._losses} workers were lost one after the other, the last ({name}) with "
                f"mission {task.plan.index}: {error}",
                "`trivisor campaign replay` shows a mission; resume when it is mended",
            )
        elif task.attempt < ATTEMPTS:
            self._teller.trouble(f"{name} was lost with mission {task.plan.index}: {error}")
            self._again.append(Task(plan=task.plan, attempt=task.attempt + 1))
        else:
            row = MissionRow(
                index=task.plan.index,
                outcome=None,
                void=f"worker lost {task.attempt} times, last: {error}",
                began=time.time(),
                worker=name,
                attempt=task.attempt,
            )
            self._missions += self._book.add(row)
            self._teller.row(row, again=False)

    # -------------------------------------------------------------- the end

    def _close(self) -> None:
        """End every worker; at once if that is asked for meanwhile, or was."""
        killed = self._stop.now.is_set()
        for lane in self._lanes:
            lane.stop(now=killed)
        joins = [threading.Thread(target=lane.join, daemon=True) for lane in self._lanes]
        for join in joins:
            join.start()
        for join in joins:
            while join.is_alive():
                join.join(LOOK_EVERY)
                self._teller.look()
                if self._stop.now.is_set() and not killed:
                    killed = True
                    for lane in self._lanes:
                        lane.worker.kill()


def run_missions(
    book: ResultStore,
    workers: Sequence[MissionSource],
    teller: RunObserver,
    stop: Stop,
    *,
    first: int | None = None,
    scheduler: str = "",
) -> Ending:
    """Run what is pending, only the ``first`` of the plan's order if given; all workers end then.

    Whatever happens, what was written is a part of the plan, and the rest can be run by another
    call.  Raises StoreError, and what a worker raises that is none of its business (OSError).
    """
    done = StopReason.COMPLETE
    pending = book.pending()
    if first is not None:
        pending = takewhile(lambda plan: plan.order < first, pending)
        done = StopReason.FIRST
    head = next(pending, None)
    if head is None:
        return Ending(why=done)
    number = book.begin(len(workers), scheduler)
    ending = Ending(why=StopReason.FAILED, words="an error of the runner itself")
    try:
        ending = _Run(book, workers, teller, stop).go(chain([head], pending), done)
    finally:
        # On a full disk that cannot be written either; a run without an end was interrupted.
        with contextlib.suppress(StoreError):
            book.end(number, ending.state)
    return ending
