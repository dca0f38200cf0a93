"""A check's sequence of requests, its conditions, and a run of the sequence under a condition.

Each run is a separate process (``run.py``), with its own hash seed, clocks and random state.
"""

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

from guests.check.result import show_message
from guests.protocol.message import encode_request
from guests.service import ServiceError

__all__ = [
    "PLAIN",
    "CheckPlan",
    "CheckRun",
    "Condition",
    "find_hint",
    "make_conditions",
    "make_workload",
]

_READ_METHODS = ("GET", "HEAD")
_PROCESS = Path(__file__).resolve().with_name("run.py")

_YEAR_2030 = 1_900_000_000 * 10**9
PLAIN = "plain run"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The conditions of one run.  The defaults are those of the plain run."""

    name: str = PLAIN
    hash_seed: int = 0
    random: int = 0
    clock_ns: int = _YEAR_2030
    tick_ns: int = 1000
    zone: str = "UTC"
    ballast: int = 0
    restore_after: int = 0
    """The run begins with the plain run's state after this many requests (0: the initial state)."""
    leave_out: bool = False
    """Whether the run leaves out some of the read-only requests."""


_HINTS = {
    "restart": "the service uses something of the process: os.getpid(), id(), a default repr() with"
    " its address, hash() or the order of a set of objects, a random.Random() without a seed",
    "hash seed": "the service uses the order of a set, or hash(): sort before use",
    "random state": "randomness must come from context.random, not from random, secrets or os",
    "clock": "time must come from context.time or context.time_ns, not from time or datetime",
    "restore": "snapshot() and restore() must contain everything that replies depend on: search for"
    " a missing field, and for state in a module or a class",
    "reads left out": "a GET or HEAD changed something: use another method, or do not store it",
    PLAIN: "",
}


def find_hint(condition: str) -> str:
    """Return the likely cause of a difference under the condition of this name."""
    return next((hint for kind, hint in _HINTS.items() if condition.startswith(kind)), "")


def make_conditions(cuts: Sequence[int]) -> list[Condition]:
    """Return the conditions, those that change least first."""
    return [
        Condition(name="restart", ballast=7),
        Condition(name="restart (2)", ballast=1001),
        *(Condition(name=f"hash seed {seed}", hash_seed=seed) for seed in (1, 2, 3, 4)),
        Condition(name="random state", random=1),
        Condition(name="clock ahead", clock_ns=_YEAR_2030 + 34_585_377 * 10**9, zone="XXX-5:30"),
        Condition(name="clock fast", clock_ns=_YEAR_2030 - 10_999 * 10**9, tick_ns=299_999_999),
        Condition(name="reads left out", leave_out=True),
        *(Condition(name=f"restore after {cut}", restore_after=cut) for cut in cuts),
    ]


# ---- the requests

_METHODS = ("GET", "GET", "GET", "POST", "POST", "PUT", "PUT", "DELETE", "HEAD", "PATCH")
_NAMES = ("a", "b", "c", "alice", "bob", "1", "2", "17", "x/y", "%C3%A9", "index.html")
_QUERIES = ("", "", "", "?", "?limit=3", "?n=1", "?amount=5&to=bob", "?q=%00")
_BODIES = (b"", b"1", b"-5", b"hello", b"a=1&b=2", b'{"amount": 3, "to": "bob"}', b"\x00\xff\x80")


def make_workload(
    seed: int, count: int, own: Sequence[bytes] = (), paths: Sequence[str] = ()
) -> list[bytes]:
    """Return ``count`` requests as canonical bytes.

    The result is a function of the arguments.  ``own``: requests from the service's file; they come
    first and in order, and most others are drawn from them.  ``paths``: paths in the service's
    source.  Without ``own``, the requests go to these paths, to names below them, and to "/".
    """
    chance = random.Random(seed)
    requests = list(own[:count])
    while len(requests) < count:
        if own and chance.random() < 0.8:
            requests.append(chance.choice(own))
        else:
            requests.append(_make_request(chance, paths))
    return requests


def _make_request(chance: random.Random, paths: Sequence[str]) -> bytes:
    path = chance.choice(paths) if paths and chance.random() < 0.8 else "/"
    if path.endswith("/") and chance.random() < 0.7:
        path += chance.choice(_NAMES)
    elif chance.random() < 0.2:
        path += "/" + chance.choice(_NAMES)
    query = "" if "?" in path else chance.choice(_QUERIES)
    method = chance.choice(_METHODS)
    body = chance.choice(_BODIES) if method in ("POST", "PUT", "PATCH") else b""
    if chance.random() < 0.05:
        body = chance.randbytes(chance.randrange(5000))
    headers = [("content-type", "application/json")] if body.startswith(b"{") else []
    return encode_request(method, path + query, headers, body)


# ---- the runs


@dataclass
class CheckRun:
    """The output of a run: replies, digests and states by request number."""

    replies: dict[int, bytes] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    failure: str = ""


class CheckPlan:
    """A sequence of requests with their contexts, which can be run under a condition."""

    def __init__(self, service: str, seed: int, timeout: float) -> None:
        self._service = service
        self._seed = seed
        self._timeout = timeout
        self._steps: list[tuple[str, int, int, str, str, bool]] = []
        self._skippable: list[int] = []

    def set_workload(self, workload: Sequence[bytes]) -> None:
        """Set the requests, and draw from the seed what the voter would add to each."""
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
        """Return request ``n`` as readable text; for 0, the meaning of that number."""
        if n == 0:
            return "(before any request)"
        return show_message(self._steps[n - 1][0].encode("latin-1"))

    def is_read_only(self, n: int) -> bool:
        """Return whether request ``n`` must not change the state."""
        return self._steps[n - 1][5]

    def describe(self) -> dict[str, Any]:
        """Return the service's name, own requests and paths.  Raises ServiceError."""
        lines, failure = self._spawn(Condition(), {"describe": True})
        if failure:
            raise ServiceError(failure, error_code="TV0407")
        about: dict[str, Any] = lines[0]
        return about

    def run(
        self,
        condition: Condition,
        states: dict[int, bytes] | None = None,
        snapshots: Sequence[int] = (),
    ) -> CheckRun:
        """Run the sequence under a condition.

        ``states``: the plain run's states by request number, for a condition that begins with one.
        ``snapshots``: the requests after which the run returns the state.
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
        """Run one job in a process; return its lines, and why it ended early, or ""."""
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
                    input=json.dumps(job, allow_nan=False).encode(),
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
