"""A worker process as its runner controls it: started, given missions one by one, ended.

The methods block, so each worker has its own thread.  ``end`` and ``kill`` may be called from any
other thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from deploy.host.files import read_tail
from deploy.host.scratch import ScratchDirectory, end_processes
from deploy.host.spawn import python_command
from faultinject.campaign.records import MissionRow
from faultinject.campaign.workers.messages import (
    NodeOpened,
    ProgressMessage,
    Setup,
    Task,
    TaskDone,
    Worker,
    WorkerFailed,
    WorkerFailure,
    decode,
    encode,
)
from faultinject.results.outcome import NodeFacts
from guests.errors import CodedError

__all__ = ["MissionResult", "WorkerLost", "WorkerProcess", "mission_timeout"]

ROOT = Path(__file__).resolve().parents[3]

OPEN_TIMEOUT = 600.0
"""Seconds for a node to open: an image may have to be built first."""
END_GRACE = 25.0
"""Seconds for a worker to end its guests and itself, before it is killed.  Above the worker's own
limit (``worker.CLOSE_GRACE``)."""
CHUNK = 1 << 16
POLL = 1.0
"""Seconds between checks whether a silent worker has ended."""
TAIL = 4
"""Lines of a lost worker's log that are reported."""

_log = structlog.get_logger(__name__)


class MissionResult(msgspec.Struct, frozen=True, kw_only=True):
    """A mission that has run, and the facts of its host."""

    row: MissionRow
    facts: NodeFacts


class WorkerLost(CodedError):
    """A worker ended, or was ended, before it reported its mission."""

    error_code = "TV0530"

    def __init__(
        self,
        problem: str,
        *,
        how: WorkerFailure = "lost",
        remedy: str = "",
        error_code: str = "",
    ) -> None:
        super().__init__(problem, remedy=remedy, error_code=error_code)
        self.how: WorkerFailure = how


def mission_timeout(worker: Worker, task: Task) -> float:
    """Return the seconds after which a worker that reports nothing of its mission is killed.

    Every request may take its deadline, and guests may have to boot before.
    """
    return task.plan.length * worker.spec.deadline + 300.0


class WorkerProcess:
    """One worker, with the name w1, ... and a scratch directory of that name.

    If it is lost, the next mission starts a new process.  ``log``: whether its standard error goes
    to a file; else it goes to ours.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        scratch: ScratchDirectory,
        progress: Callable[[str], None] = lambda _: None,
        *,
        log: bool = True,
    ) -> None:
        self.name = name
        self.facts: NodeFacts | None = None
        self._worker = worker
        self._scratch = scratch
        self._progress = progress
        self._logged = log
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._ending = False
        self._lock = threading.Lock()  # for starting and ending: no process starts after end()
        self._in_use = threading.RLock()  # held while a thread waits for the worker

    @property
    def pid(self) -> int | None:
        """Return its process id, if it has one."""
        return None if self._process is None else self._process.pid

    def open(self) -> NodeFacts:
        """Start the worker unless it runs; wait for its node.  Raises WorkerLost, OSError."""
        with self._in_use:
            if self._process is not None and self.facts is not None:
                return self.facts
            self._start()
            try:
                opened = self._receive(OPEN_TIMEOUT)
            except WorkerLost as error:
                if error.how == "lost":  # no mission can be the cause yet
                    error.how = "refused"
                raise
            if not isinstance(opened, NodeOpened):
                raise self._lose("it reported a mission before its node", how="refused")
            self.facts = opened.facts
            return opened.facts

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost, OSError."""
        with self._in_use:
            facts = self.open()
            try:
                self._send(task)
            except BrokenPipeError:
                _log.debug("worker has ended; its last message is still read", worker=self.name)
            done = self._receive(mission_timeout(self._worker, task))
            if not isinstance(done, TaskDone) or done.row.index != task.plan.index:
                raise self._lose(f"it reported another mission than {task.plan.index}")
            return MissionResult(row=done.row, facts=facts)

    def end(self) -> None:
        """Have the worker end, and start no other; ``wait`` waits for its end."""
        with self._lock:
            self._ending = True
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()

    def wait(self, seconds: float = END_GRACE) -> None:
        """Wait for a worker that was asked to end, and kill it after ``seconds``."""
        process = self._process
        if process is None:
            return
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            _log.warning(
                "worker did not end in time; killing it", worker=self.name, error_code="TV0537"
            )
        self.kill()

    def kill(self) -> None:
        """End the worker and its guests at once."""
        with self._lock:
            self._ending = True
        process = self._process
        if process is not None:
            process.kill()
        with self._in_use:  # a thread that waits for it sees its end at once
            self._drop()

    def _start(self) -> None:
        with self._lock:
            if self._ending:
                raise WorkerLost("it was asked to end")
            directory = self._scratch.make(self.name)
            self._buffer.clear()
            self.facts = None
            with contextlib.ExitStack() as files:
                log = files.enter_context(self._log_path.open("ab")) if self._logged else None
                self._process = subprocess.Popen(
                    # The directory is an argument so that a sweep finds the process by it.
                    python_command(self._worker.module, directory),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=ROOT,
                    start_new_session=True,  # Ctrl-C reaches only the runner
                )
        with contextlib.suppress(BrokenPipeError):  # its end is read later
            self._send(Setup(name=self.name, directory=str(directory), spec=self._worker.spec))

    @property
    def _log_path(self) -> Path:
        return self._scratch.path / f"{self.name}.log"

    def _send(self, message: msgspec.Struct) -> None:
        with self._lock:
            if self._process is None or self._process.stdin is None or self._process.stdin.closed:
                return
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()

    def _receive(self, seconds: float) -> NodeOpened | TaskDone:
        """Return the worker's next result.  Raises WorkerLost."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._read_line(deadline)
            if line is None:
                raise self._lose(f"it reported nothing for {seconds:.0f} s", tail=True)
            if not line:
                raise self._lose("it ended without a report", tail=True)
            try:
                message = decode(line)
            except msgspec.DecodeError as error:
                raise self._lose(f"it sent an invalid message: {error}") from error
            if isinstance(message, WorkerFailed):
                problem = message.problem or message.kind
                raise self._lose(
                    problem,
                    how=message.how,
                    remedy=message.remedy,
                    error_code=message.error_code or "TV0532" * (message.how == "refused"),
                )
            if not isinstance(message, ProgressMessage):
                return message
            self._progress(f"{self.name}: {message.text}")

    def _read_line(self, deadline: float) -> bytes | None:
        """Return one line; empty at the end of the stream, None at the deadline."""
        process = self._process
        if process is None or process.stdout is None:
            return b""
        fd = process.stdout.fileno()
        while b"\n" not in self._buffer:
            # The process is checked too: a child of the worker may hold the pipe open.
            ready = select.select([fd], [], [], POLL)[0]
            if ready:
                chunk = os.read(fd, CHUNK)
                if not chunk:
                    return b""
                self._buffer += chunk
            elif process.poll() is not None:
                return b""
            elif time.monotonic() > deadline:
                return None
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line

    def _drop(self) -> None:
        """Kill the worker, if it still runs, and its guests."""
        process, self._process, self.facts = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        end_processes(self._scratch.path / self.name)

    def _lose(
        self,
        problem: str,
        *,
        how: WorkerFailure = "lost",
        remedy: str = "",
        error_code: str = "",
        tail: bool = False,
    ) -> WorkerLost:
        """Kill the worker; return the error to raise.  ``tail``: with the end of its log."""
        self._drop()
        if tail:
            problem = "; ".join([problem, *read_tail(self._log_path, TAIL)])
        return WorkerLost(problem, how=how, remedy=remedy, error_code=error_code)
