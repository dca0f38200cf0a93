"""A Dask scheduler and its workers, as a user starts them: processes of their own.

A worker must have ended before its scheduler is asked to end.  If both end at the same moment, the
worker may wait forever (6 of 12 tries with distributed 2026.8.0; a wait as in dask/distributed
issue 6279).  ``Processes`` ends the workers first, and kills one that does not end in time.
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
        """Start a worker without a nanny, so that it is not restarted after a kill."""
        words = (self.address, "--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        directory = str(self.processes.home / f"{name}.d")
        return self._start(
            name, "worker", *words, "--local-directory", directory, "--memory-limit", "0"
        )

    def kill_scheduler(self) -> None:
        """Kill the scheduler; its workers are still there."""
        self._scheduler.kill()
        self._scheduler.wait()

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
