"""Judge a boot by its progress, not by its time: is a guest slow, hung, or has it failed?

The same guest boots in 4 s on an idle host and in minutes on a busy one.  Progress is what the
guest has not shown before in this boot: a console line (numbers aside), or a page of code (64 KiB)
that its processor executes.  A loop soon shows nothing new, also one that prints.  The time without
progress does not count while the guest waits for a processor of the host.

A panic ends the boot at once.  Messages about soft lockups and stalls do not: the guest continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable

from deploy.machine.contention import SAMPLE_INTERVAL, UncontendedClock
from deploy.machine.spec import READY_LINE, Progress

__all__ = ["OVERALL", "BootWatch", "instruction_page", "watch_boot"]

OVERALL = 10
"""A boot may take this many times its limit without progress, in seconds of wall time."""

_AGENT_ENDS = 3
"""An agent that has ended so often does not start: its service is broken."""

_MOST_SEEN = 20_000
"""Lines and pages remembered of one boot; after that nothing is new."""

_SLOW = 15.0
"""Seconds between reports about a boot that takes long."""

_PANIC = re.compile(r"(?:\[ *\d+\.\d+\] ?)?Kernel panic - not syncing:? ?(.*)")
_AGENT_ENDED = "trivisor: agent ended with status"
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_ADDRESS = re.compile(r"[RE]IP=([0-9a-f]+)")
_PAGE_BITS = 16
"""With 4 KiB, a program that only printed was still seen on new pages of the kernel after 75 s."""


def instruction_page(registers: str) -> str | None:
    """Return the page of code in QEMU's output of `info registers`; None if it has none."""
    found = _ADDRESS.findall(registers)
    return f"{int(found[-1], 16) >> _PAGE_BITS:x}" if found else None


class BootWatch:
    """One boot of a guest: feed it console lines and samples until it is over.

    ``limit`` is the longest time without progress in seconds.  ``first_limit``, if shorter, holds
    for a guest that has shown nothing but its first page of code; until then the time does not
    count in which QEMU's main thread runs, as it does while QEMU starts.
    """

    def __init__(self, limit: float, *, first_limit: float | None = None) -> None:
        self.ready = ""
        """The ready line, once it was printed."""
        self.failure = ""
        """Why the guest does not become ready, once that is known."""
        self.transient = False
        """Whether another attempt may succeed: panics can come from a host that was too busy."""
        self.hung = False
        """Whether it was ended because it made no progress."""
        self.ended = False
        """Whether its QEMU ended before the guest was ready."""
        self.over = asyncio.Event()
        """Set when the guest is ready or has failed."""
        self._limit = limit
        self._first_limit = limit if first_limit is None else min(first_limit, limit)
        self._seen: set[str] = set()
        self._idle = 0.0
        self._agent_ends = 0

    def line(self, text: str) -> None:
        """Observe a line of the console."""
        if self.over.is_set():
            return
        if text.startswith(READY_LINE):
            self.ready = text
            self.over.set()
        elif panic := _PANIC.match(text):
            self.fail(f"its kernel panicked: {panic[1].strip()}", transient=True)
        elif text.startswith(_AGENT_ENDED):
            self._agent_ends += 1
            if self._agent_ends == _AGENT_ENDS:
                self.fail(f"its agent ended {_AGENT_ENDS} times")
        else:
            self._observe(_NUMBER.sub("#", text))

    def sample(self, seconds: float, page: str | None, *, idle: float | None = None) -> None:
        """Observe the page that is executed; ``seconds`` in which it could run have passed.

        In ``idle`` of these QEMU's main thread did nothing; None: in all.
        """
        self._idle += seconds if self._seen or idle is None else idle
        if page is not None:
            self._observe(f"page {page}")
        limit = self._first_limit if len(self._seen) <= 1 else self._limit
        if self._idle > limit and not self.over.is_set():
            self.hung = True
            self.fail(f"no progress for {limit:g} s")

    def end(self, why: str, *, transient: bool = True) -> None:
        """Observe that QEMU ended."""
        self.ended = not self.over.is_set()
        self.fail(why, transient=transient)

    def fail(self, why: str, *, transient: bool = False) -> None:
        """End the watch: the guest will not become ready."""
        if not self.over.is_set():
            self.failure, self.transient = why, transient
            self.over.set()

    def __str__(self) -> str:
        return f"{len(self._seen)} steps of progress, the last {self._idle:.0f} s ago"

    def _observe(self, sign: str) -> None:
        if sign not in self._seen and len(self._seen) < _MOST_SEEN:
            self._seen.add(sign)
            self._idle = 0.0


async def watch_boot(
    watch: BootWatch,
    *,
    pid: int,
    page: Callable[[], Awaitable[str | None]],
    ends: float,
    progress: Progress = lambda _: None,
) -> None:
    """Sample the processor of QEMU ``pid`` until the watch is over, or until ``ends``.

    ``page`` returns the page of code that the guest executes.  ``ends`` is on the monotonic clock.
    """
    clock = UncontendedClock(pid)
    began = reported = time.monotonic()
    asking: asyncio.Future[str | None] | None = None
    try:
        while not watch.over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(SAMPLE_INTERVAL, max(ends - began, 0))):
                    await watch.over.wait()
            now, seen = time.monotonic(), None
            if asking is not None and asking.done():
                seen, asking = asking.result(), None
            if asking is None and not watch.over.is_set():
                asking = asyncio.ensure_future(page())
            before = clock.idle
            watch.sample(clock.step(), seen, idle=clock.idle - before)
            if now > ends:
                watch.fail(f"not ready after {now - began:.0f} s, though it made progress")
            if now - reported > _SLOW and not watch.over.is_set():
                reported = now
                progress(f"still booting after {now - began:.0f} s: {watch}")
    finally:
        if asking is not None:
            asking.cancel()
            await asyncio.wait([asking])
