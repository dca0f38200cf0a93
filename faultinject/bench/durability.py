"""``trivisor bench durability``: what durability costs, compared with none and with etcd.

One voter for each of none, os and fsync runs in front of process replicas, and an etcd of three
members next to them, all on one machine and one disk.  Every target stores the same value under the
same number of keys in turn, with one request in flight and with 64.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from deploy.node.records import Durability
from faultinject.bench import etcd, rig
from faultinject.bench.rounds import IN_FLIGHT, Goal, ratios, run_rounds
from faultinject.bench.usage import Meter, family
from faultinject.host_facts import DiskFacts, Host, describe_host, measure_disk
from faultinject.load import LatencySummary, Start, Timed, pipelined, timed
from voter.client import Client

__all__ = [
    "GOALS", "DurabilityPlan", "DurabilityReport", "DurabilityRound", "run_durability", "summary",
]  # fmt: skip

DURABILITIES: tuple[Durability, ...] = ("none", "os", "fsync")
ETCD = "etcd"
ETCD_SPREAD = f"etcd, {IN_FLIGHT} connections"
SESSION = "fsync, in a session"

GOALS = {
    "fsync/etcd rate, 64": Goal("rate", "fsync", ETCD, 1.5),
    "fsync/etcd rate, 64, its clients on connections of their own": Goal(
        "rate", "fsync", ETCD_SPREAD
    ),
    "fsync/etcd p50, 1": Goal("p50", "fsync", ETCD, 1.0),
    "os/none rate, 64": Goal("rate", "os", "none", 0.85),
    "os/none p50, 1": Goal("p50", "os", "none", 1.15),
    "fsync/none rate, 64": Goal("rate", "fsync", "none"),
    "session/fsync rate, 64": Goal("rate", SESSION, "fsync"),
}


class DurabilityPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for."""

    rounds: int
    requests: int  # for each target in each round with 64 in flight; a quarter with one
    keys: int
    seed: int


class DurabilityRound(msgspec.Struct, frozen=True, kw_only=True):
    """One target in one round: rates a second, latencies in seconds.

    ``one_busy`` and ``many_busy``: how many processors servers, replicas and driver were busy on.
    """

    target: str
    durability: str
    one: Timed
    many: Timed
    one_busy: dict[str, float]
    many_busy: dict[str, float]

    @property
    def p50(self) -> float:
        """The median latency with one request in flight."""
        return self.one.latency.p50

    @property
    def rate(self) -> float:
        """Requests a second with 64 in flight."""
        return self.many.rate


class DurabilityReport(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, and the median over rounds of each ratio."""

    plan: DurabilityPlan
    seconds: float
    host: Host
    disk: DiskFacts
    etcd: str  # its version, or why it was not measured
    rounds: list[list[DurabilityRound]]
    ratios: dict[str, float]


class _Target(NamedTuple):
    """Something to drive, and its processes by role."""

    durability: str
    start: Start
    processes: Callable[[], dict[str, list[int]]]


def run_durability(
    plan: DurabilityPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> DurabilityReport:
    """Start everything, measure, stop everything; data are below ``scratch``.

    Raises OSError, TimeoutError; ValueError if etcd did not execute every write.
    """
    return rig.run_in_scratch(
        lambda directory: _run(plan, directory, progress), "durability", scratch
    )


async def _run(
    plan: DurabilityPlan, directory: Path, progress: Callable[[str], None]
) -> DurabilityReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    disk = measure_disk(directory)
    async with rig.ChildProcesses() as children, contextlib.AsyncExitStack() as stack:
        targets: dict[str, _Target] = {}
        for durability in DURABILITIES:
            progress(f"starting a voter with durability {durability}")
            voter = await rig.process_voter(children, directory / durability, durability)
            client = await stack.enter_async_context(await Client.connect(voter.native))
            processes = _family_of(voter.pid)
            targets[durability] = _Target(durability, _plain(client, plan.keys), processes)
            if durability == "fsync":
                start = _in_session(client, plan.keys)
                targets[SESSION] = _Target(durability, start, processes)
        missing = etcd.missing_requirement()
        if missing:
            progress(f"{missing}: etcd is left out")
            rounds, version = await _measure(plan, targets, progress), missing
        else:
            progress("starting an etcd of three members")
            cluster = await etcd.start_cluster(children, directory / ETCD)
            version = cluster.version
            rounds = await _measure_with_etcd(plan, targets, cluster, progress)
    return DurabilityReport(
        plan=plan,
        seconds=time.monotonic() - began,
        host=describe_host(accel="", load_before=load),
        disk=disk,
        etcd=version,
        rounds=rounds,
        ratios=ratios(GOALS, rounds),
    )


def _plain(client: Client, keys: int) -> Start:
    requests = rig.puts(keys)
    return lambda: client.start(next(requests))


def _in_session(client: Client, keys: int) -> Start:
    requests = rig.puts(keys)
    return lambda: asyncio.ensure_future(client.ask(next(requests)))


def _family_of(pid: int) -> Callable[[], dict[str, list[int]]]:
    def find() -> dict[str, list[int]]:
        voter, *replicas = family(pid)
        return {"voter": [voter], "replicas": replicas}

    return find


async def _measure_with_etcd(
    plan: DurabilityPlan,
    targets: Mapping[str, _Target],
    cluster: etcd.EtcdCluster,
    progress: Callable[[str], None],
) -> list[list[DurabilityRound]]:
    """Measure the targets and etcd, on one connection (its fastest way) and on 64.

    Raises ValueError if etcd's revision shows that it did not execute every write.
    """
    keys = [f"key-{number:05d}".encode() for number in range(plan.keys)]
    members = {"servers": cluster.pids}
    writers = {
        name: etcd.EtcdWriters.open(cluster.leader, connections, keys, rig.BODY)
        for name, connections in ((ETCD, 1), (ETCD_SPREAD, IN_FLIGHT))
    }
    etcds = {name: _Target("fsync", each.start, lambda: members) for name, each in writers.items()}
    before = await cluster.revision()
    try:
        rounds = await _measure(plan, {**targets, **etcds}, progress)
    finally:
        for each in writers.values():
            await each.close()
    executed = await cluster.revision() - before
    started = sum(each.started for each in writers.values())
    if executed != started:
        raise ValueError(f"etcd executed {executed} of {started} writes")
    return rounds


async def _measure(
    plan: DurabilityPlan, targets: Mapping[str, _Target], progress: Callable[[str], None]
) -> list[list[DurabilityRound]]:
    async def measure(name: str, at: int) -> DurabilityRound:
        target = targets[name]
        warm_up = max(plan.requests // 10, 0 if at else plan.keys)  # all keys exist afterwards
        await pipelined(target.start, warm_up, 8)
        one, one_busy = await _metered(target, plan.requests // 4, 1)
        many, many_busy = await _metered(target, plan.requests, IN_FLIGHT)
        return DurabilityRound(
            target=name, durability=target.durability,
            one=one, many=many, one_busy=one_busy, many_busy=many_busy,
        )  # fmt: skip

    return await run_rounds(
        list(targets), measure, rounds=plan.rounds, seed=plan.seed, progress=progress
    )


async def _metered(target: _Target, number: int, in_flight: int) -> tuple[Timed, dict[str, float]]:
    meter = Meter(target.processes())
    result = await timed(target.start, number, in_flight)
    return result, meter.shares()


def summary(rounds: Sequence[Sequence[DurabilityRound]]) -> list[DurabilityRound]:
    """Return the medians over rounds of each target."""
    return [
        DurabilityRound(
            target=series[0].target,
            durability=series[0].durability,
            one=_median_timed([each.one for each in series]),
            many=_median_timed([each.many for each in series]),
            one_busy=_median_busy([each.one_busy for each in series]),
            many_busy=_median_busy([each.many_busy for each in series]),
        )
        for series in zip(*rounds, strict=True)
    ]


def _median_timed(series: list[Timed]) -> Timed:
    columns = zip(*(each.latency for each in series), strict=True)
    latency = LatencySummary(*(median(column) for column in columns))
    return Timed(median(each.rate for each in series), latency)


def _median_busy(series: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(each[name] for each in series) for name in series[0]}
