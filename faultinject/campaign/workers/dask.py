"""Missions on a Dask cluster: one node in each Dask worker, rows to the same store.

Each Dask worker has a node (``dask_worker``).  ``distributed`` runs the missions of a lost
worker elsewhere.  The workers need Trivisor in the same version, and hosts that can run guests
(``trivisor doctor``).  Needs the extra ``distributed``.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import msgspec

from faultinject.campaign.workers.dask_worker import close_node, open_node, run_task
from faultinject.campaign.workers.messages import Task, Worker
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost
from faultinject.results.outcome import NodeFacts
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["DaskCluster", "Slot"]

CONNECT_TIMEOUT = 15.0
"""Seconds for the scheduler to answer."""
WORKERS_TIMEOUT = 30.0
"""Seconds for the scheduler to have a worker."""
SLOTS = 2
"""Missions queued for each worker, so that it never waits for the next one."""
REFUSALS = 3
"""Times that a worker may fail to open a node before it gets no more missions."""


class DaskCluster:
    """The workers of a scheduler.  Raises CommandError if there is no scheduler, or no worker.

    ``expected``: Dask workers to use; None: those that are there.
    """

    def __init__(
        self,
        address: str,
        worker: Worker,
        progress: Callable[[str], None] = lambda _: None,
        *,
        expected: int | None = None,
    ) -> None:
        self.key = uuid.uuid4().hex
        self._worker = msgspec.json.encode(worker)
        self._progress = progress
        self._lock = threading.Lock()
        self._load: Counter[str] = Counter()  # missions queued or running, by worker
        self._refused: Counter[str] = Counter()
        self.client = _connect(address)
        try:
            self.client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
        except TimeoutError as error:
            self.client.close()
            raise CommandError(
                f"the scheduler at {address} has no worker",
                remedy=f"start some: `dask worker {address} --nthreads 1`",
            ) from error
        self.slots = [
            Slot(f"slot {number}", self)
            for number in range(1, SLOTS * (expected or len(self.addresses)) + 1)
        ]

    @property
    def addresses(self) -> list[str]:
        """Return the addresses of all current workers."""
        return sorted(self.client.nthreads())

    def submit(self, function: Callable[..., Any], *arguments: object) -> tuple[str, Any]:
        """Submit a function to the least loaded worker; return its address and the future.

        Raises WorkerLost if no worker can open a node.
        """
        addresses = self.addresses
        with self._lock:
            fit = [each for each in addresses if self._refused[each] < REFUSALS]
            if not fit:
                raise WorkerLost(
                    "no worker of the cluster can open a node" if addresses
                    else "the cluster has no worker any more",
                    how="refused",
                )  # fmt: skip
            address = min(fit, key=lambda each: self._load[each])
            self._load[address] += 1
        future = self.client.submit(
            function, self.key, self._worker, *arguments,
            workers=[address], allow_other_workers=True, pure=False,
        )  # fmt: skip
        return address, future

    def settle(self, address: str, *, refused: bool) -> bool:
        """Record that a call of a worker ended; return whether any worker may open a node."""
        with self._lock:
            self._load[address] -= 1
            if not refused:
                self._refused.pop(address, None)
                return True
            self._refused[address] += 1
        others = [each for each in self.addresses if self._refused[each] < REFUSALS]
        return bool(others)

    def close(self) -> None:
        """End the nodes of this campaign on all workers, and the connection."""
        with contextlib.suppress(OSError, TimeoutError):  # without a scheduler IDLE ends them
            self.client.run(close_node, self.key, on_error="ignore")
        self.client.close()


class Slot:
    """A place for one mission at a time, on any worker (a ``dispatch.MissionSource``)."""

    def __init__(self, name: str, cluster: DaskCluster) -> None:
        self.name = name
        self._cluster = cluster
        self._future: Any = None  # distributed.Future; its types are not published
        self._ending = threading.Event()

    def open(self) -> NodeFacts:
        """Open a node on some worker.  Raises WorkerLost."""
        facts = self._call(open_node)
        return msgspec.json.decode(facts, type=NodeFacts)

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost."""
        return msgspec.json.decode(
            self._call(run_task, msgspec.json.encode(task)), type=MissionResult
        )

    def end(self) -> None:
        """Stop waiting for a mission."""
        self._ending.set()
        if self._future is not None:
            self._future.cancel()

    def kill(self) -> None:
        """Do the same: the cluster ends the worker."""
        self.end()

    def wait(self) -> None:
        """Return at once: ``DaskCluster.close`` waits."""

    def _call(self, function: Callable[..., bytes], *arguments: object) -> bytes:
        from distributed import KilledWorker  # noqa: PLC0415 - an extra

        while True:
            address, self._future = self._cluster.submit(function, *arguments)
            if self._ending.is_set():
                self._future.cancel()
            refused = False
            try:
                result: bytes = self._future.result()
                return result
            except WorkerLost as error:
                refused = error.how == "refused"
                if not refused:
                    raise
                problem = error
            except KilledWorker as error:
                raise WorkerLost(f"Dask workers died with it: {error}") from error
            except (CancelledError, OSError) as error:
                raise WorkerLost(f"the cluster cancelled it: {error!r}") from error
            finally:
                others = self._cluster.settle(address, refused=refused)
            if not others:
                raise problem


def _connect(address: str) -> Any:
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise CommandError(
            "a cluster needs the library distributed",
            remedy="pip install 'trivisor[distributed]', or leave --scheduler out",
            code=ExitCode.CANNOT_RUN_HERE,
        ) from error
    try:
        connect: Any = Client
        return connect(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise CommandError(
            f"no Dask scheduler answers at {address}: {error}",
            remedy="start one with `dask scheduler`, and give the address that it prints",
        ) from error
