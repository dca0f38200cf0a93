"""A runner's hold on one worker process: started, given missions one by one, ended.

It blocks, so each has a thread of its own; ``end`` and ``kill`` may be called from any other.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from deploy.host.files import read_tail
from faultinject.campaign.records import MissionRow, StationFacts
from faultinject.campaign.workers.scratch import ScratchDirectories, end_processes
from faultinject.campaign.workers.tasks import (
    Broken,
    Reply,
    Setup,
    StationOpened,
    Task,
    TaskDone,
    TaskFailed,
    Worker,
    decode_said,
    encode,
)

__all__ = ["WorkerProcess", "MissionResult", "WorkerLost", "mission_patience"]

ROOT = Path(__file__).resolve().parents[3]

OPEN_PATIENCE = 600.0
"""Seconds for a station to be there: an image may have to be built first."""
END_GRACE = 25.0
"""Seconds for a worker to end its guests and itself; it does so in 20 whatever happens."""
CHUNK = 1 << 16
LOOK_EVERY = 1.0
TAIL = 4
"""Lines of a lost worker's log that are told with it."""

_log = structlog.get_logger(__name__)


class MissionResult(msgspec.Struct, frozen=True, kw_only=True):
    """A mission that was run, and what it was run on."""

    row: MissionRow
    facts: StationFacts


class WorkerLost(Exception):
    """A worker has ended, or was ended, before it had told what became of its mission."""

    def __init__(self, problem: str, *, how: Broken = "lost", remedy: str = "") -> None:
        super().__init__(problem)
        self.how: Broken = how
        self.remedy = remedy


def mission_patience(worker: Worker, task: Task) -> float:
    """Return the seconds after which a worker that tells nothing of a mission is given up.

    Every request may wait for its deadline, and before it guests may have to be booted.
    """
    return task.plan.length * worker.spec.deadline + 300.0


class WorkerProcess:
    """One worker, known by ``name`` (w1, ...), with a berth of that name.

    A worker that is lost is replaced by a new process when the next mission is to be run.  Not
    ``log``: what the worker prints goes where our standard error goes.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        berths: ScratchDirectories,
        progress: Callable[[str], None] = lambda _: None,
        *,
        log: bool = True,
    ) -> None:
        self.name = name
        self.facts: StationFacts | None = None
        self._worker = worker
        self._berths = berths
        self._progress = progress
        self._logged = log
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._ending = False
        self._lock = threading.Lock()  # of starting and ending: no process is started after end()
        self._using = threading.RLock()  # held for as long as somebody waits for the worker

    @property
    def pid(self) -> int | None:
        """The worker's, if it has one."""
        return None if self._process is None else self._process.pid

    def open(self) -> StationFacts:
        """Have a worker with a station, a new one if need be.  Raises WorkerLost, OSError."""
        with self._using:
            if self._process is not None and self.facts is not None:
                return self.facts
            self._start()
            try:
                opened = self._hear(OPEN_PATIENCE)
            except WorkerLost as error:
                if error.how == "lost":  # it has no mission yet that could be to blame
                    error.how = "refused"
                raise
            if not isinstance(opened, StationOpened):
                raise self._lose("it told of a mission before it had a station", how="refused")
            self.facts = opened.facts
            return opened.facts

    def run(self, task: Task) -> MissionResult:
        """Run one mission.  Raises WorkerLost, OSError."""
        with self._using:
            facts = self.open()
            try:
                self._say(task)
            except BrokenPipeError:
                _log.debug("it has ended; what it said last is to be read", worker=self.name)
            done = self._hear(mission_patience(self._worker, task))
            if not isinstance(done, TaskDone) or done.row.index != task.plan.index:
                raise self._lose(f"it was asked for mission {task.plan.index}, told of another")
            return MissionResult(row=done.row, facts=facts)

    def end(self) -> None:
        """Have the worker end, and not be replaced; ``wait`` tells when it has."""
        with self._lock:
            self._ending = True
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()

    def wait(self, seconds: float = END_GRACE) -> None:
        """Wait for the end of a worker that was told to; after that it is killed."""
        process = self._process
        if process is None:
            return
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            _log.warning("a worker does not end and is killed", worker=self.name)
        self.kill()

    def kill(self) -> None:
        """End the worker and its guests at once."""
        with self._lock:
            self._ending = True
        process = self._process
        if process is not None:
            process.kill()
        with self._using:  # whoever waits for it sees its end at once
            self._drop()

    # -------------------------------------------------------------- inside

    def _start(self) -> None:
        with self._lock:
            if self._ending:
                raise WorkerLost("it was told to end")
            directory = self._berths.make(self.name)
            self._buffer.clear()
            self.facts = None
            with contextlib.ExitStack() as files:
                log = files.enter_context(self._log_path.open("ab")) if self._logged else None
                self._process = subprocess.Popen(
                    # The berth is an argument so that whoever sweeps it finds the process by it.
                    [sys.executable, "-m", "faultinject.campaign.workers.worker", str(directory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=ROOT,
                    start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
                )
        with contextlib.suppress(BrokenPipeError):  # its end is read in a moment
            self._say(Setup(name=self.name, directory=str(directory), worker=self._worker))

    @property
    def _log_path(self) -> Path:
        return self._berths.path / f"{self.name}.log"

    def _say(self, line: msgspec.Struct) -> None:
        with self._lock:
            if self._process is None or self._process.stdin is None or self._process.stdin.closed:
                return
            self._process.stdin.write(encode(line))
            self._process.stdin.flush()

    def _hear(self, seconds: float) -> StationOpened | TaskDone:
        """Return what the worker says next of what is waited for.  Raises WorkerLost."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._read_line(deadline)
            if line is None:
                raise self._lose(f"it told nothing for {seconds:.0f} s", tail=True)
            if not line:
                raise self._lose("it ended before it had told", tail=True)
            try:
                said = decode_said(line)
            except msgspec.DecodeError as error:
                raise self._lose(f"it said what is none of our lines: {error}") from error
            if isinstance(said, TaskFailed):
                problem = f"{said.problem or said.kind}"
                raise self._lose(problem, how=said.how, remedy=said.remedy)
            if not isinstance(said, Reply):
                return said
            self._progress(f"{self.name}: {said.text}")

    def _read_line(self, deadline: float) -> bytes | None:
        """Return one line; empty at the end of the stream, None if there was none in time."""
        process = self._process
        if process is None or process.stdout is None:
            return b""
        fd = process.stdout.fileno()
        while b"\n" not in self._buffer:
            # Its own end is looked for too: a child of the worker may hold the pipe open.
            ready = select.select([fd], [], [], LOOK_EVERY)[0]
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
        """End the worker, if it has not, and its guests."""
        process, self._process, self.facts = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        end_processes(self._berths.path / self.name)

    def _lose(
        self, problem: str, *, how: Broken = "lost", remedy: str = "", tail: bool = False
    ) -> WorkerLost:
        """Drop the worker; return what is to be raised.

        ``tail``: the end of its log tells more than we can.
        """
        self._drop()
        if tail:
            problem = "; ".join([problem, *read_tail(self._log_path, TAIL)])
        return WorkerLost(problem, how=how, remedy=remedy)
