"""``trivisor bench replay``: is a replay at least as fast as the live execution that it repeats?

Four real guests run.  In each round a voter with a journal orders writes for three of them, as fast
as they answer with so many requests in flight.  Then the fourth guest replays that journal, while
the other three are idle.  Both are measured in writes a second, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from deploy.replay.replica import Replica
from deploy.replay.run import Replay
from faultinject.bench import rig
from faultinject.host_facts import Host, describe_host
from faultinject.load import pipelined
from voter.client import Client
from voter.journal.reader import JournalReader

__all__ = ["ReplayPlan", "ReplayBenchReport", "ReplayRound", "run_replay"]

WRITTEN_TIMEOUT = 60.0
"""Seconds for the journal to hold all results; then the run fails with TimeoutError."""
REPLAYER = "g4"


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for."""

    rounds: int
    writes: int  # of one round
    in_flight: int  # requests at the same time, live
    keys: int
    accel: rig.Requested


class ReplayRound(msgspec.Struct, frozen=True, kw_only=True):
    """One history: writes a second, live and replayed."""

    live: float
    replayed: float
    compared: int
    differing: int
    digests: int  # checkpoints whose voted digest was met

    @property
    def ratio(self) -> float:
        """Speed of the replay divided by that of the live execution."""
        return self.replayed / self.live


class ReplayBenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run."""

    plan: ReplayPlan
    seconds: float
    host: Host
    rounds: list[ReplayRound]

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return median(each.ratio for each in self.rounds)


def run_replay(
    plan: ReplayPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> ReplayBenchReport:
    """Boot, measure, stop everything.  Raises TimeoutError, RequestError, DeployError."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "p", scratch)


async def _run(
    plan: ReplayPlan, directory: Path, progress: Callable[[str], None]
) -> ReplayBenchReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    planned = rig.plan_guests(directory / "vm", 4, plan.accel, progress)
    rounds = []
    async with rig.guests(planned, progress) as node:
        links = {name: f"unix:{guest.spec.link_socket}" for name, guest in node.guests.items()}
        replayer = links.pop(REPLAYER)
        for number in range(plan.rounds):
            home = directory / f"v{number}"
            live = await _execute(plan, home, list(links.values()))
            rounds.append(await _replay(home / "journal", replayer, live))
            progress(
                f"round {number + 1}: {live:.0f} writes/s live, "
                f"{rounds[-1].replayed:.0f} replayed: {rounds[-1].ratio:.2f} times as fast"
            )
        accel = node.guests[REPLAYER].spec.accel
    return ReplayBenchReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=describe_host(accel=accel, load_before=load),
        rounds=rounds,
    )


async def _execute(plan: ReplayPlan, directory: Path, links: list[str]) -> float:
    """Make the writes of one round; return writes a second."""
    async with rig.ChildProcesses() as children:
        voter = await rig.start_voter(children, directory, links, durability="fsync")
        async with await Client.connect(voter.native) as client:
            requests = rig.puts(plan.keys)

            def start() -> asyncio.Future[Any]:
                return client.start(next(requests))

            rate = await pipelined(start, plan.writes, plan.in_flight)
        async with asyncio.timeout(WRITTEN_TIMEOUT):
            while True:
                journal = (await voter.call("GET", "/status"))["journal"]
                if journal["synced"] >= journal["position"]:
                    return rate
                await asyncio.sleep(0.01)  # nothing reports the last results: poll


async def _replay(journal: Path, address: str, live: float) -> ReplayRound:
    reader = JournalReader(journal)
    job = Replay(reader, reader.checkpoints()[0])
    async with Replica(address, ("kv", 1)) as replica:
        report = await job.run(replica)
    return ReplayRound(
        live=live,
        replayed=report.rate,
        compared=report.compared,
        differing=report.differing,
        digests=sum(each.same for each in report.digests),
    )
