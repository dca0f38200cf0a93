"""A worker: a process with one station, which runs the missions that it is told on its input.

``python -m faultinject.campaign.workers.worker DIRECTORY``, started by
``faultinject.campaign.workers.worker_process``, with
the lines of ``tasks`` on standard input and output.  It ends when its input does: that is how a
runner ends it, and also what happens when the runner is killed, so that no guest outlives both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
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

from faultinject.campaign.records import MissionPlan, MissionRow, StationFacts, StationSpec
from faultinject.campaign.workers.scratch import end_processes
from faultinject.campaign.workers.tasks import (
    Reply,
    Setup,
    StationOpened,
    Task,
    TaskDone,
    TaskFailed,
    encode,
)
from voter.commands.terminal import quiet_logs

__all__ = ["StationPort", "find_station", "main"]

CLOSE_GRACE = 20.0
"""Seconds from the end of input to the end of everything, gently or not."""


class StationPort(Protocol):
    """A node of its own on which missions are run, one at a time (``station.Station``)."""

    @property
    def facts(self) -> StationFacts:
        """What it runs on."""

    async def run(self, plan: MissionPlan) -> MissionRow:
        """Run one mission.  Raises StationLost if the node cannot be brought back."""


class _OpensStation(Protocol):
    def open(
        self, spec: StationSpec, directory: Path, progress: Callable[[str], None]
    ) -> AbstractAsyncContextManager[StationPort]: ...


def find_station(path: str) -> _OpensStation:
    """Return what "MODULE:CLASS" names.  Raises ImportError, AttributeError."""
    module, _, name = path.partition(":")
    found: _OpensStation = getattr(importlib.import_module(module), name)
    return found


class _Sender:
    """The way to the runner."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def say(self, line: msgspec.Struct) -> None:
        try:
            self._stream.write(encode(line))
            self._stream.flush()
        except BrokenPipeError:
            sys.stderr.write("nobody reads any more; the end of input will follow\n")

    def tell(self, text: str) -> None:
        self.say(Reply(text=text))


class _Listener:
    """Reads tasks in a thread, so that the end of input is noticed whatever the loop does."""

    def __init__(self, stream: BinaryIO, directory: Path) -> None:
        self._stream = stream
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self.tasks: asyncio.Queue[Task] = asyncio.Queue()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def _listen(self) -> None:
        decode = msgspec.json.Decoder(Task).decode
        for line in self._stream:
            self._loop.call_soon_threadsafe(self.tasks.put_nowait, decode(line))
        timer = threading.Timer(CLOSE_GRACE, self._end_hard)
        timer.daemon = True
        timer.start()
        if self._main is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it is ending already
                self._loop.call_soon_threadsafe(self._main.cancel)

    def _end_hard(self) -> None:
        """The gentle way took too long."""
        end_processes(self._directory)
        os._exit(1)


async def _serve(setup: Setup, stream: BinaryIO, speaker: _Sender) -> None:
    """Run missions until there is no more input (cancelled), or the station is lost (raises)."""
    directory = Path(setup.directory)
    listener = _Listener(stream, directory)
    station_class = find_station(setup.worker.station)
    async with station_class.open(setup.worker.spec, directory, speaker.tell) as station:
        speaker.say(StationOpened(facts=station.facts))
        while True:
            task = await listener.tasks.get()
            try:
                row = await station.run(task.plan)
            except Exception as error:
                raise _Lost(error) from error
            named = msgspec.structs.replace(row, worker=setup.name, attempt=task.attempt)
            speaker.say(TaskDone(row=named))


class _Lost(Exception):
    """A mission could not be run, and none will be here."""


def _broke(error: Exception) -> TaskFailed:
    """Say what an error means to the runner."""
    lost = isinstance(error, _Lost)
    cause = error.__cause__ if lost else error
    return TaskFailed(
        how="full" if _is_full(error) else "lost" if lost else "refused",
        kind=type(cause).__name__,
        problem=str(getattr(cause, "problem", cause)),
        remedy=str(getattr(cause, "remedy", "")),
    )


def _is_full(error: BaseException) -> bool:
    """Whether a full disk is behind it; libvirt and QEMU say so in words only."""
    return any(
        (isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT))
        or os.strerror(errno.ENOSPC) in str(each)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def main() -> int:
    """Be a worker; return the exit code: 0 if it ended because it was told to."""
    # The results' way out; whatever else is printed, by a library too, goes to the log.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C reaches the whole terminal; when we end is the runner's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_logs()
    speaker = _Sender(out)
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    try:
        asyncio.run(_serve(msgspec.json.decode(line, type=Setup), sys.stdin.buffer, speaker))
    except asyncio.CancelledError:
        return 0
    except Exception as error:  # noqa: BLE001 - told to the runner, with its cause in the log
        traceback.print_exc()
        speaker.say(_broke(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
