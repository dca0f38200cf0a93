"""A simulated asyncio loop: time is a number, and every callback belongs to a process that may die.

Time moves only when nothing is ready, and then at once to the next timer.  A process is what a
context variable says (tasks and callbacks inherit it).  When a process is killed none of its
callbacks runs again, no ``finally`` either: what it left behind lies in the loop's graveyard, out
of the garbage collector's reach, until the run is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from hashlib import blake2b
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["Killed", "Process", "SimLoop", "Stuck", "current_process"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EXECUTOR_TIME = 0.0005
"""Seconds until something that was given to a thread is done."""


class Killed(BaseException):
    """The process that made this system call is dead; unwinds its stack up to the loop."""


class Stuck(Exception):
    """The simulation cannot go on: nothing will ever happen, or time stands still."""


class Process:
    """Something that can be killed: a voter, a client.

    ``fuse``: callbacks that it has still to live (0: no end set); ``call_fuse``: system calls.
    ``handlers`` are called once it is dead, as the kernel cleans up after it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.fuse = 0
        self.call_fuse = 0
        self.handlers: list[Callable[[], None]] = []
        self.held: list[asyncio.Handle] | None = None
        """Callbacks that wait while it is stopped (None: it is not)."""
        self.context = copy_context()
        self.context.run(_process.set, self)

    def kill(self) -> None:
        """End it now: kill -9."""
        if self.alive:
            self.alive = False
            self.fuse = self.call_fuse = 0
            for handler in self.handlers:
                handler()
            self.handlers.clear()

    def stop(self) -> None:
        """Stop it (SIGSTOP): its callbacks wait."""
        if self.held is None:
            self.held = []

    def enter_call(self) -> bool:
        """A system call begins: raise Killed if it is dead; tell whether it dies in this one."""
        if not self.alive:
            raise Killed
        if self.call_fuse:
            self.call_fuse -= 1
            return not self.call_fuse
        return False

    def die_in_call(self) -> None:
        """The system call was its last."""
        self.kill()
        raise Killed


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def current_process() -> Process | None:
    """Return the process that runs now (None: the world outside of all processes)."""
    return _process.get()


class _Task(asyncio.Task[T]):
    """A task whose hash is its number: sets of tasks have the same order in every run."""

    def __init__(
        self, coro: Coroutine[Any, Any, T], serial: int, process: Process | None, **more: Any
    ) -> None:
        self._serial = serial
        self.process = process
        super().__init__(coro, **more)

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.BaseEventLoop):
    """The loop of one run.  ``most`` callbacks are run, then it is Stuck.

    Subclasses add the network (``network.NetworkLoop``).
    """

    def __init__(self, most: int = 1_000_000) -> None:
        super().__init__()
        self.steps = 0
        """Callbacks run so far."""
        self.problems: list[str] = []
        """What went wrong in callbacks of living processes, in words."""
        self.outside = copy_context()
        """The context of what belongs to no process."""
        self.trace = blake2b(digest_size=16)
        """Hash of all that was delivered, and when."""
        self._most = most
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = 0
        self._graveyard: list[object] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._soon: list[asyncio.Handle] = []
        self._fault: BaseException | None = None
        self.set_exception_handler(self._note_problem)

    def __del__(self) -> None:
        """It holds nothing that must be closed."""

    def time(self) -> float:
        """Seconds of simulated time since the start."""
        return self._now

    # ----------------------------------------------------------- callbacks

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """asyncio: call it in the next turn."""
        handle = events.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """asyncio: the same; there are no threads here."""
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """asyncio: call it at this time."""
        handle = events.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """asyncio: call it after this many seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio: a cancelled one is passed over when its time comes."""

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """asyncio: wrap a coroutine; a dead process's tasks are kept, or they would be closed."""
        self._number += 1
        if name is None:
            name = f"task {self._number}"
        process = (context.get(_process) if context is not None else None) or _process.get()
        task: asyncio.Task[Any] = _Task(
            coro, self._number, process, loop=self, name=name, context=context
        )
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> Any:
        """asyncio: run a function in a thread; here it is run at once, and done a moment later."""
        future: asyncio.Future[T] = self.create_future()

        def done() -> None:
            if not future.cancelled():
                try:
                    future.set_result(func(*args))
                except Exception as error:  # noqa: BLE001 - goes to whoever waits
                    future.set_exception(error)

        self.call_later(EXECUTOR_TIME, done)
        return future

    # ------------------------------------------------------------- running

    def spawn(
        self, process: Process, coro: Coroutine[Any, Any, T], name: str | None = None
    ) -> asyncio.Task[T]:
        """Run a coroutine as (part of) a process."""
        return process.context.run(self.create_task, coro, name=name)

    def go_on(self, process: Process) -> None:
        """Let a stopped process go on (SIGCONT)."""
        held, process.held = process.held, None
        self._soon.extend(held or ())

    def _run_once(self) -> None:
        """Run what is ready; if nothing is, move time to the next timer."""
        timers = self._timers
        if not self._soon and not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise Stuck("nothing will ever happen")
            self._now = max(self._now, timers[0][0])
        batch, self._soon = self._soon, []
        while timers and timers[0][0] <= self._now:
            batch.append(heapq.heappop(timers)[2])
        self.steps += len(batch)
        if self.steps > self._most:
            raise Stuck(f"{self._most} callbacks, and no end")
        for handle in batch:
            if handle._cancelled:
                continue
            process = handle._context.get(_process)  # type: ignore[attr-defined]
            if process is not None:
                if process.held is not None:
                    process.held.append(handle)
                    continue
                if process.fuse:
                    process.fuse -= 1
                    if not process.fuse:
                        process.kill()
                if not process.alive:
                    self._graveyard.append(handle)
                    continue
            handle._run()
            if self._fault is not None:
                raise self._fault

    def _note_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """asyncio: an exception that nobody took.  Of the simulation itself: it ends the run."""
        error = context.get("exception")
        if isinstance(error, Killed):
            return
        handle, task = context.get("handle"), context.get("task") or context.get("future")
        if handle is not None:
            process = handle._context.get(_process)
        elif isinstance(task, _Task):
            process = task.process
        else:
            process = _process.get()
        if process is None:
            self._fault = error or RuntimeError(context["message"])
        elif process.alive:
            self.problems.append(f"{process.name}: {context['message']}: {error!r}")

    def bury(self) -> None:
        """The run is over: end what is left of its tasks, whose last words nobody hears."""
        self._timers.clear()
        self._soon.clear()
        events._set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
        finally:
            events._set_running_loop(None)
        self._tasks.clear()
        self._timers.clear()
        self._soon.clear()
        self._graveyard.clear()
        self.close()
