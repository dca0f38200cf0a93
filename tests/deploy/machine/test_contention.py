"""Time limits that count only the time in which a process could run."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import pytest

from deploy.machine.contention import Scheduled, UncontendedClock, scheduled, within


class Times:
    """The steady clock, and how process 1 was scheduled, as a test sets them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited = {1: 7.0, 2: 1.0}
        self.ran = 0.0
        """Of its main thread."""

    def clock(self) -> UncontendedClock:
        return UncontendedClock(1, now=lambda: self.now, times=lambda _: self.times())

    def times(self) -> dict[int, Scheduled]:
        ran = {1: self.ran, 2: 0.0}
        return {tid: Scheduled(ran[tid], waited) for tid, waited in self.waited.items()}


def test_time_in_which_a_process_waits_for_a_processor_does_not_count() -> None:
    times = Times()
    clock = times.clock()
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


def test_time_in_which_the_main_thread_runs_is_not_idle() -> None:
    times = Times()
    clock = times.clock()
    times.now, times.ran = times.now + 2, 1.5
    assert clock.step() == 2
    assert clock.idle == 0.5
    times.now, times.ran = times.now + 3, 2.5
    times.waited = {1: 8.0, 2: 3.5}  # 1 s, and 2.5 s at the same time
    assert clock.step() == 0.5
    assert clock.idle == 1
    times.now, times.waited = times.now + 1, {}  # the process has ended
    clock.step()
    assert clock.idle == 2


def test_suspended_host_counts_as_one_short_step() -> None:
    times = Times()
    clock = times.clock()
    times.now += 3600
    assert clock.step() == 3


def test_times_of_a_process_are_read_from_the_kernel() -> None:
    before = scheduled(os.getpid())[os.getpid()]
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    after = scheduled(os.getpid())[os.getpid()]
    assert after.ran > before.ran
    assert after.waited >= before.waited
    assert scheduled(2**22 + 1) == {}


async def test_work_of_a_process_whose_main_thread_runs_may_take_longer() -> None:
    busy = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
    try:
        assert await within(0.5, busy.pid, asyncio.sleep(1, "done")) == "done"
        with pytest.raises(TimeoutError):
            await within(0.1, busy.pid, asyncio.sleep(3600))
    finally:
        busy.kill()
        await busy.wait()


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
