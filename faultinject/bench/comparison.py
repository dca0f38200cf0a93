"""``trivisor bench``: all figures of the project's speed in one run, compared with peers.

Each stage starts what it needs, measures its targets in rounds, and stops it:

    processes   voters with three ``exec:`` replicas, HAProxy and aiohttp's proxy with one replica,
                etcd with three members
    guests      a voter with three real guests and the bare link to a fourth; the guests then fail
                and return
    transfer, campaign   commands of their own

With another checkout (``--compare``) its build takes part in the rounds, driven by
``build_driver`` in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from deploy.host.spawn import python_command
from deploy.machine.node_machines import NodeMachines
from deploy.node.records import Durability
from faultinject.bench import etcd, rig
from faultinject.bench.bench_report import (
    BenchPlan,
    BenchReport,
    CampaignRate,
    Measured,
    Round,
    VoterMode,
    evaluate_all,
)
from faultinject.bench.build_driver import KEYS, Sample, Target, exec_target, sample, voted_target
from faultinject.bench.clients import BareLink, HttpPool
from faultinject.bench.disturbance import disturb, recover
from faultinject.bench.idle import hold_idle
from faultinject.bench.other_build import OtherBuild, other_build, scaled
from faultinject.bench.rounds import IN_FLIGHT, run_rounds
from faultinject.bench.transfer import TransferReport
from faultinject.bench.usage import HostShare
from faultinject.campaign.store.store import DATABASE, Store
from faultinject.host_facts import describe_host, measure_disk
from faultinject.load import Start, sustained_rate
from voter.address import parse_address
from voter.client import Client

__all__ = ["run_bench"]

STAGES = {"processes": 0.17, "guests": 0.2, "failures": 0.3, "transfer": 0.22, "campaign": 0.11}
"""The stages, and the share of the run's time that each is expected to take."""
FIGURES_OF = {
    "processes": {"haproxy", "durable", "processor", "idle"},
    "guests": {"guests", "latency", "processor"},
    "failures": {"failure", "recovery"},
    "transfer": {"transfer"},
    "campaign": {"campaign"},
}
GUEST_TIMES = 1.5
"""How much longer a sample of real guests takes: they do fewer requests a second."""
IDLE_CONNECTIONS = 10_000
CAMPAIGN = """\
title = "Missions per hour"
question = "inequality4"
about = "One guest is hit, and its QEMU survives."
repair = "off"
[station]
service = "kv"
vote = "2/3"
guests = 3
[workload]
length = 20
[faults]
hang = 1
reset = 1
corrupt-reply = 1
[[strata]]
guests_hit = 1
missions = 5000
[[strata]]
guests_hit = 0
missions = 1
[[strata]]
guests_hit = 2
missions = 1
[[strata]]
guests_hit = 3
missions = 1
"""
"""The campaign that is measured: more missions than can run; the question needs all strata."""

Progress = Callable[[str], None]


def run_bench(
    plan: BenchPlan,
    progress: Progress,
    *,
    compare: Path | None = None,
    scratch: Path | None = None,
) -> BenchReport:
    """Measure, stage by stage; data are below ``scratch``, the other build in ``compare``.

    A stage that fails is reported as missing.  After Ctrl-C the report has what is finished.
    """
    return rig.run_in_scratch(
        lambda directory: _Bench(plan, directory, progress, compare).run(), "bench", scratch
    )


class _Bench:
    """One run."""

    def __init__(
        self, plan: BenchPlan, directory: Path, progress: Progress, compare: Path | None
    ) -> None:
        self._plan, self._directory, self._compare = plan, directory, compare
        self._print = progress
        self._random = Random(plan.seed)
        self._least = 1 if plan.quick else 3  # rounds
        self._measured = Measured()
        self._missing: dict[str, str] = {}
        self._others: dict[str, float] = {}
        self._modes: dict[str, VoterMode] = {}
        self._etcd = ""
        self._accel = ""
        self._stages = [name for name, own in FIGURES_OF.items() if own & plan.figures]
        self._stage, self._began = "", time.monotonic()

    # ------------------------------------------------------------------------------- the run

    async def run(self) -> BenchReport:
        began, load = time.monotonic(), os.getloadavg()[0]
        interrupted = False
        self._print(f"seed {self._plan.seed}, about {self._plan.seconds / 60:.0f} minutes")
        disk = measure_disk(self._directory)
        try:
            if "processes" in self._stages:
                await self._try("processes", self._run_processes)
            if {"guests", "failures"} & set(self._stages):
                first = "guests" if "guests" in self._stages else "failures"
                await self._try(first, self._run_guests)
            if "transfer" in self._stages:
                await self._try("transfer", self._run_transfer)
            if "campaign" in self._stages:
                await self._try("campaign", self._run_campaign)
        except asyncio.CancelledError:  # Ctrl-C: what is finished is kept
            interrupted = True
            self._missing[self._stage] = "interrupted"
        return BenchReport(
            plan=self._plan,
            seconds=time.monotonic() - began,
            interrupted=interrupted,
            build=_commit(rig.ROOT),
            old=_commit(self._compare) if self._compare else "",
            host=describe_host(accel=self._accel, load_before=load),
            disk=disk,
            etcd=self._etcd,
            modes=self._modes,
            others=self._others,
            values=evaluate_all(self._measured, self._plan.figures),
            missing=self._missing,
            measured=self._measured,
        )

    async def _try(self, name: str, stage: Callable[[], Awaitable[None]]) -> None:
        """Run a stage; an error is reported, and the other stages still run."""
        self._enter(name)
        share = HostShare()
        try:
            await stage()
        except Exception as error:  # noqa: BLE001 - reported as missing, with its exit code
            text = f"{type(error).__name__}: {error}"
            self._missing[self._stage] = text
            self._print(f"{self._stage} failed: {text}")
        self._others[name] = share.others()

    def _enter(self, stage: str) -> None:
        self._stage, self._began = stage, time.monotonic()

    def _budget(self, stage: str) -> float:
        """Return the seconds of a stage in a run of all stages."""
        return STAGES[stage] * self._plan.seconds

    def _progress(self, text: str) -> None:
        """Print a line with the time that the run will still take."""
        elapsed = time.monotonic() - self._began
        left = max(0.0, self._budget(self._stage) - elapsed)
        after = self._stages[self._stages.index(self._stage) + 1 :]
        minutes, seconds = divmod(round(left + sum(map(self._budget, after))), 60)
        self._print(f"{minutes}:{seconds:02} left, {self._stage}: {text}")

    async def _rounds(
        self,
        targets: Mapping[str, _Driven],
        done: list[Round],
        random: Random,
    ) -> None:
        """Measure rounds until the stage's time is used."""

        async def measure(name: str) -> dict[str, Sample]:
            self._progress(f"round {len(done) + 1}: {name}")
            driven = targets[name]
            return {load: await driven.sample(load) for load in driven.loads}

        left = self._budget(self._stage) - (time.monotonic() - self._began)
        await run_rounds(
            list(targets), measure, done, random=random, seconds=left, least=self._least
        )

    # ------------------------------------------------------------------------- process replicas

    async def _run_processes(self) -> None:
        figures = self._plan.figures
        async with contextlib.AsyncExitStack() as stack:
            children = await stack.enter_async_context(rig.ChildProcesses())
            enter = stack.enter_async_context
            targets: dict[str, _Driven] = {}
            clusters: list[tuple[etcd.EtcdCluster, int, list[etcd.EtcdWriters]]] = []
            voter = await self._voter(children, "none")
            client = await enter(await Client.connect(voter.native))
            self._modes["processes"] = VoterMode.of(await voter.call("GET", "/status"))
            targets["exec"] = _local(exec_target(voter, [client]), "many", "one")
            if "haproxy" in figures:
                targets |= await self._proxies(children, stack)
            if "durable" in figures:
                targets |= await self._durable(children, stack)
                if missing := etcd.missing_requirement():
                    self._missing["durable"] = missing
                    self._progress(f"{missing}: etcd is left out")
                else:
                    cluster = await etcd.start_cluster(children, self._directory / "etcd")
                    self._etcd = cluster.version
                    writers = _etcd_writers(cluster)
                    for each in writers.values():
                        stack.push_async_callback(each.close)
                    targets |= {
                        name: _local(Target(each.start, partial(_members, cluster)), *loads)
                        for (name, each), loads in zip(
                            writers.items(), (("many", "one"), ("many",)), strict=True
                        )
                    }
                    clusters.append((cluster, await cluster.revision(), list(writers.values())))
            if self._compare is not None:
                wanted = ["exec", "durable"] if "durable" in figures else ["exec"]
                old = await enter(self._other_build(*wanted))
                targets |= {
                    f"old {name}": _Driven(partial(old.sample, name), ("many", "one"))
                    for name in wanted
                }
            if figures & {"haproxy", "durable", "processor"}:
                await self._rounds(targets, self._measured.processes, self._random)
            for cluster, before, used in clusters:
                executed = await cluster.revision() - before
                started = sum(each.started for each in used)
                if executed != started:
                    raise ValueError(f"etcd executed {executed} of {started} writes")
            if "idle" in figures:
                self._progress(f"holding {IDLE_CONNECTIONS} idle connections")
                self._measured.idle = await hold_idle(voter, IDLE_CONNECTIONS)

    async def _voter(
        self, children: rig.ChildProcesses, durability: Durability
    ) -> rig.VoterProcess:
        self._progress(f"starting a voter with durability {durability}, three exec: replicas")
        return await rig.process_voter(children, self._directory / durability, durability)

    async def _proxies(
        self, children: rig.ChildProcesses, stack: contextlib.AsyncExitStack
    ) -> dict[str, _Driven]:
        """Start HAProxy and aiohttp's proxy in front of one replica."""
        replica, proxy, haproxy = (rig.free_port() for _ in range(3))
        await rig.start_peer(children, "replica", replica)
        await rig.start_peer(children, "proxy", proxy, replica)
        ports = {"aiohttp proxy": proxy}
        if await rig.start_haproxy(children, self._directory, haproxy, replica):
            ports["HAProxy"] = haproxy
        else:
            self._missing["haproxy"] = "HAProxy is not installed (apt-get install haproxy)"
            self._progress(f"{self._missing['haproxy']}: it is left out")
        targets = {}
        for name, port in ports.items():
            pool = await HttpPool.open(port, IN_FLIGHT, _http_puts())
            stack.callback(pool.close)
            targets[name] = _local(Target(pool.start, dict), "many")
        return targets

    async def _durable(
        self, children: rig.ChildProcesses, stack: contextlib.AsyncExitStack
    ) -> dict[str, _Driven]:
        """Start voters with a journal; drive one by 1 connection, by 64, and in a session."""
        targets = {}
        for durability in ("os", "fsync"):
            voter = await self._voter(children, durability)
            clients = [
                await stack.enter_async_context(await Client.connect(voter.native))
                for _ in range(IN_FLIGHT if durability == "fsync" else 1)
            ]
            one = exec_target(voter, clients[:1])
            if durability == "os":
                targets["os"] = _local(one, "many")
                continue
            in_session = one._replace(start=_in_session(clients[0]))
            targets["durable"] = _local(one, "many", "one")
            targets["durable, 64 connections"] = _local(exec_target(voter, clients), "many")
            targets["durable, in a session"] = _local(in_session, "many")
        return targets

    # ---------------------------------------------------------------------------- real guests

    async def _run_guests(self) -> None:
        planned = rig.plan_guests(self._directory / "vm", 4, self._plan.accel, self._progress)
        async with rig.ChildProcesses() as children, rig.guests(planned, self._progress) as node:
            self._accel = node.guests["g1"].spec.accel
            links = {name: f"unix:{each.spec.link_socket}" for name, each in node.guests.items()}
            bare = links.pop("g4")
            voter = await rig.start_voter(children, self._directory / "b", list(links.values()))
            self._modes["guests"] = VoterMode.of(await voter.call("GET", "/status"))
            async with await Client.connect(voter.native) as client:
                target = voted_target(voter, [client], node)
                if "guests" in self._stages:
                    await self._compare_guests(target, voter, bare)
                if "failures" in self._stages:
                    self._enter("failures")
                    await self._fail_guests(target, voter, node)

    async def _compare_guests(self, target: Target, voter: rig.VoterProcess, bare: str) -> None:
        loads = ("many", "one", "paused")
        async with contextlib.AsyncExitStack() as stack:
            link = await BareLink.open(parse_address(bare), rig.puts(KEYS))
            stack.callback(link.close)
            pool = await HttpPool.open(voter.http, IN_FLIGHT, _http_puts())
            stack.callback(pool.close)
            targets = {
                "guests": _local(target, *loads, times=GUEST_TIMES),
                "bare link": _local(Target(link.start, dict), *loads, times=GUEST_TIMES),
                "guests, HTTP": _local(Target(pool.start, dict), "many", times=GUEST_TIMES),
            }
            if self._compare is not None:
                old = await stack.enter_async_context(self._other_build("guests"))
                targets["old guests"] = _Driven(
                    partial(old.sample, "guests", times=GUEST_TIMES), loads
                )
            await self._rounds(targets, self._measured.guests, self._random)

    async def _fail_guests(
        self, target: Target, voter: rig.VoterProcess, node: NodeMachines
    ) -> None:
        figures, measured = self._plan.figures, self._measured
        self._progress(f"storing {KEYS} keys")
        await sample(target, seconds=0.1, in_flight=8)
        for _ in range(KEYS):
            await target.start()
        if "recovery" in figures:
            measured.recoveries = await recover(
                node, voter, keys=KEYS, tries=1 if self._plan.quick else 5,
                progress=self._progress,
            )  # fmt: skip
        if "failure" in figures:
            await voter.wait_active("g1", "g2", "g3")
            self._progress("finding the rate that unpipelined arrivals sustain")
            measured.arrivals = await sustained_rate(target.start)
            measured.disturbances = await disturb(
                node, voter, target.start, rate=measured.arrivals / 2, pairs=self._plan.pairs,
                progress=self._progress,
            )  # fmt: skip

    # ------------------------------------------------------------------- commands of their own

    async def _run_transfer(self) -> None:
        path = self._directory / "transfer.json"
        passages = 1 if self._plan.quick else max(1, round(self._plan.minutes / 15))
        words = ["--size", "16" if self._plan.quick else "100", "--load", "0.3"]
        words += ["--passages", str(passages), "--accel", self._plan.accel]
        words += ["--data", str(self._directory), "--out", str(path)]
        async with self._command("bench", "transfer", *words) as process:
            code = await process.wait()
        if code != 0:
            raise RuntimeError(f"trivisor bench transfer ended with {code}")
        report = msgspec.json.decode(path.read_bytes(), type=TransferReport)
        self._measured.transfer, self._accel = report, report.host.accel

    async def _run_campaign(self) -> None:
        path, results = self._directory / "missions.toml", self._directory / "missions"
        path.write_text(CAMPAIGN)
        words = ["run", str(path), "--out", str(results), "--no-report"]
        words += ["--seed", str(self._plan.seed)]
        async with self._command("campaign", *words) as process:
            ended = asyncio.create_task(process.wait())
            while not ended.done() and not _missions(results):
                await asyncio.wait([ended], timeout=1)  # another program's first row: poll
            left = self._budget("campaign") - (time.monotonic() - self._began)
            await asyncio.wait([ended], timeout=max(left, 15.0))
        began = _missions(results)
        if len(began) < 3:
            raise RuntimeError(f"{len(began)} missions were run")
        self._measured.campaign = CampaignRate(missions=len(began), seconds=began[-1] - began[0])

    @contextlib.asynccontextmanager
    async def _command(self, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a ``trivisor`` command, its messages as progress; afterwards interrupt it."""
        process = await asyncio.create_subprocess_exec(
            *python_command("trivisor", *words), cwd=rig.ROOT, start_new_session=True,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        printing = asyncio.create_task(self._print_lines(process.stderr))
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # it stops its guests
            await process.wait()
            await printing

    async def _print_lines(self, lines: asyncio.StreamReader) -> None:
        last = 0.0
        async for line in lines:
            if (text := line.decode(errors="replace").strip()) and time.monotonic() - last > 1:
                self._progress(text)
                last = time.monotonic()

    def _other_build(self, *names: str) -> contextlib.AbstractAsyncContextManager[OtherBuild]:
        """Start the other checkout's driver with these targets."""
        assert self._compare is not None
        directory = self._directory / "old"
        directory.mkdir(exist_ok=True)
        return other_build(
            self._compare, directory, self._plan.accel, names,
            lambda text: self._progress(f"old build: {text}"),
        )  # fmt: skip


class _Driven(NamedTuple):
    """A target with the loads that it is measured under."""

    sample: Callable[[str], Awaitable[Sample]]
    loads: tuple[str, ...]


def _local(target: Target, *loads: str, times: float = 1.0) -> _Driven:
    async def measure(load: str) -> Sample:
        return await sample(target, **scaled(load, times))

    return _Driven(measure, loads)


def _in_session(client: Client) -> Start:
    requests = rig.puts(KEYS)
    return lambda: asyncio.ensure_future(client.ask(next(requests)))


def _http_puts() -> Iterator[bytes]:
    return rig.puts(KEYS, [("host", "bench")])


def _members(cluster: etcd.EtcdCluster) -> dict[str, list[int]]:
    return {"members": cluster.pids}


def _etcd_writers(cluster: etcd.EtcdCluster) -> dict[str, etcd.EtcdWriters]:
    keys = [f"key-{number:05d}".encode() for number in range(KEYS)]
    return {
        name: etcd.EtcdWriters.open(cluster.leader, connections, keys, rig.BODY)
        for name, connections in (("etcd", 1), ("etcd, 64 connections", IN_FLIGHT))
    }


def _missions(results: Path) -> list[float]:
    """Return when each mission of a campaign began; it may be running, or not have begun."""
    if not (results / DATABASE).exists():
        return []
    with Store.open(results, write=False) as store:
        return sorted(store.latest(0.0, store.total))


def _commit(root: Path) -> str:
    """Return the commit of a checkout, or the name of its directory."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return root.resolve().name
    return done.stdout.strip()
