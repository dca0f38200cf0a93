"""Distributes missions over workers in the plan's order, and stores each row when its mission ends.

Each worker has a thread that blocks on it and puts an event into one queue.  The caller's thread
takes the events, hands out missions, stores rows and reports progress: the store has one writer.  A
mission whose row is not stored counts as not run.  A later run runs it again, from the same plan.
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

from faultinject.campaign.records import MissionPlan, MissionRow
from faultinject.campaign.store.store import Store, StoreError, StoreFull
from faultinject.campaign.workers.messages import Task
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost
from faultinject.results.outcome import NodeFacts

__all__ = ["Ending", "MissionSource", "RunObserver", "Stop", "StopReason", "run_missions"]

ATTEMPTS = 3
"""Workers that may be lost with one mission.  Then its row says so, and it is no trial."""
REFUSALS = 3
"""Times in a row that a worker may fail to open a node before it is dropped."""
LOSSES = 6
"""Consecutive worker losses (per worker) without a completed mission before the run aborts."""
POLL = 0.25
"""Seconds between checks for a stop: a signal handler cannot wake a queue."""
MAKE_ROOM = "free disk space, then resume"


class StopReason(StrEnum):
    """Why a run ended."""

    COMPLETE = "complete"
    FIRST = "first part done"  # the requested part of the plan
    INTERRUPTED = "interrupted"
    FULL = "disk full"
    FAILED = "failed"


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended.  ``missions``: rows that it stored, ``seconds`` after its first node."""

    why: StopReason
    problem: str = ""
    remedy: str = ""
    error_code: str = "TV0532"
    missions: int = 0
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """Return it as the store keeps it."""
        return f"failed: {self.problem}" if self.why is StopReason.FAILED else str(self.why)


class Stop:
    """A request to stop: once ends workers gently, twice kills them (``now``)."""

    def __init__(self) -> None:
        self.gently = threading.Event()
        self.now = threading.Event()

    def request(self) -> None:
        """Request a stop; the second request means now."""
        (self.now if self.gently.is_set() else self.gently).set()


class RunObserver(Protocol):
    """Is notified of the progress of a run, in the caller's thread."""

    def row(self, row: MissionRow, *, again: bool) -> None:
        """Take a row that ended its mission; ``again``: it was stored already."""

    def trouble(self, text: str) -> None:
        """Take a problem that the run continues after."""

    def poll(self) -> None:
        """Do regular work; called several times a second."""


class MissionSource(Protocol):
    """A worker as the runner sees it: a ``WorkerProcess``, or a ``dask.Slot`` of a cluster."""

    name: str

    def open(self) -> object:
        """Open a node.  Raises WorkerLost."""

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost."""

    def end(self) -> None:
        """End, whatever it does; called from another thread."""

    def wait(self) -> None:
        """Wait for that end."""

    def kill(self) -> None:
        """End at once."""


class _WorkerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a call to a worker: of opening its node, or of a ``task``."""

    number: int
    task: Task | None = None
    result: MissionResult | None = None
    error: BaseException | None = None


class _WorkerThread:
    """A worker and the thread that blocks on it."""

    def __init__(
        self, number: int, worker: MissionSource, events: SimpleQueue[_WorkerEvent]
    ) -> None:
        self.worker = worker
        self.refusals = 0
        self._number = number
        self._events = events
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=worker.name, daemon=True)

    def start(self) -> None:
        """Have the worker open its node."""
        self._thread.start()

    def give(self, task: Task) -> None:
        """Have the worker run a mission."""
        self._inbox.put(task)

    def stop(self, *, now: bool) -> None:
        """Have the worker end, at once or gently; ``join`` waits for it."""
        self._inbox.put(None)
        (self.worker.kill if now else self.worker.end)()

    def join(self) -> None:
        """Wait until worker and thread have ended."""
        if self._thread.ident is not None:
            self.worker.wait()
            self._thread.join()

    def _work(self) -> None:
        self._call(None)
        while (task := self._inbox.get()) is not None:
            self._call(task)

    def _call(self, task: Task | None) -> None:
        result, failure = None, None
        try:
            if task is None:
                self.worker.open()
            else:
                result = self.worker.run(task)
        # The caller's thread handles it.  SystemExit: rich raises it when the output is closed.
        except BaseException as error:  # noqa: BLE001
            failure = error
        self._events.put(_WorkerEvent(number=self._number, task=task, result=result, error=failure))


class _Run:
    """One run, from its first worker to its last."""

    def __init__(
        self, store: Store, workers: Sequence[MissionSource], observer: RunObserver, stop: Stop
    ) -> None:
        self._store = store
        self._observer = observer
        self._stop = stop
        self._events: SimpleQueue[_WorkerEvent] = SimpleQueue()
        self._threads = [_WorkerThread(n, worker, self._events) for n, worker in enumerate(workers)]
        self._idle: deque[int] = deque()  # numbers of workers without a mission
        self._busy: set[int] = set()
        self._usable = set(range(len(workers)))
        self._again: deque[Task] = deque()  # missions of lost workers
        self._opened = False
        self._losses = 0
        self._facts: dict[str, NodeFacts] = {}
        self._ending: Ending | None = None
        self._missions = 0
        self._began: float | None = None

    def run(self, pending: Iterable[MissionPlan], done: StopReason) -> Ending:
        """Run the missions until all are done, or the run has to stop."""
        tasks = (Task(plan=plan) for plan in pending)
        try:
            self._threads[0].start()  # alone: a problem of all workers is reported once
            while (ending := self._ending) is None:
                self._hand_out(tasks)
                if self._idle and not self._busy:  # no mission is left
                    self._finish(done)
                elif self._stop.gently.is_set():
                    self._finish(StopReason.INTERRUPTED)
                else:
                    self._wait()
        except StoreFull as error:
            ending = self._finish(StopReason.FULL, str(error), MAKE_ROOM, "TV0523")
        finally:
            self._close()
        return ending

    def _finish(
        self,
        why: StopReason,
        problem: str = "",
        remedy: str = "",
        error_code: str = "TV0532",
    ) -> Ending:
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        self._ending = Ending(
            why=why,
            problem=problem,
            remedy=remedy,
            error_code=error_code,
            missions=self._missions,
            seconds=seconds,
        )
        return self._ending

    def _hand_out(self, tasks: Iterator[Task]) -> None:
        """Give every idle worker a mission; those of lost workers come first."""
        while self._idle:
            task = self._again.popleft() if self._again else next(tasks, None)
            if task is None:
                return
            number = self._idle.popleft()
            self._busy.add(number)
            self._threads[number].give(task)

    def _wait(self) -> None:
        """Handle the next event of a worker, if one comes soon."""
        with contextlib.suppress(Empty):
            self._handle(self._events.get(timeout=POLL))
        self._observer.poll()

    def _handle(self, event: _WorkerEvent) -> None:
        thread = self._threads[event.number]
        self._busy.discard(event.number)
        if event.result is not None:
            self._write(event.result)
            thread.refusals = self._losses = 0
        elif isinstance(event.error, WorkerLost):
            self._handle_loss(thread, event.task, event.error)
        elif event.error is not None:
            raise event.error
        elif not self._opened:
            self._open_others()
        if event.number in self._usable:
            self._idle.append(event.number)

    def _open_others(self) -> None:
        self._opened = True
        self._began = time.monotonic()
        for thread in self._threads[1:]:
            thread.start()

    def _write(self, result: MissionResult) -> None:
        row = result.row
        if self._facts.get(row.worker) != result.facts:
            self._store.note_facts(row.worker, result.facts)
            self._facts[row.worker] = result.facts
        new = self._store.add(row)
        self._missions += new
        self._observer.row(row, again=not new)

    # -------------------------------------------------------------- losses

    def _handle_loss(self, thread: _WorkerThread, task: Task | None, error: WorkerLost) -> None:
        name = thread.worker.name
        if error.how != "lost" and task is not None:
            self._again.append(task)  # it was not begun
        if error.how == "full":
            self._finish(StopReason.FULL, f"{name}: {error}", MAKE_ROOM, "TV0523")
        elif error.how == "cluster":
            self._finish(StopReason.FAILED, str(error), error.remedy, error.error_code)
        elif error.how == "refused":
            self._handle_refusal(thread, error)
        elif task is not None:
            self._run_again(name, task, error)

    def _handle_refusal(self, thread: _WorkerThread, error: WorkerLost) -> None:
        """Drop a worker that cannot open a node, and abort if none can."""
        thread.refusals += 1
        if self._opened and thread.refusals < REFUSALS:
            self._observer.trouble(f"{thread.worker.name} has no node: {error}")
            return
        self._usable.discard(self._threads.index(thread))
        if not self._opened or not self._usable:
            problem = f"no node can be opened: {error}"
            self._finish(StopReason.FAILED, problem, error.remedy, error.error_code)
        else:
            self._observer.trouble(f"{thread.worker.name} is dropped: {error}")

    def _run_again(self, name: str, task: Task, error: WorkerLost) -> None:
        """Repeat a lost worker's mission, a limited number of times."""
        self._losses += 1
        if self._losses >= LOSSES * len(self._threads):
            self._finish(
                StopReason.FAILED,
                f"{self._losses} workers were lost one after the other, the last ({name}) with "
                f"mission {task.plan.index}: {error}",
                "`trivisor campaign replay` shows a mission; resume when the cause is fixed",
            )
        elif task.attempt < ATTEMPTS:
            self._observer.trouble(f"{name} was lost with mission {task.plan.index}: {error}")
            self._again.append(Task(plan=task.plan, attempt=task.attempt + 1))
        else:
            row = MissionRow(
                index=task.plan.index,
                lost=f"worker lost {task.attempt} times, last: {error}",
                began=time.time(),
                worker=name,
                attempt=task.attempt,
            )
            self._missions += self._store.add(row)
            self._observer.row(row, again=False)

    # -------------------------------------------------------------- the end

    def _close(self) -> None:
        """End every worker, and kill them all as soon as the stop is urgent."""
        killed = self._stop.now.is_set()
        for thread in self._threads:
            thread.stop(now=killed)
        joins = [threading.Thread(target=thread.join, daemon=True) for thread in self._threads]
        for join in joins:
            join.start()
        for join in joins:
            while join.is_alive():
                join.join(POLL)
                self._observer.poll()
                if self._stop.now.is_set() and not killed:
                    killed = True
                    for thread in self._threads:
                        thread.worker.kill()


def run_missions(
    store: Store,
    workers: Sequence[MissionSource],
    observer: RunObserver,
    stop: Stop,
    *,
    first: int | None = None,
    scheduler: str = "",
) -> Ending:
    """Run the pending missions, or those among the ``first`` of the plan's order.

    All workers have ended afterwards.  Whatever happens, what was stored is a part of the plan, and
    a later call can run the rest.  Raises StoreError, and what a worker raises besides WorkerLost
    (OSError).
    """
    done = StopReason.COMPLETE
    pending = store.pending()
    if first is not None:
        pending = takewhile(lambda plan: plan.order < first, pending)
        done = StopReason.FIRST
    head = next(pending, None)
    if head is None:
        return Ending(why=done)
    number = store.begin(len(workers), scheduler)
    ending = Ending(why=StopReason.FAILED, problem="an error of the runner itself")
    try:
        ending = _Run(store, workers, observer, stop).run(chain([head], pending), done)
    finally:
        # On a full disk this fails too; a run without an end counts as killed.
        with contextlib.suppress(StoreError):
            store.end(number, ending.state)
    return ending
