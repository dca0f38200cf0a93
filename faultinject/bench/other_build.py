"""Another checkout's build as targets: driven by ``build_driver`` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.host.spawn import python_environment
from faultinject.bench.build_driver import Sample
from faultinject.bench.rounds import IN_FLIGHT

__all__ = ["LOADS", "OtherBuild", "other_build", "scaled"]

LOADS: Mapping[str, dict[str, Any]] = {
    "many": {"seconds": 0.7, "in_flight": IN_FLIGHT},
    "one": {"seconds": 0.5},
    "paused": {"seconds": 1.0, "pause": 0.008},
}
"""The arguments of ``sample``, by the name of a load."""
START_TIMEOUT = 600.0
"""Seconds for another checkout to start: it may have to build its guest image."""


def scaled(load: str, times: float) -> dict[str, Any]:
    """Return the arguments of ``sample`` for a load that takes ``times`` as long."""
    arguments = LOADS[load]
    return arguments | {"seconds": times * arguments["seconds"]}


class OtherBuild:
    """The driver of another checkout, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    async def _read(self) -> dict[str, Any]:
        line = await self._output.readline()
        if not line:
            raise RuntimeError(
                f"the other checkout's driver ended with {await self._process.wait()}: its error "
                "is above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def wait_ready(self, progress: Callable[[str], None]) -> None:
        """Wait until its targets run.  Raises TimeoutError, RuntimeError."""
        async with asyncio.timeout(START_TIMEOUT):
            while "ready" not in (answer := await self._read()):
                progress(answer["progress"])

    async def sample(self, name: str, load: str, *, times: float = 1.0) -> Sample:
        """Measure one of its targets."""
        order = {"target": name} | scaled(load, times)
        self._input.write(json.dumps(order, allow_nan=False).encode() + b"\n")
        return Sample(**await self._read())

    async def close(self) -> None:
        """Stop it with all that it started."""
        self._input.close()
        try:
            async with asyncio.timeout(60):
                await self._process.wait()
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()


@contextlib.asynccontextmanager
async def other_build(
    checkout: Path,
    directory: Path,
    accel: str,
    names: Sequence[str],
    progress: Callable[[str], None],
) -> AsyncIterator[OtherBuild]:
    """Start the driver of a checkout with these targets; stop it afterwards.

    ``directory``: an existing one for its data.  Raises TimeoutError, RuntimeError.
    """
    script = Path(__file__).with_name("build_driver.py")
    root = str(checkout.resolve())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(script), str(directory), accel, *names,
        cwd=root, start_new_session=True, env=python_environment() | {"PYTHONPATH": root},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    other = OtherBuild(process)
    try:
        await other.wait_ready(progress)
        yield other
    finally:
        await other.close()
