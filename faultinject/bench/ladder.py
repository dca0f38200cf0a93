"""What durability costs: one voter for each of none, os and fsync before process replicas, and
an etcd of three members, all on one machine and one disk, in rounds of random order.

Every target stores values of one size under the same number of keys in turn, with one request
under way and with 64, driven from this process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import msgspec

from deploy.node.records import Durability
from faultinject.bench import etcd, rig
from faultinject.bench.usage import Meter, family
from faultinject.host_facts import DiskFacts, Host, look_at_disk, look_at_host
from faultinject.load import LatencySummary, Start, Timed, pipelined, timed
from guests.protocol.message import encode_request
from voter.client import Client

__all__ = [
    "GOALS",
    "Goal",
    "LadderPlan",
    "LadderReport",
    "LadderResult",
    "ratios",
    "run_ladder",
    "summary",
]

BODY = b"x" * 64
IN_FLIGHT = 64
RUNGS: tuple[Durability, ...] = ("none", "os", "fsync")
ETCD = "etcd"
SPREAD = "etcd, 64 connections"
SESSION = "fsync, in a session"


class LadderPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for."""

    rounds: int
    requests: int  # for each target in each round with 64 under way; a quarter with one
    keys: int
    seed: int


class LadderResult(msgspec.Struct, frozen=True, kw_only=True):
    """One target in one round; rates a second, latencies in seconds, and the number of processors
    that servers, replicas and driver were busy on.
    """

    target: str
    durability: str
    one: Timed
    many: Timed
    one_busy: dict[str, float]
    many_busy: dict[str, float]


class LadderReport(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, and the ratios within rounds (name: median)."""

    plan: LadderPlan
    seconds: float
    host: Host
    disk: DiskFacts
    etcd: str  # its version, or why it is not there
    rounds: list[list[LadderResult]]
    ratios: dict[str, float]


class Goal(NamedTuple):
    """A ratio of two targets: its measure, and what to reach (0: only told)."""

    upper: str
    lower: str
    measure: Callable[[LadderResult], float]
    at_most: bool
    reach: float

    def reached(self, value: float) -> bool:
        """Whether this value will do."""
        return value <= self.reach if self.at_most else value >= self.reach


def _rate(one: LadderResult) -> float:
    return one.many.rate


def _p50(one: LadderResult) -> float:
    return one.one.latency.p50


GOALS: dict[str, Goal] = {
    "fsync/etcd rate, 64": Goal("fsync", ETCD, _rate, at_most=False, reach=1.5),
    "fsync/etcd rate, 64, its clients on connections of their own": Goal(
        "fsync", SPREAD, _rate, at_most=False, reach=0
    ),
    "fsync/etcd p50, 1": Goal("fsync", ETCD, _p50, at_most=True, reach=1.0),
    "os/none rate, 64": Goal("os", "none", _rate, at_most=False, reach=0.85),
    "os/none p50, 1": Goal("os", "none", _p50, at_most=True, reach=1.15),
    "fsync/none rate, 64": Goal("fsync", "none", _rate, at_most=False, reach=0),
    "session/fsync rate, 64": Goal(SESSION, "fsync", _rate, at_most=False, reach=0),
}


class _Target(NamedTuple):
    """Something to drive, and the processes that serve it (by what they are)."""

    durability: str
    start: Start
    processes: Callable[[], dict[str, list[int]]]


def run_ladder(
    plan: LadderPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> LadderReport:
    """Start all, measure, end all; return the report.  Data lie below ``scratch``.

    Raises OSError, TimeoutError; ValueError if etcd did not do all that it was paid for.
    """
    directory = Path(tempfile.mkdtemp(prefix="tv-ladder-", dir=scratch))
    try:
        return asyncio.run(_run(plan, directory, progress))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _run(plan: LadderPlan, directory: Path, progress: Callable[[str], None]) -> LadderReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    disk = look_at_disk(directory)
    children = rig.ChildProcesses()
    clients: list[Client] = []
    targets: dict[str, _Target] = {}
    told = "not installed"
    try:
        for durability in RUNGS:
            progress(f"starting a voter with durability {durability}")
            links = [f"exec:{rig.AGENT}"] * 3
            running = await rig.voter(
                children, directory / durability, links, durability=durability
            )
            clients.append(await Client.connect(running.native))
            targets[durability] = _Target(
                durability, _plain(clients[-1], plan.keys), _served_by(running.pid)
            )
            if durability == "fsync":
                start = _in_session(clients[-1], plan.keys)
                targets[SESSION] = _Target(durability, start, _served_by(running.pid))
        path, writers = etcd.program(), []
        if path is None:
            progress("etcd is not installed: left out (apt-get install etcd-server)")
        else:
            told = etcd.version(path)
            progress(f"starting an etcd {told} of three members")
            cluster = await etcd.start_cluster(children, directory / ETCD, path)
            keys = [f"key-{number:05d}".encode() for number in range(plan.keys)]
            members = {"servers": cluster.pids}
            # One connection is what it is fastest with; 64 clients have one each.
            for name, number in ((ETCD, 1), (SPREAD, IN_FLIGHT)):
                writers.append(await etcd.Writers.open(cluster.leader, number, keys, BODY))
                targets[name] = _Target("fsync", writers[-1].start, lambda: members)
            first = etcd.revision(await writers[0].start())
        rounds = await _rounds(plan, targets, progress)
        if writers:
            done = etcd.revision(await writers[0].start()) - first
            asked = sum(each.started for each in writers) - 1
            if done != asked:
                raise ValueError(f"etcd did {done} writes of {asked}")
            for each in writers:
                each.close()
        for client in clients:
            await client.close()
    finally:
        await children.stop()
    return LadderReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=look_at_host(accel="", load_before=load),
        disk=disk,
        etcd=told,
        rounds=rounds,
        ratios=ratios(rounds),
    )


def _requests(keys: int) -> cycle[bytes]:
    return cycle(
        [encode_request("PUT", f"/kv/key-{number:05d}", (), BODY) for number in range(keys)]
    )


def _plain(client: Client, keys: int) -> Start:
    requests = _requests(keys)
    return lambda: client.start(next(requests))


def _in_session(client: Client, keys: int) -> Start:
    requests = _requests(keys)
    return lambda: asyncio.ensure_future(client.ask(next(requests)))


def _served_by(pid: int) -> Callable[[], dict[str, list[int]]]:
    def find() -> dict[str, list[int]]:
        voter, *replicas = family(pid)
        return {"voter": [voter], "replicas": replicas}

    return find


async def _rounds(
    plan: LadderPlan, targets: Mapping[str, _Target], progress: Callable[[str], None]
) -> list[list[LadderResult]]:
    random = Random(plan.seed)
    rounds = []
    for at in range(plan.rounds):
        done = []
        for name in random.sample(sorted(targets), len(targets)):
            target = targets[name]
            progress(f"round {at + 1} of {plan.rounds}: {name} (durability {target.durability})")
            await pipelined(target.start, max(plan.requests // 10, plan.keys if not at else 0), 8)
            one, one_busy = await _metered(target, plan.requests // 4, 1)
            many, many_busy = await _metered(target, plan.requests, IN_FLIGHT)
            done.append(
                LadderResult(
                    target=name,
                    durability=target.durability,
                    one=one,
                    many=many,
                    one_busy=one_busy,
                    many_busy=many_busy,
                )
            )
        order = list(targets)
        rounds.append(sorted(done, key=lambda each: order.index(each.target)))
    return rounds


async def _metered(target: _Target, number: int, in_flight: int) -> tuple[Timed, dict[str, float]]:
    meter = Meter(target.processes())
    result = await timed(target.start, number, in_flight)
    return result, meter.shares()


def summary(rounds: list[list[LadderResult]]) -> list[LadderResult]:
    """Return each target's medians over rounds."""
    found = []
    for same in zip(*rounds, strict=True):
        found.append(
            LadderResult(
                target=same[0].target,
                durability=same[0].durability,
                one=_middle([each.one for each in same]),
                many=_middle([each.many for each in same]),
                one_busy=_middle_busy([each.one_busy for each in same]),
                many_busy=_middle_busy([each.many_busy for each in same]),
            )
        )
    return found


def _middle(series: list[Timed]) -> Timed:
    latency = LatencySummary(
        *(median(column) for column in zip(*(s.latency for s in series), strict=True))
    )
    return Timed(median(each.rate for each in series), latency)


def _middle_busy(series: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(each[name] for each in series) for name in series[0]}


def ratios(rounds: list[list[LadderResult]]) -> dict[str, float]:
    """Return the median over rounds of each ratio whose two targets were measured."""
    found: dict[str, float] = {}
    for name, goal in GOALS.items():
        values = []
        for done in rounds:
            by_name = {one.target: one for one in done}
            if goal.upper in by_name and goal.lower in by_name:
                values.append(goal.measure(by_name[goal.upper]) / goal.measure(by_name[goal.lower]))
        if values:
            found[name] = median(values)
    return found
