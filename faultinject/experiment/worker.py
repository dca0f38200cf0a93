"""A worker: a process with one rig, which runs the trials that it reads from its input.

``python -m faultinject.experiment.worker MODULE DIRECTORY`` opens the rig of the module's
experiment.  It reads one trial a line, and answers with the lines of ``messages``.  It ends when
its input does: so no guest outlives the process that runs the experiment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import msgspec

from deploy.host.scratch import end_processes
from faultinject.experiment.design import Trial, load_experiment
from faultinject.experiment.messages import Failed, Opened, Ran, Step
from voter.commands.terminal import quiet_logs

__all__ = ["main"]

CLOSE_GRACE = 20.0
"""Seconds from the end of input to the end of the rig; then its processes are killed."""


def _send(message: msgspec.Struct) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        sys.stderr.write("nobody reads the results any more; the end of input will follow\n")


async def _serve(module: str, directory: Path) -> None:
    loop = asyncio.get_running_loop()
    trials: asyncio.Queue[Trial] = asyncio.Queue()
    current = asyncio.current_task()
    assert current is not None

    def end_now() -> None:
        end_processes(directory)
        os._exit(1)

    def receive() -> None:  # in a thread: the end of input is noticed whatever the loop does
        decode = msgspec.json.Decoder(Trial).decode
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(trials.put_nowait, decode(line))
        timer = threading.Timer(CLOSE_GRACE, end_now)
        timer.daemon = True
        timer.start()
        if not loop.is_closed():
            loop.call_soon_threadsafe(current.cancel)

    threading.Thread(target=receive, name="receive", daemon=True).start()
    experiment = load_experiment(module)
    async with experiment.open_rig(directory, lambda text: _send(Step(text))) as rig:
        _send(Opened(dict(rig.facts)))
        while True:
            trial = await trials.get()
            began = time.monotonic()
            outcome = await rig.run(trial)
            _send(Ran(trial.index, round(time.monotonic() - began, 4), outcome))


def main(arguments: list[str]) -> int:
    """Run trials until the input ends; return the exit status."""
    module, directory = arguments
    quiet_logs()
    try:
        asyncio.run(_serve(module, Path(directory)))
    except asyncio.CancelledError:
        return 0
    except Exception as error:  # noqa: BLE001 - it is reported to the runner, with its traceback
        traceback.print_exc()
        _send(
            Failed(
                f"{type(error).__name__}: {error}",
                str(getattr(error, "remedy", "")),
                str(getattr(error, "error_code", "")),
            )
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
