"""A worker with the thread that waits for it: given missions, it tells what became of them."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Protocol

import msgspec

from faultinject.campaign.workers.tasks import Task
from faultinject.campaign.workers.worker_process import MissionResult

__all__ = ["WorkerEvent", "WorkerThread", "MissionSource"]


class MissionSource(Protocol):
    """A worker as this module sees it (``worker_process.WorkerProcess`` or ``dask.Slot``)."""

    name: str

    def open(self) -> object:
        """Have a station.  Raises WorkerLost."""

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost."""

    def end(self) -> None:
        """End, whatever it does; called from another thread."""

    def wait(self) -> None:
        """Wait for that end."""

    def kill(self) -> None:
        """End at once."""


class WorkerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a lane tells.  With no ``task``: of its opening."""

    lane: int
    task: Task | None = None
    ran: MissionResult | None = None
    error: Exception | None = None


class WorkerThread:
    """A worker with the thread that waits for it."""

    def __init__(
        self, number: int, worker: MissionSource, events: SimpleQueue[WorkerEvent]
    ) -> None:
        self.worker = worker
        self.refusals = 0
        self._number = number
        self._events = events
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=worker.name, daemon=True)

    def start(self) -> None:
        """Have the worker open its station; an event tells how that ended."""
        self._thread.start()

    def give(self, task: Task) -> None:
        """Have it run a mission; an event tells what became of it."""
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
        self._tell(None)
        while (task := self._inbox.get()) is not None:
            self._tell(task)

    def _tell(self, task: Task | None) -> None:
        ran, failed = None, None
        try:
            if task is None:
                self.worker.open()
            else:
                ran = self.worker.run(task)
        except Exception as error:  # noqa: BLE001 - the main thread decides what it means
            failed = error
        self._events.put(WorkerEvent(lane=self._number, task=task, ran=ran, error=failed))
