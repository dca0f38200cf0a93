"""The one sequence of requests of a check, and its run in processes of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guests.check.conditions import Condition
from guests.check.result import show_message
from guests.service import ServiceError

__all__ = ["CheckPlan", "CheckRun"]

_READ_METHODS = ("GET", "HEAD")
_PROCESS = Path(__file__).resolve().with_name("run.py")


@dataclass
class CheckRun:
    """What a process told: replies, digests and states by request number."""

    replies: dict[int, bytes] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    failure: str = ""


class CheckPlan:
    """The one sequence of requests with their contexts, and how to run it."""

    def __init__(self, service: str, seed: int, timeout: float) -> None:
        self._service = service
        self._seed = seed
        self._timeout = timeout
        self._steps: list[tuple[str, int, int, str, str, bool]] = []
        self._skippable: list[int] = []

    def set_workload(self, workload: Sequence[bytes]) -> None:
        """Fix the requests and, by the seed, what the voter would add to each."""
        chance = random.Random(f"contexts {self._seed}")
        time_ns = 1_750_000_000 * 10**9
        for n, data in enumerate(workload, 1):
            time_ns += chance.randrange(3 * 10**9)
            caller = chance.choice(("alice", "bob", "carol"))
            read_only = data.partition(b" ")[0].decode("latin-1") in _READ_METHODS
            text = data.decode("latin-1")
            self._steps.append((text, n, time_ns, chance.randbytes(8).hex(), caller, read_only))
            if read_only and chance.random() < 0.5:
                self._skippable.append(n)

    def show_request(self, n: int) -> str:
        """Return request ``n`` readably; for 0, what that number means."""
        if n == 0:
            return "(before any request)"
        return show_message(self._steps[n - 1][0].encode("latin-1"))

    def is_read_only(self, n: int) -> bool:
        """Whether request ``n`` must not change the state."""
        return self._steps[n - 1][5]

    def describe(self) -> dict[str, Any]:
        """Ask the service for its name, own requests and paths.  Raises ServiceError."""
        lines, failure = self._spawn(Condition(), {"describe": True})
        if failure:
            raise ServiceError(failure)
        about: dict[str, Any] = lines[0]
        return about

    def run(
        self,
        condition: Condition,
        states: dict[int, bytes] | None = None,
        snapshots: Sequence[int] = (),
    ) -> CheckRun:
        """Run the sequence under a condition.

        ``states``: of the plain run, by request number, for a condition that begins with one.
        ``snapshots``: numbers of requests after which to take the state.
        """
        state = (states or {}).get(condition.restore_after, b"")
        job = {
            "describe": False,
            "requests": self._steps,
            "start": condition.restore_after,
            "state": state.decode("latin-1"),
            "left_out": self._skippable if condition.leave_out else [],
            "snapshots": list(snapshots),
        }
        lines, failure = self._spawn(condition, job)
        run = CheckRun(failure=failure)
        for line in lines:
            n = line["n"]
            run.digests[n] = line["digest"]
            if "reply" in line:
                run.replies[n] = line["reply"].encode("latin-1")
            if "state" in line:
                run.states[n] = line["state"].encode("latin-1")
        return run

    def _spawn(self, condition: Condition, job: dict[str, Any]) -> tuple[list[Any], str]:
        """Run one job in a process of its own; return its lines, and why it ended early if so."""
        job |= {
            "service": self._service,
            "random": condition.random,
            "clock_ns": condition.clock_ns,
            "tick_ns": condition.tick_ns,
            "ballast": condition.ballast,
        }
        root = str(_PROCESS.parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONHASHSEED": str(condition.hash_seed),
            "PYTHONPATH": os.pathsep.join(paths),
            "TZ": condition.zone,
        }
        with tempfile.TemporaryDirectory(prefix="trivisor-check-") as folder:
            try:
                # -S: a guest has the standard library and nothing else.
                done = subprocess.run(
                    [sys.executable, "-P", "-S", str(_PROCESS)],
                    input=json.dumps(job).encode(),
                    capture_output=True,
                    env=environment,
                    cwd=folder,
                    timeout=self._timeout,
                    check=False,
                )
                output, failure = done.stdout, f"the process ended with status {done.returncode}"
                failure += "".join(
                    f"; {line}" for line in done.stderr.decode(errors="replace").splitlines()[-1:]
                )
            except subprocess.TimeoutExpired as late:
                output = late.stdout or b""
                failure = f"no end within {self._timeout:g} s: does a request hang?"
        lines = [
            json.loads(line) for line in output.splitlines(keepends=True) if line[-1:] == b"\n"
        ]
        if lines and "end" in lines[-1]:
            return lines[:-1], ""
        if lines and "error" in lines[-1]:
            return lines[:-1], str(lines.pop()["error"])
        return lines, failure
