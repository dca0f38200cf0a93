"""Many seeds, in several processes: which of them break a promise?"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import msgspec

from faultinject.simulation.plan import make_plan
from faultinject.simulation.promises import Breach
from faultinject.simulation.world import Result, run

__all__ = ["Summary", "hunt", "summarize"]

CHUNK = 20
"""Seeds that a worker is given at a time."""


class Summary(msgspec.Struct, frozen=True):
    """What came of one seed; ``seconds`` are simulated."""

    seed: int
    breaches: list[Breach]
    problems: list[str]
    trace: str
    steps: int
    seconds: float
    answered: int
    restarts: int
    faults: list[str]


def summarize(result: Result) -> Summary:
    """Return what is worth telling of a run."""
    return Summary(
        result.plan.seed,
        result.breaches,
        result.problems,
        result.trace,
        result.steps,
        result.seconds,
        result.answered,
        result.restarts,
        [fault.kind for fault in result.plan.faults],
    )


def _run_chunk(seeds: Sequence[int], size: int) -> list[Summary]:
    summaries = [summarize(run(make_plan(seed, size=size))) for seed in seeds]
    gc.collect()
    return summaries


def hunt(seeds: range, *, jobs: int, size: int = 1) -> Iterator[Summary]:
    """Run all seeds; yield what came of each, as the processes end (not in order)."""
    chunks = (seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK))
    if jobs == 1:
        for chunk in chunks:
            yield from _run_chunk(chunk, size)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=gc.disable) as pool:
        running: set[Future[list[Summary]]] = set()
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
