"""What the tests of remote hosts share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

__all__ = ["in_thread"]


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Give a function that runs another in a thread, which must have ended with the test."""
    threads: list[threading.Thread] = []

    def run(function: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=function))
        threads[-1].start()

    yield run
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
