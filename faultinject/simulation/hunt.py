"""Run many seeds in several processes, and summarize each run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice

import msgspec

from deploy.host.spawn import end_with_parent
from faultinject.simulation.plan import make_plan
from faultinject.simulation.promises import Breach
from faultinject.simulation.run import RunResult, run

__all__ = ["RunSummary", "hunt", "summarize"]

CHUNK = 20
"""Seeds that a worker gets at a time."""


class RunSummary(msgspec.Struct, frozen=True):
    """The result of one seed; ``seconds`` are simulated."""

    seed: int
    breaches: list[Breach]
    problems: list[str]
    trace: str
    steps: int
    seconds: float
    answered: int
    voter_starts: int
    faults: list[str]


def summarize(result: RunResult) -> RunSummary:
    """Return the summary of a run."""
    return RunSummary(
        result.plan.seed,
        result.breaches,
        result.problems,
        result.trace,
        result.steps,
        result.seconds,
        result.answered,
        result.voter_starts,
        [fault.kind for fault in result.plan.faults],
    )


def _run_chunk(seeds: Sequence[int], size: int) -> list[RunSummary]:
    summaries = [summarize(run(make_plan(seed, size=size))) for seed in seeds]
    gc.collect()
    return summaries


def _begin_worker(parent: int) -> None:
    """Set up a worker process: it ignores signals, and ends with its parent."""
    gc.disable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def hunt(seeds: Iterable[int], *, jobs: int, size: int = 1) -> Iterator[RunSummary]:
    """Run all seeds, which may be an endless sequence; yield a summary of each, in any order.

    Workers end with the generator, also if it is closed early or its process is killed.
    """
    seeds = iter(seeds)
    chunks = iter(lambda: list(islice(seeds, CHUNK)), [])
    if jobs == 1:
        for chunk in chunks:
            yield from _run_chunk(chunk, size)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),)
    ) as pool:
        running: set[Future[list[RunSummary]]] = set()
        try:
            for chunk in chunks:
                running.add(pool.submit(_run_chunk, chunk, size))
                if len(running) > 2 * jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in running:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)
