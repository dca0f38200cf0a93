"""Runs the pending trials of an experiment with some workers, each a process with its own rig."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from deploy.host.files import read_tail
from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from deploy.host.spawn import python_command, python_environment
from faultinject.experiment.design import ExperimentError, Outcome, Trial
from faultinject.experiment.messages import Answer, Failed, Opened, Ran, Step, decode
from faultinject.experiment.store import Row, RowStore

__all__ = ["run_trials"]

TRIAL_LIMIT = 600.0
"""Seconds without a message after which a worker is killed: a rig may have to boot its guests."""
END_LIMIT = 25.0
"""Seconds for a worker to end its rig and itself, before it is killed."""
ATTEMPTS = 2
"""Workers that a trial may cost; after that it is excluded, and says why."""
LOSSES = 3
"""Consecutive losses of one worker without a completed trial that end the run."""
LINE_LIMIT = 1 << 22
"""Largest line of a worker, in bytes."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Progress = Callable[[str], None]


class _Lost(Exception):
    """A worker has ended before it reported its trial."""

    def __init__(self, problem: str, remedy: str = "", error_code: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy
        self.error_code = error_code


class _Worker:
    """One worker process; started again after each loss."""

    def __init__(self, name: str, module: str, scratch: ScratchDirectory, progress: Progress):
        self.name = name
        self.facts: dict[str, str] = {}
        self._module = module
        self._scratch = scratch
        self._progress = progress
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, trial: Trial) -> Ran:
        """Run one trial.  Raises _Lost."""
        if self._process is None:
            await self._start()
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(trial) + b"\n")
        while True:
            answer = await self._answer()
            if isinstance(answer, Ran) and answer.index == trial.index:
                return answer

    async def _start(self) -> None:
        directory = self._scratch.make(self.name)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *python_command("faultinject.experiment.worker", self._module, directory),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=python_environment(),
                start_new_session=True,  # Ctrl-C reaches only this process
                limit=LINE_LIMIT,
            )
        while not isinstance(answer := await self._answer(), Opened):
            if isinstance(answer, Step):
                self._progress(f"{self.name}: {answer.text}")
        self.facts = dict(answer.facts)

    @property
    def _log(self) -> Path:
        return self._scratch.path / f"{self.name}.log"

    async def _answer(self) -> Step | Opened | Ran:
        process = self._process
        assert process is not None and process.stdout is not None
        try:
            async with asyncio.timeout(TRIAL_LIMIT):
                line = await process.stdout.readline()
        except TimeoutError:
            raise _Lost(f"{self.name} reported nothing for {TRIAL_LIMIT:.0f} s") from None
        if not line:
            tail = " | ".join(read_tail(self._log, 4))
            raise _Lost(f"{self.name} ended without a report: {tail}")
        answer: Answer = decode(line)
        if isinstance(answer, Failed):
            raise _Lost(answer.problem, answer.remedy, answer.error_code)
        return answer

    async def end(self) -> None:
        """End the process and all that it started; ``run`` starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(END_LIMIT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self._scratch.make(self.name)


async def run_trials(
    store: RowStore,
    *,
    workers: int,
    first: int | None,
    progress: Progress,
    done: Callable[[Row], None],
) -> str:
    """Run the pending trials; return why it ended: "complete", "first" or "interrupted".

    ``first``: run at most so many.  ``done`` is called with each stored row.  Raises
    ExperimentError if a worker is lost again and again, OSError.
    """
    pending = store.pending[:first]
    queue = iter(pending)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.set)
    sweep_abandoned(progress)
    scratch = ScratchDirectory("e")
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _work(
                        store,
                        _Worker(f"w{number}", store.head.module, scratch, progress),
                        queue,
                        done,
                    )
                )
                for number in range(1, min(workers, max(len(pending), 1)) + 1)
            ]
            stopper = group.create_task(_cancel_at(stop, tasks))
            await asyncio.wait(tasks)
            stopper.cancel()
    except BaseExceptionGroup as errors:
        # Not ``except*``: Python 3.11.2 (Debian 12) wraps what is raised there in a group.
        raise errors.exceptions[0] from None
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        scratch.close()
    if stop.is_set():
        return "interrupted"
    return "first" if store.pending else "complete"


async def _cancel_at(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    await stop.wait()
    for task in tasks:
        task.cancel()


async def _work(
    store: RowStore, worker: _Worker, queue: Iterator[Trial], done: Callable[[Row], None]
) -> None:
    """Run trials of the queue until it is empty."""
    losses = 0
    try:
        for trial in queue:
            row = None
            for attempt in range(1, ATTEMPTS + 1):
                began = time.monotonic()
                try:
                    ran = await worker.run(trial)
                except _Lost as error:
                    losses += 1
                    await worker.end()
                    if losses >= LOSSES or not worker.facts:
                        raise ExperimentError(
                            f"worker {worker.name} was lost {losses} times in a row: {error}",
                            remedy=error.remedy
                            or "see the message; `trivisor doctor` checks the "
                            f"host; then: trivisor experiment resume {store.directory}",
                            error_code=error.error_code or "TV0545",
                        ) from None
                    if attempt == ATTEMPTS:
                        outcome = Outcome(excluded=f"the rig was lost: {error}"[:500])
                        row = _row(trial, worker, time.monotonic() - began, outcome)
                else:
                    losses = 0
                    row = _row(trial, worker, ran.seconds, ran.outcome)
                    break
            assert row is not None
            store.add(row)
            done(row)
    finally:
        await asyncio.shield(worker.end())


def _row(trial: Trial, worker: _Worker, seconds: float, outcome: Outcome) -> Row:
    return Row(
        index=trial.index, arm=trial.arm, seed=trial.seed, worker=worker.name,
        seconds=round(seconds, 4), facts=worker.facts, outcome=outcome,
    )  # fmt: skip
