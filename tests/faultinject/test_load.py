"""Load generators: what they count, and from when."""

from __future__ import annotations

import asyncio
import time

import pytest

from faultinject.load import Arrivals, percentile, sustained_rate, timed


async def test_timed_measures_rate_and_latencies() -> None:
    under_way = most = 0

    async def request() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1

    result = await timed(lambda: asyncio.ensure_future(request()), 40, 8)
    assert most == 8
    assert 0.005 <= result.latency.p50 <= result.latency.p99 <= result.latency.worst
    assert result.rate <= 8 / 0.005


async def test_arrivals_count_a_stall_from_the_due_time() -> None:
    gate = asyncio.Event()

    async def request() -> None:
        await gate.wait()

    began = time.perf_counter()
    async with Arrivals(lambda: asyncio.ensure_future(request()), 200) as arrivals:
        await asyncio.sleep(0.2)
        gate.set()
        opened = time.perf_counter()
    assert 0.15 * 200 <= len(arrivals.latencies) <= (time.perf_counter() - began) * 200 + 1
    for due, taken in arrivals.due_latencies:
        if due < opened:
            assert due + taken >= opened
    assert max(arrivals.latencies) >= 0.15


async def test_arrivals_count_failures() -> None:
    async def request() -> None:
        raise RuntimeError("no")

    async with Arrivals(lambda: asyncio.ensure_future(request()), 500) as arrivals:
        await asyncio.sleep(0.05)
    assert arrivals.failures["RuntimeError"] >= 5
    assert arrivals.latencies == []


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([], 0.5) != pytest.approx(0)


async def test_sustained_rate_is_below_what_a_server_can_do_unpipelined() -> None:
    """A server that does one request after another, 2 ms each, cannot sustain more than 500/s."""
    loop = asyncio.get_running_loop()
    free = loop.time()

    def start() -> asyncio.Future[None]:
        nonlocal free
        free = max(free, loop.time()) + 0.002
        future: asyncio.Future[None] = loop.create_future()
        loop.call_at(free, future.set_result, None)
        return future

    rate = await sustained_rate(start, seconds=0.4, steps=4)
    assert 0 < rate < 600
