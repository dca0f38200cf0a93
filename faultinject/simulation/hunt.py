"""Run many seeds in several processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice

from deploy.host.spawn import end_with_parent
from faultinject.simulation.plan import make_plan
from faultinject.simulation.run import RunResult, run

__all__ = ["hunt"]

CHUNK = 20
"""Seeds that a worker gets at a time."""


def _run_chunk(seeds: Sequence[int]) -> list[RunResult]:
    results = [run(make_plan(seed)) for seed in seeds]
    gc.collect()
    return results


def _begin_worker(parent: int) -> None:
    """Set up a worker process: it ignores signals, and ends with its parent."""
    gc.disable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def hunt(seeds: Iterable[int], *, jobs: int) -> Iterator[RunResult]:
    """Run all seeds, which may be an endless sequence; yield the result of each, in any order.

    Workers end with the generator, also if it is closed early or its process is killed.
    """
    seeds = iter(seeds)
    chunks = iter(lambda: list(islice(seeds, CHUNK)), [])
    if jobs == 1:
        for chunk in chunks:
            yield from _run_chunk(chunk)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),)
    ) as pool:
        running: set[Future[list[RunResult]]] = set()
        try:
            for chunk in chunks:
                running.add(pool.submit(_run_chunk, chunk))
                if len(running) > 2 * jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in running:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)
