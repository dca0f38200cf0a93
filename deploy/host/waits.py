"""Two ways to wait: for work that must come to its end, and for the first of two things."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

__all__ = ["first_of", "to_its_end"]

_log = structlog.get_logger(__name__)


async def to_its_end(work: Coroutine[None, None, None]) -> None:
    """Await work to its end even if the caller is cancelled, who is then cancelled after it.

    What libvirt has done and we have not noted would be asked of it for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            _log.warning("failed while its caller gave up", error=str(task.exception()))
        raise


async def first_of(
    future: asyncio.Future[str], coroutine: Coroutine[None, None, None], *, timeout: float
) -> None:
    """Wait until one of the two is done, at most `timeout` seconds; `future` is left as it is."""
    task = asyncio.create_task(coroutine)
    try:
        done: set[asyncio.Future[str] | asyncio.Task[None]] = {future, task}
        await asyncio.wait(done, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
