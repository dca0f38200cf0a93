"""Drives voters of one build: this one, or another checkout's in a process of its own.

The same code drives both, so that only the builds differ.  As a program it uses the modules of the
checkout in PYTHONPATH, with what they offer since commit d879bba:

    PYTHONPATH=CHECKOUT python -P build_driver.py DIRECTORY ACCEL TARGET...

A TARGET is ``exec``, ``durable`` or ``guests``.  Each line of its output is a JSON object: first
``{"progress": TEXT}``, then ``{"ready": true}``.  Then it answers each line of its input, a JSON
object with the arguments of ``sample``, by the fields of a ``Sample``, until the input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from faultinject.bench import rig
from faultinject.bench.usage import cpu_seconds, family
from faultinject.load import Start, percentile, pipelined
from voter.client import Client
from voter.commands.terminal import quiet_logs

__all__ = ["KEYS", "Sample", "Target", "exec_target", "main", "sample", "voted_target"]

KEYS = 1000
"""Keys that each target's writes go to, in turn."""
WARM_UP = 0.1
"""Part of a sample's time that is spent on requests which are not counted."""


class Target(NamedTuple):
    """What is driven.  ``processes``: its process identifiers, by role."""

    start: Start
    processes: Callable[[], Mapping[str, list[int]]]


class Sample(NamedTuple):
    """What one target did for a moment: requests a second, their median latency in seconds.

    ``p50`` is 0 with several requests in flight.  ``processor``: processor seconds a request, by
    role; ``driver`` is the process that makes the requests.
    """

    requests: int
    rate: float
    p50: float
    processor: dict[str, float]


async def sample(
    target: Target, *, seconds: float, in_flight: int = 1, pause: float = 0.0
) -> Sample:
    """Drive a target for about so many seconds, in a closed loop.

    ``pause``: seconds between a reply and the next request, with one in flight.  Raises the error
    of the first request that fails.
    """
    number = 1
    if in_flight > 1:
        probe = 4 * in_flight
        rate = await pipelined(target.start, probe, in_flight)
        rate = await pipelined(target.start, max(probe, int(rate * seconds * WARM_UP)), in_flight)
        number = max(probe, int(rate * seconds))
    else:
        await _one_by_one(target.start, seconds * WARM_UP, pause)
    groups = {role: list(pids) for role, pids in target.processes().items()}
    groups["driver"] = [os.getpid()]
    before = {role: cpu_seconds(pids) for role, pids in groups.items()}
    if in_flight > 1:
        rate, p50 = await pipelined(target.start, number, in_flight), 0.0
    else:
        latencies = await _one_by_one(target.start, seconds, pause)
        number, p50 = len(latencies), percentile(latencies, 0.5)
        rate = number / sum(latencies)
    used = {role: (cpu_seconds(pids) - before[role]) / number for role, pids in groups.items()}
    return Sample(number, rate, p50, used)


async def _one_by_one(start: Start, seconds: float, pause: float) -> list[float]:
    """Return the latencies of requests that each wait for the one before, and the pause."""
    clock = time.perf_counter
    until = clock() + seconds
    latencies: list[float] = []
    while not latencies or clock() < until:
        began = clock()
        await start()
        latencies.append(clock() - began)
        if pause:
            await asyncio.sleep(pause)  # the pause is what is measured
    return latencies


def exec_target(voter: rig.VoterProcess, clients: list[Client]) -> Target:
    """Return a voter in front of process replicas as a target, its writes over all clients."""
    voter_pid, *replicas = family(voter.pid)
    return Target(_puts(clients), lambda: {"voter": [voter_pid], "replicas": replicas})


def voted_target(voter: rig.VoterProcess, clients: list[Client], node: Any) -> Target:
    """Return a voter in front of a node's first three guests as a target."""
    guests = list(node.guests.values())[:3]
    return Target(
        _puts(clients),
        lambda: {"voter": [voter.pid], "guests": [each.pid for each in guests if each.pid]},
    )


def _puts(clients: list[Client]) -> Start:
    requests = rig.puts(KEYS)
    if len(clients) == 1:
        start = clients[0].start
        return lambda: start(next(requests))
    starts = cycle([each.start for each in clients])
    return lambda: next(starts)(next(requests))


@contextlib.asynccontextmanager
async def _targets(
    names: list[str], directory: Path, accel: Any, progress: Callable[[str], None]
) -> AsyncIterator[dict[str, Target]]:
    async with contextlib.AsyncExitStack() as stack:
        children = await stack.enter_async_context(rig.ChildProcesses())
        targets: dict[str, Target] = {}
        make: Callable[[rig.VoterProcess, list[Client]], Target]
        for name in names:
            if name == "guests":
                planned = rig.plan_guests(directory / "vm", 3, accel, progress)
                node = await stack.enter_async_context(rig.guests(planned, progress))
                links = [f"unix:{guest.spec.link_socket}" for guest in node.guests.values()]
                voter = await rig.start_voter(children, directory / name, links)
                make = partial(voted_target, node=node)
            else:
                voter = await rig.process_voter(
                    children, directory / name, "fsync" if name == "durable" else "none"
                )
                make = exec_target
            client = await stack.enter_async_context(await Client.connect(voter.native))
            targets[name] = make(voter, [client])
        yield targets


async def _serve(directory: Path, accel: str, names: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print, too

    def answer(**fields: object) -> None:
        print(json.dumps(fields, allow_nan=False), file=answers, flush=True)

    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with _targets(names, directory, accel, lambda text: answer(progress=text)) as targets:
        answer(ready=True)
        while line := await lines.readline():
            order = json.loads(line)
            target = targets[order.pop("target")]
            answer(**(await sample(target, **order))._asdict())


def main(arguments: list[str]) -> None:
    """Serve until the input ends."""
    directory, accel, *names = arguments
    quiet_logs()
    asyncio.run(_serve(Path(directory), accel, names))


if __name__ == "__main__":
    main(sys.argv[1:])
