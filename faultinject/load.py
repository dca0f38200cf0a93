"""Load generators: closed loop (a fixed number of requests in flight) and open loop (fixed times).

A *target* is a function that starts one request and returns a future.  Everything that is compared
is driven through this one interface, so that the driver costs every target about the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NamedTuple, Self

__all__ = [
    "Arrivals",
    "FailedRequest",
    "LatencySummary",
    "Start",
    "Timed",
    "percentile",
    "pipelined",
    "summarize",
    "sustained_rate",
    "timed",
    "window",
]

SUSTAINED = 0.05
"""Seconds of median latency at which arrivals are no longer sustained."""

Start = Callable[[], "asyncio.Future[Any]"]


class LatencySummary(NamedTuple):
    """Percentiles of a series of latencies, in seconds."""

    p50: float
    p99: float
    p999: float
    worst: float


class Timed(NamedTuple):
    """Requests a second, and their latencies."""

    rate: float
    latency: LatencySummary


def percentile(values: list[float], part: float) -> float:
    """Return the nearest-rank percentile (``part`` 0 to 1) of unsorted values; NaN without any."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summarize(values: list[float]) -> LatencySummary:
    """Return the percentiles that the tables show."""
    return LatencySummary(
        percentile(values, 0.5), percentile(values, 0.99), percentile(values, 0.999), max(values)
    )


async def pipelined(start: Start, number: int, in_flight: int) -> float:
    """Make ``number`` requests, ``in_flight`` at a time; return requests a second.

    Raises the error of the first request that fails.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    started = ended = 0

    def start_next() -> None:
        nonlocal started
        started += 1
        start().add_done_callback(on_end)

    def on_end(future: asyncio.Future[Any]) -> None:
        nonlocal ended
        ended += 1
        error = None if future.cancelled() else future.exception()
        if done.done():
            return  # an error, or the run was canceled
        if future.cancelled():
            done.cancel()
        elif error is not None:
            done.set_exception(error)
        elif started < number:
            start_next()
        elif ended == number:
            done.set_result(None)

    began = time.perf_counter()
    for _ in range(min(in_flight, number)):
        start_next()
    await done
    return number / (time.perf_counter() - began)


async def timed(start: Start, number: int, in_flight: int) -> Timed:
    """Do what ``pipelined`` does, and measure the latency of each request."""
    values: list[float] = []
    record = values.append
    clock = time.perf_counter

    def begin() -> asyncio.Future[Any]:
        began = clock()
        future = start()
        future.add_done_callback(lambda _: record(clock() - began))
        return future

    rate = await pipelined(begin, number, in_flight)
    return Timed(rate, summarize(values))


class FailedRequest(NamedTuple):
    """A request that failed: when it was due, in seconds after the first, and its error."""

    due: float
    kind: str
    text: str


class Arrivals:
    """An open loop: starts requests at fixed times, ``rate`` a second, inside ``async with``.

    It starts a request whether or not earlier ones are answered.  A latency counts from the time
    the request was due, so that a stall shows in full.  Leaving the block waits for the requests
    that are in flight.
    """

    def __init__(self, start: Start, rate: float) -> None:
        self._start, self._rate = start, rate
        self.due_latencies: list[tuple[float, float]] = []
        """(due time on the clock of ``time.perf_counter``, seconds) of each answered request."""
        self.failed: list[FailedRequest] = []
        """Requests that failed, in the order in which they ended."""
        self.began = 0.0
        """When the first request was due, on the clock of ``time.perf_counter``."""
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._until = inf
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def latencies(self) -> list[float]:
        """Latencies of the answered requests, seconds."""
        return [latency for _, latency in self.due_latencies]

    @property
    def failures(self) -> Counter[str]:
        """Failed requests by the name of their error."""
        return Counter(each.kind for each in self.failed)

    async def __aenter__(self) -> Self:
        self.began = time.perf_counter()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._until = time.perf_counter()
        self._stop.set()
        if self._task is not None:
            await self._task
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    async def _run(self) -> None:
        number = 0
        while (due := self.began + number / self._rate) < self._until:
            wait = due - time.perf_counter()
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._stop.wait()
                if self._stop.is_set():
                    continue
            elif number % 16 == 0:
                await asyncio.sleep(0)
            number += 1
            self._in_flight += 1
            self._start().add_done_callback(partial(self._on_end, due))

    def _on_end(self, due: float, future: asyncio.Future[Any]) -> None:
        self._in_flight -= 1
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or error is not None:
            kind = "cancelled" if error is None else type(error).__name__
            self.failed.append(FailedRequest(due - self.began, kind, str(error or "")))
        else:
            self.due_latencies.append((due, time.perf_counter() - due))
        if not self._in_flight:
            self._idle.set()


async def sustained_rate(start: Start, *, seconds: float = 1.5, steps: int = 6) -> float:
    """Return the most requests a second that arrivals at fixed times sustain: bisection.

    A rate is sustained if the median latency of the second half of a window of so many ``seconds``
    is at most ``SUSTAINED`` and no request fails: then no queue builds up.
    """
    high = await pipelined(start, 1024, 64)
    low = high / 32
    for _ in range(steps):
        rate = (low * high) ** 0.5
        tried = await window(start, rate, seconds)
        half = tried.began + seconds / 2
        late = [latency for due, latency in tried.due_latencies if due >= half]
        if late and not tried.failed and percentile(late, 0.5) <= SUSTAINED:
            low = rate
        else:
            high = rate
    return low


async def window(start: Start, rate: float, seconds: float) -> Arrivals:
    """Start ``rate`` requests a second for so many seconds; return the finished arrivals."""
    async with Arrivals(start, rate) as arrivals:
        await asyncio.sleep(seconds)  # the experiment's length, no wait for a condition
    return arrivals
