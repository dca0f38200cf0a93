"""Time limits that count only the time in which a process could run."""

from __future__ import annotations

import asyncio
import os

import pytest

from deploy.machine.contention import UncontendedClock, waited_for_processor, within


class Times:
    """The steady clock, and a process's wait, as a test sets them."""

    now = 100.0
    waited: dict[int, float] = {1: 7.0, 2: 1.0}  # noqa: RUF012 - replaced, not changed


def test_time_in_which_a_process_waits_for_a_processor_does_not_count() -> None:
    times = Times()
    clock = UncontendedClock(1, now=lambda: times.now, waited=lambda _: times.waited)
    times.now += 2
    assert clock.step() == 2
    times.now += 2
    times.waited = {1: 8.5, 2: 2.0}  # two threads waited, at the same time
    assert clock.step() == 0.5
    times.now += 1
    times.waited = {1: 8.5, 2: 5.0}
    assert clock.step() == 0
    times.now += 1
    times.waited = {2: 5.0}  # a thread has ended
    assert clock.step() == 1
    times.now += 1
    times.waited = {}  # the process
    assert clock.step() == 1
    assert clock.seconds == 4.5


def test_suspended_host_counts_as_one_short_step() -> None:
    times = Times()
    clock = UncontendedClock(1, now=lambda: times.now, waited=lambda _: times.waited)
    times.now += 3600
    assert clock.step() == 3


def test_wait_of_a_process_is_read_from_the_kernel() -> None:
    assert waited_for_processor(os.getpid())[os.getpid()] >= 0
    assert waited_for_processor(2**22 + 1) == {}


async def test_work_beyond_its_limit_is_cancelled() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await within(0.05, os.getpid(), work())
    assert ended.is_set()


async def test_result_and_error_of_the_work_are_passed_on() -> None:
    async def work(good: bool) -> int:
        await asyncio.sleep(0)
        if not good:
            raise ValueError("bad")
        return 7

    assert await within(60, os.getpid(), work(True)) == 7
    with pytest.raises(ValueError, match="bad"):
        await within(60, os.getpid(), work(False))
