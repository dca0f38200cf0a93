"""A simulated asyncio loop: time is a number, and every callback belongs to a process that may die.

Time advances only when no callback is ready, and then at once to the next timer.  The process of
a callback is a context variable, which tasks and callbacks inherit.  When a process is killed,
none of its callbacks runs again, and no ``finally`` block either.  The loop keeps the handles of
dead processes until the run is over, because the garbage collector would close their coroutines.
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
"""Seconds that a call in a thread takes."""


class Killed(BaseException):
    """The process that makes this system call is dead.  Unwinds its stack up to the loop."""


class Stuck(Exception):
    """The simulation cannot continue: no timer is left, or a limit is exceeded."""


class Process:
    """A process that can be killed: a voter or a client.

    It dies before its ``callbacks_left``-th callback and in its ``calls_left``-th system call from
    now (0: never).  ``handlers`` are called after its death, as a kernel cleans up.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.callbacks_left = 0
        self.calls_left = 0
        self.handlers: list[Callable[[], None]] = []
        self.suspended: list[asyncio.Handle] | None = None
        """Callbacks that wait while the process is stopped; None while it is not."""
        self.context = copy_context()
        self.context.run(_process.set, self)

    def kill(self) -> None:
        """Kill it now, as SIGKILL does."""
        if self.alive:
            self.alive = False
            self.callbacks_left = self.calls_left = 0
            for handler in self.handlers:
                handler()
            self.handlers.clear()

    def stop(self) -> None:
        """Stop it, as SIGSTOP does: its callbacks wait."""
        if self.suspended is None:
            self.suspended = []

    def enter_call(self) -> bool:
        """Begin a system call; return whether the process dies in it.  Raises Killed if dead."""
        if not self.alive:
            raise Killed
        if self.calls_left:
            self.calls_left -= 1
            return not self.calls_left
        return False

    def die_in_call(self) -> None:
        """Kill the process in the middle of this system call.  Raises Killed."""
        self.kill()
        raise Killed


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def current_process() -> Process | None:
    """Return the process that runs now; None outside of all processes."""
    return _process.get()


class _Task(asyncio.Task[T]):
    """A task whose hash is its serial number: sets of tasks have the same order in every run."""

    def __init__(
        self, coro: Coroutine[Any, Any, T], serial: int, process: Process | None, **more: Any
    ) -> None:
        self._serial = serial
        self.process = process
        super().__init__(coro, **more)

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.BaseEventLoop):
    """The loop of one run.  After ``max_steps`` callbacks it raises Stuck.

    The subclass ``network.NetworkLoop`` adds the network.
    """

    def __init__(self, max_steps: int = 1_000_000) -> None:
        super().__init__()
        self.steps = 0
        """Callbacks run so far."""
        self.problems: list[str] = []
        """Exceptions that left callbacks of living processes, as text."""
        self.outside = copy_context()
        """The context of callbacks that belong to no process."""
        self.trace = blake2b(digest_size=16)
        """Hash of all bytes delivered, with their times."""
        self._max_steps = max_steps
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = 0
        self._dead_handles: list[object] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._soon: list[asyncio.Handle] = []
        self._fault: BaseException | None = None
        self.set_exception_handler(self._record_problem)

    def __del__(self) -> None:
        """Do nothing: there is no selector to close."""

    def time(self) -> float:
        """Return the simulated seconds since the start."""
        return self._now

    # ----------------------------------------------------------- callbacks

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call it in the next turn."""
        handle = events.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call it in the next turn; there are no threads here."""
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call it at this time."""
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
        """Call it after this many seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is skipped when its time comes."""

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """Wrap a coroutine in a task.  The loop keeps all tasks, so that none is ever collected."""
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
        """Run a function as in a thread: it is called, and done, EXECUTOR_TIME later."""
        future: asyncio.Future[T] = self.create_future()

        def done() -> None:
            if not future.cancelled():
                try:
                    future.set_result(func(*args))
                except Exception as error:  # noqa: BLE001 - raised where the future is awaited
                    future.set_exception(error)

        self.call_later(EXECUTOR_TIME, done)
        return future

    # ------------------------------------------------------------- running

    def spawn(
        self, process: Process, coro: Coroutine[Any, Any, T], name: str | None = None
    ) -> asyncio.Task[T]:
        """Run a coroutine as (part of) a process."""
        return process.context.run(self.create_task, coro, name=name)

    def resume(self, process: Process) -> None:
        """Resume a stopped process, as SIGCONT does."""
        suspended, process.suspended = process.suspended, None
        self._soon.extend(suspended or ())

    def _run_once(self) -> None:
        """Run the callbacks that are ready; if none is, advance time to the next timer."""
        timers = self._timers
        if not self._soon and not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise Stuck("deadlock: no callback or timer is left")
            self._now = max(self._now, timers[0][0])
        batch, self._soon = self._soon, []
        while timers and timers[0][0] <= self._now:
            batch.append(heapq.heappop(timers)[2])
        self.steps += len(batch)
        if self.steps > self._max_steps:
            raise Stuck(f"{self._max_steps} callbacks, and no end")
        for handle in batch:
            if handle._cancelled:
                continue
            process = handle._context.get(_process)  # type: ignore[attr-defined]
            if process is not None:
                if process.suspended is not None:
                    process.suspended.append(handle)
                    continue
                if process.callbacks_left:
                    process.callbacks_left -= 1
                    if not process.callbacks_left:
                        process.kill()
                if not process.alive:
                    self._dead_handles.append(handle)
                    continue
            handle._run()
            if self._fault is not None:
                raise self._fault

    def _record_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Record an exception of a process.  One of the simulation itself ends the run."""
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

    def dispose(self) -> None:
        """Close the coroutines that are left, discarding what they do, and the loop."""
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
        self._dead_handles.clear()
        self.close()
