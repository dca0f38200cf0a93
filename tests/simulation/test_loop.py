"""The simulated loop: virtual time, and processes that die or stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from faultinject.simulation.loop import Killed, Process, SimLoop, Stuck, current_process


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    """Make a new loop."""
    made = SimLoop()
    yield made
    made.dispose()


def test_sleep_takes_simulated_time_only(loop: SimLoop) -> None:
    async def wait() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert loop.run_until_complete(wait()) == 3600
    assert time.monotonic() - began < 10


def test_timers_of_equal_times_keep_their_order(loop: SimLoop) -> None:
    seen: list[int] = []
    for number in range(50):
        loop.call_at(1.0, seen.append, number)
    loop.call_at(0.5, seen.append, -1)
    loop.call_at(2.0, loop.stop)
    loop.run_forever()
    assert seen == [-1, *range(50)]


def test_loop_is_stuck_when_no_timer_is_left(loop: SimLoop) -> None:
    with pytest.raises(Stuck, match="no callback or timer is left"):
        loop.run_until_complete(loop.create_future())


def test_loop_is_stuck_after_its_most_steps() -> None:
    loop = SimLoop(max_steps=1000)

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - the subject of the test
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="1000 callbacks"):
        loop.run_until_complete(spin())
    loop.dispose()


def test_killed_process_runs_nothing_more(loop: SimLoop) -> None:
    seen: list[str] = []
    process = Process("p")

    async def live() -> None:
        try:
            assert current_process() is process
            await asyncio.gather(asyncio.sleep(1), helper())
        finally:
            seen.append("finally")

    async def helper() -> None:
        asyncio.get_running_loop().call_later(2, seen.append, "timer")
        await asyncio.sleep(5)
        seen.append("slept")

    async def main() -> None:
        loop.spawn(process, live())
        await asyncio.sleep(1.5)
        process.kill()
        await asyncio.sleep(10)

    loop.run_until_complete(main())
    assert seen == []


@pytest.mark.parametrize("steps", range(1, 6))
def test_process_can_die_before_each_callback(loop: SimLoop, steps: int) -> None:
    done: list[int] = []
    process = Process("p")

    async def live() -> None:
        for number in range(10):
            done.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        process.callbacks_left = steps
        loop.spawn(process, live())
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert done == list(range(steps - 1))
    assert not process.alive


def test_process_can_die_in_a_system_call(loop: SimLoop) -> None:
    process, seen = Process("p"), []

    async def live() -> None:
        try:
            for _ in range(3):
                if process.enter_call():
                    process.die_in_call()
                seen.append("called")
        except Exception:  # noqa: BLE001 - Killed must pass it
            seen.append("caught")

    async def main() -> None:
        process.calls_left = 2
        loop.spawn(process, live())
        await asyncio.sleep(1)
        with pytest.raises(Killed):
            process.enter_call()

    loop.run_until_complete(main())
    assert seen == ["called"]


def test_stopped_process_resumes_where_it_was(loop: SimLoop) -> None:
    process, times = Process("p"), []

    async def live() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            times.append(loop.time())

    async def main() -> None:
        task = loop.spawn(process, live())
        await asyncio.sleep(1.5)
        process.stop()
        await asyncio.sleep(10)
        loop.resume(process)
        await task

    loop.run_until_complete(main())
    assert times == [1, 11.5, 12.5]


def test_error_of_a_process_is_recorded_and_one_of_the_world_raised(loop: SimLoop) -> None:
    process = Process("p")

    def fail() -> None:
        raise ValueError("no")

    async def main(context: object) -> None:
        loop.call_soon(fail, context=context)  # type: ignore[arg-type]
        await asyncio.sleep(1)

    loop.run_until_complete(main(process.context))
    assert len(loop.problems) == 1
    assert loop.problems[0].startswith("p: ")
    with pytest.raises(ValueError, match="no"):
        loop.run_until_complete(main(loop.outside))


def test_call_in_a_thread_takes_time(loop: SimLoop) -> None:
    async def main() -> tuple[int, float]:
        return await asyncio.to_thread(len, "four"), loop.time()

    size, when = loop.run_until_complete(main())
    assert size == 4
    assert when > 0
