"""Runs of many seeds in several processes."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import pytest

from faultinject.simulation import hunt as hunt_module
from faultinject.simulation.hunt import CHUNK, hunt


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_seed_is_run_once(jobs: int) -> None:
    assert sorted(result.seed for result in hunt(range(5), jobs=jobs)) == list(range(5))


def test_endless_run_ends_when_it_is_closed() -> None:
    results = hunt(iter(lambda: 3, None), jobs=2)
    assert next(results).seed == 3
    results.close()
    assert not any(thread.name == "simulations" for thread in threading.enumerate())


def test_error_of_a_worker_is_raised() -> None:
    with pytest.raises(TypeError):
        list(hunt([None], jobs=2))  # type: ignore[list-item]


def test_no_signal_interrupts_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt is raised in the main thread; in the pool it would leave a lock taken."""
    threads = set()

    class Pool(ProcessPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            threads.add(threading.current_thread())
            return super().submit(*args, **kwargs)

        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            threads.add(threading.current_thread())
            super().shutdown(*args, **kwargs)

    monkeypatch.setattr(hunt_module, "ProcessPoolExecutor", Pool)
    assert len(list(hunt(range(3 * CHUNK), jobs=2))) == 3 * CHUNK
    assert threads
    assert threading.main_thread() not in threads
