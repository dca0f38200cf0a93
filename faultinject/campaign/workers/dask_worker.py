"""The station of a Dask worker process: its first mission opens it, and without any it is closed.

A process of our own (``hand``, ``worker``) runs the missions, as a local run does it: that one ends
its guests when the Dask worker dies.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import msgspec

from faultinject.campaign.records import StationFacts
from faultinject.campaign.workers.scratch import ScratchDirectories, sweep_abandoned
from faultinject.campaign.workers.tasks import Task, Worker
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost, WorkerProcess

__all__ = ["close_desk", "open_desk", "run_task"]

IDLE = 120.0
"""Seconds after which a station that gets no mission is closed: its campaign may have been
killed."""


class _StationHolder:
    """The one station of a Dask worker process."""

    def __init__(self, key: str, worker: bytes, name: str) -> None:
        sweep_abandoned()
        self.key = key
        self.lock = threading.Lock()  # one mission at a time, however many threads Dask gives it
        self._berths = ScratchDirectories()
        self._name = name
        self._hand = WorkerProcess("w", msgspec.json.decode(worker, type=Worker), self._berths)
        self._timer = threading.Timer(IDLE, self.close)

    def open(self) -> StationFacts:
        """Have the station.  Raises WorkerLost."""
        with self._awake():
            return self._hand.open()

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost."""
        with self._awake():
            ran = self._hand.run(task)
        return MissionResult(
            row=msgspec.structs.replace(ran.row, worker=self._name), facts=ran.facts
        )

    def close(self) -> None:
        """End the station.  A mission that is under way there is lost."""
        _forget(self)  # a mission that comes meanwhile gets a new one
        self._timer.cancel()
        self._hand.end()
        self._hand.wait()
        self._berths.close()

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        with self.lock:
            self._timer.cancel()
            try:
                yield
            finally:
                self._timer = threading.Timer(IDLE, self.close)
                self._timer.daemon = True
                self._timer.start()


_desks: dict[str, _StationHolder] = {}  # one at most
_over: set[str] = set()  # campaigns whose missions, if any still come, come too late
_desks_lock = threading.Lock()


def _forget(desk: _StationHolder) -> None:
    with _desks_lock:
        if _desks.get(desk.key) is desk:
            del _desks[desk.key]


def _desk(key: str, worker: bytes) -> _StationHolder:
    """Return this process's station for a campaign; that of an earlier campaign is closed."""
    from distributed import get_worker  # noqa: PLC0415 - an extra

    with _desks_lock:
        former = [] if key in _over else [each for each in _desks.values() if each.key != key]
        _over.update(desk.key for desk in former)
    for desk in former:
        desk.close()
    with _desks_lock:
        if key in _over:
            raise WorkerLost(
                "its campaign has ended, or another one took the worker", how="refused"
            )
        if key not in _desks:
            _desks[key] = _StationHolder(key, worker, str(get_worker().name))
        return _desks[key]


def open_desk(key: str, worker: bytes) -> bytes:
    """Have a station in this Dask worker; return its facts.  Raises WorkerLost."""
    return msgspec.json.encode(_desk(key, worker).open())


def run_task(key: str, worker: bytes, task: bytes) -> bytes:
    """Run one mission on this Dask worker's station; return ``MissionResult``.  Raises
    WorkerLost."""
    ran = _desk(key, worker).run(msgspec.json.decode(task, type=Task))
    return msgspec.json.encode(ran)


def close_desk(key: str) -> None:
    """Close this Dask worker's station, if it is this campaign's."""
    with _desks_lock:
        _over.add(key)
        desk = _desks.get(key)
    if desk is not None:
        desk.close()
