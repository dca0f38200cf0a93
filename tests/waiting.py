"""Wait for a condition that has no event: state of a process, a file, a remote service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["PATIENCE", "until", "wait_until"]

PATIENCE = 60.0
"""Seconds that a condition may take; far longer than needed, as the machine may be busy."""


def wait_until(
    condition: Callable[[], object], what: str = "", *, seconds: float = PATIENCE
) -> None:
    """Wait until the condition holds.  Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}"
        time.sleep(0.01)


async def until(
    condition: Callable[[], object | Awaitable[object]],
    what: str = "",
    *,
    seconds: float = PATIENCE,
) -> None:
    """Wait until the condition, or what awaiting its result returns, holds.

    Raises AssertionError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if await result if isinstance(result, Awaitable) else result:
            return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}"
        await asyncio.sleep(0.005)
