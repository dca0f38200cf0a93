"""Missions on a Dask cluster: one node in each Dask worker, rows to the same store.

Each Dask worker has a node (``dask_worker``).  ``distributed`` runs the missions of a lost
worker elsewhere.  The workers need Trivisor in the same version, and hosts that can run guests
(``trivisor doctor``).  Needs the extra ``distributed``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import msgspec

from deploy.host.install import how_to_pip
from faultinject.campaign.workers.dask_worker import close_node, open_node, run_task
from faultinject.campaign.workers.messages import Task, Worker
from faultinject.campaign.workers.worker_process import MissionResult, WorkerLost
from faultinject.results.outcome import NodeFacts
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["DaskCluster", "Slot"]

CONNECT_TIMEOUT = 15.0
"""Seconds for the scheduler to answer."""
WORKERS_TIMEOUT = 30.0
"""Seconds for the scheduler to have a worker, at the start and after it has lost all."""
ANSWER_TIMEOUT = 20.0
"""Seconds for the scheduler to answer, or for the connection to it to come back."""
CLOSE_TIMEOUT = 60.0
"""Seconds for the workers to close their nodes."""
CHECK_EVERY = 5.0
"""Seconds of waiting for a mission between two checks of the cluster."""
RESUME = "continue with `trivisor campaign resume` when the cluster works again"
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
        self.ending = threading.Event()
        self._load: Counter[str] = Counter()  # missions queued or running, by worker
        self._refused: Counter[str] = Counter()
        self._address = address
        self._without: float | None = None  # since when it has no worker, by time.monotonic
        self.client = _connect(address)
        try:
            self.client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
        except TimeoutError as error:
            self.client.close()
            raise CommandError(
                f"the scheduler at {address} has no worker",
                remedy=f"start some: `dask worker {address} --nthreads 1`",
                error_code="TV0531",
            ) from error
        self.slots = [
            Slot(f"slot {number}", self)
            for number in range(1, SLOTS * (expected or len(self.addresses)) + 1)
        ]

    @property
    def addresses(self) -> list[str]:
        """Return the addresses of all current workers.

        Raises WorkerLost ("cluster") if the scheduler is lost, or has had no worker for too long.
        """
        try:
            found = self.client.sync(self.client.scheduler.ncores, callback_timeout=ANSWER_TIMEOUT)
        except (AttributeError, OSError, RuntimeError, TimeoutError) as error:
            # AttributeError: distributed has closed the connection.
            raise self.lost() from error
        now = time.monotonic()
        if found:
            self._without = None
        elif self._without is None:
            self._without = now
        elif now - self._without > WORKERS_TIMEOUT:
            raise WorkerLost(
                "the cluster has no worker any more",
                how="cluster",
                remedy=RESUME,
                error_code="TV0531",
            )
        return sorted(found)

    def lost(self) -> WorkerLost:
        """Return the error of a lost scheduler."""
        problem = f"the scheduler at {self._address} is lost, or does not answer"
        return WorkerLost(problem, how="cluster", remedy=RESUME, error_code="TV0531")

    def is_back(self) -> bool:
        """Wait for a lost connection to the scheduler; return whether it came back."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while self.client.status == "connecting" and time.monotonic() < deadline:
            self.ending.wait(0.1)  # distributed reconnects in its own thread, without an event
        return bool(self.client.status == "running")

    def submit(self, function: Callable[..., Any], *arguments: object) -> tuple[str, Any]:
        """Submit a function to the least loaded worker; return its address and the future.

        Raises WorkerLost if no worker can open a node, or the scheduler is lost.
        """
        while not (addresses := self.addresses):
            if self.ending.wait(1.0):  # the scheduler is asked again: it may get a worker
                raise WorkerLost("it was asked to end")
        with self._lock:
            fit = [each for each in addresses if self._refused[each] < REFUSALS]
            if not fit:
                raise WorkerLost("no worker of the cluster can open a node", how="refused")
            address = min(fit, key=lambda each: self._load[each])
            self._load[address] += 1
        try:
            future = self.client.submit(
                function, self.key, self._worker, *arguments,
                workers=[address], allow_other_workers=True, pure=False,
            )  # fmt: skip
        except Exception as error:
            if self.client.status == "running":
                raise
            raise self.lost() from error
        return address, future

    def cancel(self, future: Any) -> None:
        """Cancel a call; without a scheduler there is nothing to cancel."""
        if self.client.status == "running":
            future.cancel()

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
        # Without a scheduler, and on a worker that does not answer, IDLE ends them.
        with contextlib.suppress(OSError, TimeoutError, AttributeError, RuntimeError):
            if self.client.status == "running":
                self.client.run(
                    close_node, self.key, on_error="ignore", callback_timeout=CLOSE_TIMEOUT
                )
        self.client.close()


class Slot:
    """A place for one mission at a time, on any worker (a ``dispatch.MissionSource``)."""

    def __init__(self, name: str, cluster: DaskCluster) -> None:
        self.name = name
        self._cluster = cluster
        self._future: Any = None  # distributed.Future; its types are not published

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
        self._cluster.ending.set()
        if self._future is not None:
            self._cluster.cancel(self._future)

    def kill(self) -> None:
        """Do the same: the cluster ends the worker."""
        self.end()

    def wait(self) -> None:
        """Return at once: ``DaskCluster.close`` waits."""

    def _call(self, function: Callable[..., bytes], *arguments: object) -> bytes:
        from distributed import KilledWorker  # noqa: PLC0415 - an extra

        while True:
            address, self._future = self._cluster.submit(function, *arguments)
            if self._cluster.ending.is_set():
                self._cluster.cancel(self._future)
            refused = False
            try:
                return self._wait(self._future)
            except WorkerLost as error:
                refused = error.how == "refused"
                if not refused:
                    raise
                problem = error
            except KilledWorker as error:
                raise WorkerLost(f"Dask workers died with it: {error}") from error
            except (CancelledError, OSError) as error:
                if not self._cluster.ending.is_set() and not self._cluster.is_back():
                    raise self._cluster.lost() from error
                raise WorkerLost(f"the cluster cancelled it: {error!r}") from error
            finally:
                others = self._cluster.settle(address, refused=refused)
            if not others:
                raise problem

    def _wait(self, future: Any) -> bytes:
        """Return a call's result.  Raises what it raised, and WorkerLost for a lost cluster."""
        while True:
            try:
                result: bytes = future.result(timeout=CHECK_EVERY)
                return result
            except TimeoutError:
                if future.done():
                    raise
                self._cluster.addresses  # noqa: B018 - raises if the cluster is lost


def _connect(address: str) -> Any:
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise CommandError(
            "a cluster needs the library distributed",
            remedy=f"{how_to_pip('distributed')}, or leave --scheduler out",
            code=ExitCode.CANNOT_RUN_HERE,
            error_code="TV0722",
        ) from error
    # A lost scheduler or worker is reported in our words, not also with distributed's tracebacks.
    for name in ("distributed", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    client: Future[Any] = Future()

    def connect() -> None:
        try:
            construct: Any = Client
            client.set_result(construct(address, timeout=CONNECT_TIMEOUT, set_as_default=False))
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            client.set_exception(error)

    # In a thread, for Ctrl-C: a client whose construction is interrupted blocks the process's end
    # for twice CONNECT_TIMEOUT.
    threading.Thread(target=connect, name="connect to Dask", daemon=True).start()
    try:
        return client.result()
    except (OSError, TimeoutError, ValueError) as error:
        raise CommandError(
            f"no Dask scheduler answers at {address}: {error}",
            remedy="start one with `dask scheduler`, and give the address that it prints",
            error_code="TV0531",
        ) from error
