"""One soak: boot a node, inject the planned faults under load, take the node down, and judge."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

import msgspec

from deploy.commands.control_client import NotUp, ask
from deploy.commands.launch import follow_start, prepare_node
from deploy.host.identity import wait_end
from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from deploy.host.search import command_line, other_pids
from deploy.node.configuration import make_machines
from deploy.node.orphans import end_orphans
from deploy.node.records import Layout, NodeRecord, Settings
from faultinject.history.oracle import OrderOracle
from faultinject.host_facts import describe_host
from faultinject.load import percentile
from faultinject.soak.checkpoints import CheckpointAudit
from faultinject.soak.episodes import EpisodeRunner
from faultinject.soak.load import Load
from faultinject.soak.markers import SequenceGaps
from faultinject.soak.plan import Episode, make_plan
from faultinject.soak.record import (
    InjectedFault,
    LoadSummary,
    Promise,
    RoundRecord,
    SoakHost,
    SoakRecord,
    SoakSpec,
    UnexplainedFailure,
    append_round,
    summarize,
)
from faultinject.soak.recovery import NotRecovered, Recovery
from faultinject.soak.round_plan import MARKERS, RoundPlan, make_rounds
from faultinject.soak.rounds import RoundRunner
from faultinject.soak.verdict import (
    judge_end,
    judge_faults,
    judge_replies,
    judge_rounds,
    summarize_rounds,
)
from faultinject.soak.view import NodeView
from faultinject.soak.voter_log import VoterLog, unexplained_failures
from voter.commands.terminal import CommandError

__all__ = ["SoakObserver", "soak_node"]

MARKER_BATCH, MARKER_BATCHES, MARKER_IN_FLIGHT = 600, 20, 16
"""Writes per batch, batches, and writes in progress to pass the markers at the end.  A marker comes
every 1,000 requests (voter.core.limits)."""
RETURN_PATIENCE = 20.0
"""Seconds for a supervisor that was killed to be back."""
DOWN_DEADLINE = 60.0
"""Seconds for the node to go down."""


class SoakObserver(Protocol):
    """The observer of a run, such as a progress display."""

    def step(self, text: str) -> None:
        """Observe that something that takes time begins or has ended."""

    def fault(self, fault: InjectedFault, load: Load) -> None:
        """Observe a fault from which the node has recovered."""

    def round(self, one: RoundRecord, load: Load) -> None:
        """Observe a round that is over."""


class _SoakRun:
    """One run on a node that is up."""

    def __init__(
        self, spec: SoakSpec, layout: Layout, observer: SoakObserver, keep: Path | None
    ) -> None:
        self._spec = spec
        self._observer = observer
        self._keep = keep
        self._audit: CheckpointAudit | None = None
        self._places = SequenceGaps(time.time)
        self._plan: tuple[Episode, ...] = ()
        self._round_plan: tuple[RoundPlan, ...] = ()
        oracle = None
        if spec.together:
            self._round_plan = make_rounds(spec.seed, spec.faults)
            self._audit = CheckpointAudit(layout.journal)
            oracle = OrderOracle(released=self._places.add, executed=self._audit.execute)
        else:
            self._plan = make_plan(spec.seed, spec.faults, rejuvenate=spec.rejuvenate)
        self._node = NodeView(layout)
        self._load = Load(
            f"unix:{layout.native_socket}",
            seed=spec.seed,
            clients=spec.clients,
            rate=spec.rate,
            state=spec.state,
            oracle=oracle,
        )
        self._recovery = Recovery(self._node, self._load, observer.step)
        self._rounds: list[RoundRecord] = []
        self._faults: list[InjectedFault] = []
        self.promises: list[Promise] = []
        self._load_seconds = 0.0
        self._began = self._ended = 0.0  # of the load, and of the run; seconds since 1970
        self._unexplained: list[UnexplainedFailure] = []

    async def main(self) -> None:
        """Run everything between boot and take-down, and judge it."""
        load, node = self._load, self._node
        async with node:
            self._observer.step(f"{self._spec.clients} clients begin")
            await load.start()
            began, self._began = time.monotonic(), time.time()
            runner = self._runner()
            failure = ""
            try:
                if isinstance(runner, RoundRunner):
                    await self._run_rounds(runner)
                else:
                    await self._run_episodes(runner)
                await self._recovery.complete([], "at the end")
            except NotRecovered as error:
                failure = str(error)
                self._faults += runner.unhealed
                self._observer.step(failure)
            except BaseException:
                await load.abandon()
                raise
            self._load_seconds = time.monotonic() - began
            self._observer.step("the clients end, and every key is read back")
            await load.stop()
            # Every round ended with markers of its own.
            markers = self._rounds[-1].markers if self._rounds and not failure else 0
            for _ in range(0 if self._round_plan else MARKER_BATCHES):
                markers += await load.pass_markers(MARKER_BATCH, MARKER_IN_FLIGHT)
                if markers >= MARKERS:
                    break
            await load.finish()
            try:
                await self._recovery.complete([], "at the end")
            except NotRecovered as error:
                failure = failure or str(error)
            if isinstance(runner, RoundRunner):
                runner.audit()
            self._ended = time.time()
            self._judge(runner.failed, judge_end(await node.poll(), markers, failure))

    def _runner(self) -> EpisodeRunner | RoundRunner:
        parts = self._node, self._load, self._recovery, self._observer.step
        if self._audit is None:
            return EpisodeRunner(*parts)
        return RoundRunner(
            *parts,
            places=self._places,
            audit=self._audit,
            seed=self._spec.seed,
            state=self._spec.state,
        )

    async def _run_episodes(self, runner: EpisodeRunner) -> None:
        for episode in self._plan:
            for fault in await runner.run(episode):
                self._faults.append(fault)
                self._observer.fault(fault, self._load)

    async def _run_rounds(self, runner: RoundRunner) -> None:
        """Run the rounds; store each as it ends, so that an interrupted run keeps it."""
        auditing = asyncio.create_task(runner.audit_forever(), name="audit")
        self._rounds = runner.rounds
        try:
            async with runner.clients:
                for plan in self._round_plan:
                    if auditing.done():
                        auditing.result()
                    faults = await runner.run(plan)
                    self._faults += faults
                    if faults:
                        one = runner.rounds[-1]
                        if self._keep is not None:
                            append_round(one, self._keep / f"rounds-{self._spec.seed}.jsonl")
                        self._observer.round(one, self._load)
        finally:
            auditing.cancel()
            await asyncio.gather(auditing, return_exceptions=True)

    def _judge(self, failed: list[str], end: list[Promise]) -> None:
        rounds = self._audit is not None
        planned = self._spec.faults * (2 if rounds else 1)
        self.promises += judge_replies(self._load)
        self.promises += judge_faults(self._faults, failed, planned=planned, overlap=not rounds)
        if self._audit is not None:
            self.promises += judge_rounds(self._rounds, self._audit)
        self.promises += end

    def read_log(self, path: Path) -> None:
        """Find replicas that left the vote without a fault."""
        events = VoterLog(path).read()
        self._unexplained = unexplained_failures(
            events, self._faults, began=self._began, ended=self._ended
        )

    def record(self, began: float, node: NodeRecord, load_before: float) -> SoakRecord:
        """Return the record of the run, which began at this time (monotonic seconds)."""
        load, audit = self._load, self._audit
        latencies = list(load.latencies)
        host = describe_host(accel=node.accel, load_before=load_before)
        return SoakRecord(
            spec=self._spec,
            seconds=round(time.monotonic() - began, 1),
            host=SoakHost(image=node.image, **msgspec.structs.asdict(host)),
            promises=self.promises,
            load=LoadSummary(
                requests=load.requests,
                replies=len(latencies),
                kinds=dict(load.kinds),
                correct=load.oracle.correct,
                wrong=load.oracle.wrong,
                misplaced=load.oracle.misplaced,
                increments=load.counters.increments,
                replayed=load.replayed,
                errors=dict(load.errors),
                messages=load.messages,
                unknown=load.oracle.unknown,
                unknown_found=load.oracle.found,
                p50=percentile(latencies, 0.5) if latencies else 0.0,
                p99=percentile(latencies, 0.99) if latencies else 0.0,
                longest=max(latencies, default=0.0),
                rate=len(latencies) / self._load_seconds if self._load_seconds else 0.0,
            ),
            kinds=summarize(self._faults),
            faults=self._faults,
            unexplained=self._unexplained,
            waits=self._recovery.waits,
            plan=self._plan,
            rounds=self._rounds,
            summary=None if audit is None else summarize_rounds(self._rounds, audit),
            round_plan=self._round_plan,
        )


def soak_node(spec: SoakSpec, observer: SoakObserver, keep: Path | None = None) -> SoakRecord:
    """Run a soak on a node of its own, which is taken down whatever happens.

    The node's logs are kept in ``keep`` if it is given.  Raises what ``trivisor up`` raises.
    """
    began, load_before = time.monotonic(), os.getloadavg()[0]
    sweep_abandoned(observer.step)
    settings = msgspec.convert(
        {
            "accel": spec.accel,
            "http": "127.0.0.1:0",
            "allow_faults": True,
            "durability": spec.durability,
        },
        Settings,
    )
    with ScratchDirectory("soak") as scratch:
        layout = Layout(scratch.path / "node")
        node = prepare_node(layout, settings, observer.step)
        try:
            follow_start(layout, observer.step)
            run = _SoakRun(spec, layout, observer, keep)
            asyncio.run(run.main())
        finally:
            try:
                observer.step("the node is taken down")
            finally:  # the terminal may be gone
                _take_down(layout)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                for path in layout.directory.glob("*.log*"):
                    shutil.copy(path, keep / path.name)
        run.read_log(layout.voter_log)
        left = _leftovers(layout)
        run.promises.append(
            Promise(
                promise="nothing is left running",
                held=not left,
                seen="; ".join(left) or "no process, no socket",
            )
        )
        return run.record(began, node, load_before)


def _take_down(layout: Layout) -> None:
    """Take the node down through its supervisor, or by its records if there is no supervisor.

    Raises DeployError, CommandError.
    """
    if not layout.known:
        return
    try:
        processes = ask(layout, "GET", "/status", patience=RETURN_PATIENCE)["supervisor"]
        ask(layout, "POST", "/down", timeout=DOWN_DEADLINE)
    except NotUp:
        end_orphans(layout, make_machines, lambda _: None)
        return
    for pid in (processes["pid"], processes["watchdog"]):
        if pid is not None and not wait_end(pid, DOWN_DEADLINE):
            raise CommandError(
                f"process {pid} is still there {DOWN_DEADLINE:g} s after `down`",
                error_code="TV0801",
            )


def _leftovers(layout: Layout) -> list[str]:
    """Describe the processes and sockets that are left of a node that is down."""
    found = [f"socket {path.name}" for path in layout.directory.rglob("*") if path.is_socket()]
    for pid in other_pids():
        line = " ".join(command_line(pid))
        if str(layout.directory) in line:
            found.append(f"process {pid}: {line[:80]!r}")
    return found
