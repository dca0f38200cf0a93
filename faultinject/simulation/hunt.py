"""Run many seeds in several processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from itertools import islice
from queue import SimpleQueue
from threading import Thread

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


def hunt(seeds: Iterable[int], *, jobs: int) -> Generator[RunResult, None, None]:
    """Run all seeds, which may be an endless sequence; yield the result of each, in any order.

    Workers end with the generator, also if it is closed early or its process is killed.

    The pool is used by a thread of its own.  A signal's KeyboardInterrupt reaches the main thread
    between any two instructions; inside the pool's code it would leave a lock taken, and the end
    would wait for it forever.  A SimpleQueue has no such lock.  The thread continues only when it
    is asked to, so results do not pile up while the caller is busy.
    """
    seeds = iter(seeds)
    chunks = iter(lambda: list(islice(seeds, CHUNK)), [])
    if jobs == 1:
        for chunk in chunks:
            yield from _run_chunk(chunk)
        return
    wanted: SimpleQueue[bool] = SimpleQueue()  # whether the caller wants more
    results: SimpleQueue[list[RunResult] | BaseException | None] = SimpleQueue()

    def use_pool() -> None:
        try:
            with closing(_run_chunks(chunks, jobs)) as found:
                while wanted.get():
                    results.put(next(found, None))
        except BaseException as error:  # noqa: BLE001 - raised again by the generator
            results.put(error)

    thread = Thread(target=use_pool, name="simulations")
    try:
        thread.start()
        while True:
            wanted.put(True)
            result = results.get()
            if result is None:
                return
            if isinstance(result, BaseException):
                raise result
            yield from result
    finally:
        wanted.put(False)
        if thread.is_alive():
            thread.join()


def _run_chunks(chunks: Iterator[list[int]], jobs: int) -> Generator[list[RunResult], None, None]:
    """Run chunks of seeds in a pool of processes; yield the results of each, in any order."""
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
                        yield future.result()
            for future in running:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
