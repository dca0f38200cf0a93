"""A Dask scheduler and its workers, as a user starts them: processes of their own.

A worker must have ended before its scheduler is asked to.  If both end at the same moment, the
worker may wait forever: it did in 6 of 12 tries with distributed 2026.8.0 on two busy cores, and in
none of 12 where the worker was asked first.

The scheduler's end makes the worker start ``Worker.close``.  SIGTERM makes ``dask_worker`` leave
its main coroutine, and asyncio then cancels all tasks.  ``Worker.close`` is one of them: it never
reports that the worker has closed.  ``Worker.handle_scheduler`` is another: when it is cancelled it
calls ``Worker.close`` again, and this second call waits for that report.  So the process stays in
asyncio's ``_cancel_all_tasks``, with no timer and no connection left.  (The same kind of wait:
dask/distributed issue 6279.)  A second SIGTERM would end it.

``Processes`` ends the workers first, and kills one that does not end in time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping

from tests.faultinject.campaign.processes import ROOT, Processes

__all__ = ["DaskCluster"]

START_PATIENCE = 40.0
"""Seconds for the scheduler to print its address, on a busy host."""


class DaskCluster:
    """A scheduler that has started.  ``processes`` ends it and its workers."""

    def __init__(self, processes: Processes, environment: Mapping[str, str]) -> None:
        self.processes = processes
        self._environment = {**environment, "PYTHONPATH": str(ROOT)}
        self._scheduler = self._start(
            "scheduler", "scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"
        )
        self.address = self._wait_address()

    def add_worker(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny: who is killed stays dead."""
        words = (self.address, "--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        directory = str(self.processes.home / f"{name}.d")
        return self._start(
            name, "worker", *words, "--local-directory", directory, "--memory-limit", "0"
        )

    def _start(self, name: str, kind: str, *words: str) -> subprocess.Popen[bytes]:
        return self.processes.start(
            sys.executable, "-m", f"distributed.cli.dask_{kind}", *words,
            log=self.processes.home / f"{name}.log", environment=self._environment,
        )  # fmt: skip

    def _wait_address(self) -> str:
        log = self.processes.home / "scheduler.log"
        deadline = time.monotonic() + START_PATIENCE
        while not (found := re.search(r"Scheduler at:\s+(tcp://\S+)", log.read_text())):
            assert time.monotonic() < deadline and self._scheduler.poll() is None, log.read_text()
            time.sleep(0.05)
        return found[1]
