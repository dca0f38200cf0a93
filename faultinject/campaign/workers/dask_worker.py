"""The node of a Dask worker process: opened by its first mission, closed when it is idle.

A worker process of ours (``worker_process``, ``worker``) runs the missions, as in a local run.  It
ends its guests when the Dask worker dies.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import msgspec

from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from faultinject.campaign.workers.messages import Task, Worker
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost, WorkerProcess
from faultinject.results.outcome import NodeFacts

__all__ = ["close_node", "open_node", "run_task"]

IDLE = 120.0
"""Seconds without a mission after which a node is closed: its campaign may have been killed."""


class _NodeHolder:
    """The one node of a Dask worker process."""

    def __init__(self, key: str, worker: bytes, name: str) -> None:
        sweep_abandoned()
        self.key = key
        self.lock = threading.Lock()  # one mission at a time, whatever threads Dask has
        self._scratch = ScratchDirectory("c")
        self._name = name
        self._process = WorkerProcess("w", msgspec.json.decode(worker, type=Worker), self._scratch)
        self._timer = threading.Timer(IDLE, self.close)

    def open(self) -> NodeFacts:
        """Open the node.  Raises WorkerLost."""
        with self._awake():
            return self._process.open()

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost."""
        with self._awake():
            ran = self._process.run(task)
        return MissionResult(
            row=msgspec.structs.replace(ran.row, worker=self._name), facts=ran.facts
        )

    def close(self) -> None:
        """Close the node.  A mission that runs there is lost."""
        _forget(self)  # a mission that comes meanwhile gets a new node
        self._timer.cancel()
        self._process.end()
        self._process.wait()
        self._scratch.close()

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


_nodes: dict[str, _NodeHolder] = {}  # by campaign; one at most
_ended: set[str] = set()  # campaigns whose late missions are refused
_nodes_lock = threading.Lock()


def _forget(holder: _NodeHolder) -> None:
    with _nodes_lock:
        if _nodes.get(holder.key) is holder:
            del _nodes[holder.key]


def _node(key: str, worker: bytes) -> _NodeHolder:
    """Return this process's node for a campaign, and close that of an earlier campaign."""
    from distributed import get_worker  # noqa: PLC0415 - an extra

    with _nodes_lock:
        former = [] if key in _ended else [each for each in _nodes.values() if each.key != key]
        _ended.update(holder.key for holder in former)
    for holder in former:
        holder.close()
    with _nodes_lock:
        if key in _ended:
            raise WorkerLost(
                "its campaign has ended, or another one took the worker", how="refused"
            )
        if key not in _nodes:
            _nodes[key] = _NodeHolder(key, worker, str(get_worker().name))
        return _nodes[key]


def open_node(key: str, worker: bytes) -> bytes:
    """Open a node in this Dask worker; return its facts.  Raises WorkerLost."""
    return msgspec.json.encode(_node(key, worker).open())


def run_task(key: str, worker: bytes, task: bytes) -> bytes:
    """Run one mission on this Dask worker's node; return a ``MissionResult``.

    Raises WorkerLost.
    """
    result = _node(key, worker).run(msgspec.json.decode(task, type=Task))
    return msgspec.json.encode(result)


def close_node(key: str) -> None:
    """Close this Dask worker's node, if it belongs to this campaign."""
    with _nodes_lock:
        _ended.add(key)
        holder = _nodes.get(key)
    if holder is not None:
        holder.close()
