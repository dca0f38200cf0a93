"""A worker: a process with one node, which runs the missions that it reads from its input.

``worker_process`` starts it as ``python -m MODULE DIRECTORY``.  The module calls ``main`` with the
function that opens a node.  The lines of ``messages`` go over standard input and output.

The worker ends when its input does.  That is how a runner ends it, and it also happens when the
runner is killed: so no guest outlives both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from deploy.host.scratch import end_processes
from faultinject.campaign.records import MissionPlan, MissionRow, NodeSpec
from faultinject.campaign.workers.messages import (
    NodeOpened,
    ProgressMessage,
    Setup,
    Task,
    TaskDone,
    WorkerFailed,
    encode,
)
from faultinject.results.outcome import NodeFacts
from voter.commands.terminal import quiet_logs

__all__ = ["OpenNode", "MissionNode", "main"]

CLOSE_GRACE = 20.0
"""Seconds from the end of input to the end of the worker and its guests; then they are killed."""


class MissionNode(Protocol):
    """A node of its own that runs missions, one at a time (``mission_runner.MissionRunner``)."""

    @property
    def facts(self) -> NodeFacts:
        """Return the facts of its host."""

    async def run(self, plan: MissionPlan) -> MissionRow:
        """Run one mission.  Raises an error if the node cannot be used any more."""


OpenNode = Callable[
    [NodeSpec, Path, Callable[[str], None]], AbstractAsyncContextManager[MissionNode]
]
"""Opens a node in a directory, and reports its progress."""


class _Sender:
    """Sends messages to the runner."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, message: msgspec.Struct) -> None:
        try:
            self._stream.write(encode(message))
            self._stream.flush()
        except BrokenPipeError:
            sys.stderr.write("the runner does not read any more; the end of input will follow\n")

    def report(self, text: str) -> None:
        self.send(ProgressMessage(text=text))


class _Receiver:
    """Reads tasks in a thread, so that the end of input is noticed whatever the loop does."""

    def __init__(self, stream: BinaryIO, directory: Path) -> None:
        self._stream = stream
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self.tasks: asyncio.Queue[Task] = asyncio.Queue()
        threading.Thread(target=self._receive, name="receive", daemon=True).start()

    def _receive(self) -> None:
        decode = msgspec.json.Decoder(Task).decode
        for line in self._stream:
            self._loop.call_soon_threadsafe(self.tasks.put_nowait, decode(line))
        timer = threading.Timer(CLOSE_GRACE, self._end_now)
        timer.daemon = True
        timer.start()
        if self._main is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker is ending
                self._loop.call_soon_threadsafe(self._main.cancel)

    def _end_now(self) -> None:
        """Kill the guests and this process: closing the node took too long."""
        end_processes(self._directory)
        os._exit(1)


class _NodeLost(Exception):
    """A mission could not be run, and no other one can be run here."""


async def _serve(open_node: OpenNode, setup: Setup, stream: BinaryIO, sender: _Sender) -> None:
    """Run missions until the input ends (cancelled), or the node is lost (raises)."""
    directory = Path(setup.directory)
    receiver = _Receiver(stream, directory)
    async with open_node(setup.spec, directory, sender.report) as node:
        sender.send(NodeOpened(facts=node.facts))
        while True:
            task = await receiver.tasks.get()
            try:
                row = await node.run(task.plan)
            except Exception as error:
                raise _NodeLost(error) from error
            named = msgspec.structs.replace(row, worker=setup.name, attempt=task.attempt)
            sender.send(TaskDone(row=named))


def _failure(error: Exception) -> WorkerFailed:
    """Return the message that reports an error to the runner."""
    lost = isinstance(error, _NodeLost)
    cause = error.__cause__ if lost else error
    return WorkerFailed(
        how="full" if _is_full(error) else "lost" if lost else "refused",
        kind=type(cause).__name__,
        problem=str(getattr(cause, "problem", cause)),
        remedy=str(getattr(cause, "remedy", "")),
        error_code=str(getattr(cause, "error_code", "")),
    )


def _is_full(error: BaseException) -> bool:
    """Return whether a full disk caused it; libvirt and QEMU only put that into the message."""
    return any(
        (isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT))
        or os.strerror(errno.ENOSPC) in str(each)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def main(open_node: OpenNode) -> int:
    """Run as a worker; return the exit code: 0 if it ended because its input ended."""
    # Standard output carries the messages.  Anything else that prints, libraries too, is logged.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C reaches all processes of the terminal, but the runner decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_logs()
    sender = _Sender(out)
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    try:
        setup = msgspec.json.decode(line, type=Setup)
        asyncio.run(_serve(open_node, setup, sys.stdin.buffer, sender))
    except asyncio.CancelledError:
        return 0
    except Exception as error:  # noqa: BLE001 - sent to the runner, with its cause in the log
        traceback.print_exc()
        sender.send(_failure(error))
        return 1
    return 0
