"""``trivisor soak``, all of it: a node, its clients, the faults, the promises, nothing left."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Protocol

import msgspec

from deploy.commands.launch import follow_start, prepare_node
from deploy.node.records import Layout, NodeRecord, Settings
from faultinject.history.oracle import OrderOracle
from faultinject.load import percentile
from faultinject.soak.checkpoints import CheckpointAudit
from faultinject.soak.ending import leftovers, take_down
from faultinject.soak.episodes import Conductor, NeverWhole
from faultinject.soak.falls import find_falls
from faultinject.soak.load import PATIENCE, Load
from faultinject.soak.places import SequenceGaps
from faultinject.soak.plan import GUESTS, Episode, make_plan
from faultinject.soak.record import (
    InjectedFault,
    LoadSummary,
    Promise,
    RoundRecord,
    SoakRecord,
    SoakSpec,
    UnexplainedFailure,
    append_round,
    host_facts,
    summarize,
)
from faultinject.soak.rounds import RoundConductor
from faultinject.soak.together import RoundPlan, make_rounds
from faultinject.soak.verdict import judge_rounds, summarize_rounds
from faultinject.soak.view import NodeView, View

__all__ = ["SoakObserver", "soak_node"]

MARKERS = 2
"""Markers to be passed at the end: the second one comes only once every replica has told its digest
at the first."""
MARKER_BATCH = 600
MARKER_BATCHES = 20
"""Writes to get there: a marker comes every 1,000 requests (voter.core.limits)."""
MARKER_IN_FLIGHT = 16
BOOT_DEADLINE = 180.0
"""Seconds: a busy host is no fault that is looked for here."""
SHARE = 0.25
"""The least part of the faults that is to come while a repair or a transfer is under way."""


class SoakObserver(Protocol):
    """Is told how the run goes on."""

    def step(self, text: str) -> None:
        """Something that takes time begins, or has ended."""

    def fault(self, fault: InjectedFault, load: Load) -> None:
        """A fault is over."""

    def round(self, one: RoundRecord, load: Load) -> None:
        """Report a round that is over."""


class _Run:
    """One run on a node that is up."""

    def __init__(
        self, spec: SoakSpec, layout: Layout, teller: SoakObserver, keep: Path | None
    ) -> None:
        self.spec = spec
        self.plan: tuple[Episode, ...] = ()
        self.round_plan: tuple[RoundPlan, ...] = ()
        self.rounds: list[RoundRecord] = []
        self.audit: CheckpointAudit | None = None
        self._places: SequenceGaps | None = None
        oracle: OrderOracle | None = None
        if spec.together:
            self.round_plan = make_rounds(spec.seed, spec.faults)
            self.audit = CheckpointAudit(layout.journal)
            self._places = SequenceGaps(time.time)
            oracle = OrderOracle(released=self._places.add, executed=self.audit.replay.execute)
        else:
            self.plan = make_plan(spec.seed, spec.faults)
        self._keep = keep
        self.node = NodeView(layout)
        self.load = Load(
            f"unix:{layout.native_socket}",
            seed=spec.seed,
            clients=spec.clients,
            rate=spec.rate,
            state=spec.state,
            oracle=oracle,
        )
        self.faults: list[InjectedFault] = []
        self.promises: list[Promise] = []
        self.waits: list[str] = []
        self.loaded = 0.0
        self.began = self.ended = 0.0  # of the load, and of all; seconds since 1970
        self.falls: list[UnexplainedFailure] = []
        self._teller = teller

    async def go(self) -> None:
        """Everything between up and down."""
        async with self.node:
            await self._go()

    async def _go(self) -> None:
        load = self.load
        self._teller.step(f"{self.spec.clients} clients begin")
        await load.start()
        began, self.began = time.monotonic(), time.time()
        conductor = self._conductor()
        broken = ""
        try:
            if isinstance(conductor, RoundConductor):
                await self._run_rounds(conductor)
            else:
                await self._run_episodes(conductor)
            await conductor.whole([], "at the end")
        except NeverWhole as error:
            broken = str(error)
            self.faults += conductor.unhealed
            self._teller.step(broken)
        except BaseException:
            await load.abandon()
            raise
        self.loaded = time.monotonic() - began
        self._teller.step("the clients end, and all is read back")
        await load.stop()
        # Every round ended with markers of its own.
        holes = self.rounds[-1].markers if self.rounds and not broken else 0
        for _ in range(0 if self.round_plan else MARKER_BATCHES):
            holes += await load.pass_markers(MARKER_BATCH, MARKER_IN_FLIGHT)
            if holes >= MARKERS:
                break
        await load.finish()
        try:
            await conductor.whole([], "at the end")
        except NeverWhole as error:
            broken = broken or str(error)
        if isinstance(conductor, RoundConductor):
            conductor.look_at_journal()
        self.ended = time.time()
        view = await self.node.look()
        self.waits = conductor.waits
        self._judge(view, holes, broken, conductor.failed)

    def _conductor(self) -> Conductor:
        if self.audit is None or self._places is None:
            return Conductor(self.node, self.load, self._teller.step)
        return RoundConductor(
            self.node,
            self.load,
            self._teller.step,
            places=self._places,
            audit=self.audit,
            seed=self.spec.seed,
            state=self.spec.state,
        )

    async def _run_episodes(self, conductor: Conductor) -> None:
        for episode in self.plan:
            for fault in await conductor.run(episode):
                self.faults.append(fault)
                self._teller.fault(fault, self.load)

    async def _run_rounds(self, conductor: RoundConductor) -> None:
        """Run the rounds; each is stored as it ends, so that an interrupted run leaves them."""
        auditing = asyncio.create_task(conductor.keep_auditing(), name="audit")
        self.rounds = conductor.rounds
        try:
            async with conductor.held:
                for plan in self.round_plan:
                    if auditing.done():
                        auditing.result()
                    faults = await conductor.run_round(plan)
                    self.faults += faults
                    if faults:
                        one = conductor.rounds[-1]
                        if self._keep is not None:
                            append_round(one, self._keep / f"rounds-{self.spec.seed}.jsonl")
                        self._teller.round(one, self.load)
        finally:
            auditing.cancel()
            await asyncio.gather(auditing, return_exceptions=True)

    # -------------------------------------------------------------- judging

    def _promise(self, promise: str, held: bool, seen: str, *complaints: str) -> None:
        words = "; ".join([seen, *complaints[:3]])
        self.promises.append(Promise(promise=promise, held=held, seen=words))

    def _judge(self, view: View, holes: int, broken: str, failed: list[str]) -> None:
        oracle, evidence, load = self.load.oracle, self.load.evidence, self.load
        told = evidence.complaints
        self._promise(
            "no acknowledged write lost",
            not evidence.lost and not oracle.wrong,
            f"{evidence.increments} increments told, {evidence.lost} lost; every key read back",
            *told,
        )
        self._promise(
            "none applied twice",
            not evidence.twice and not oracle.wrong,
            f"{evidence.twice} twice; {load.again} replies were told again to a client that had "
            f"not got them",
            *told,
        )
        self._promise(
            "no wrong reply",
            not oracle.wrong and oracle.correct > 0,
            f"{oracle.correct} correct byte for byte in the voter's order, {oracle.wrong} wrong; "
            f"{oracle.unknown} writes of unknown outcome, {oracle.found} proved executed",
            *oracle.complaints,
        )
        self._promise(
            "the order is one, and that of real time",
            not oracle.misplaced and not evidence.back,
            f"{oracle.misplaced} at a wrong place, {evidence.back} reads that went back",
            *oracle.complaints,
        )
        longest = max(load.latencies, default=0.0)
        self._promise(
            "every request answered",
            not load.errors and len(load.latencies) > 0,
            f"{len(load.latencies)} of {load.requests}, the longest wait {longest:.2f} s "
            f"(given up after {PATIENCE:g} s)",
            *load.told,
        )
        self._judge_faults(failed)
        states = ", ".join(f"{name} {guest}" for name, guest in view.guests.items())
        self._promise(
            "three replicas vote at the end",
            view.whole and len(view.guests) == len(GUESTS) and not broken,
            states,
            *filter(None, [broken]),
        )
        self._promise(
            "their digests are equal",
            view.whole and holes >= MARKERS,
            f"{holes} markers after the last fault, each told by all that vote before the next "
            "one came; nobody was expelled",
        )

    def _judge_faults(self, failed: list[str]) -> None:
        """Judge what was applied: of episodes, or of rounds of two faults each."""
        applied = len(self.faults)
        planned = self.spec.faults * (2 if self.round_plan else 1)
        self._promise(
            "every fault applied, and proved applied",
            applied == planned and not failed,
            f"{applied} of {planned}",
            *failed,
        )
        if self.audit is not None:
            audit = self.audit
            self.promises += judge_rounds(
                self.rounds,
                compared=audit.compared,
                wrong=audit.wrong,
                complaints=audit.complaints,
            )
            return
        overlapped = sum(fault.overlapped for fault in self.faults)
        self._promise(
            "a quarter of them during a repair or a transfer",
            overlapped >= SHARE * self.spec.faults,
            f"{overlapped} of {applied}",
        )

    def read_log(self, path: Path) -> None:
        """See which replicas left the vote without a fault."""
        lines = path.read_text(errors="replace").splitlines()
        self.falls = find_falls(lines, self.faults, began=self.began, ended=self.ended)

    def record(self, began: float, host: NodeRecord, load_before: float) -> SoakRecord:
        """Return the record of the run, so far as it came."""
        load, audit = self.load, self.audit
        latencies = list(load.latencies)
        summary = None
        if audit is not None:
            summary = summarize_rounds(self.rounds, compared=audit.compared, wrong=audit.wrong)
        return SoakRecord(
            spec=self.spec,
            seconds=round(time.monotonic() - began, 1),
            host=host_facts(host.accel, host.image, load_before),
            promises=self.promises,
            load=LoadSummary(
                requests=load.requests,
                replies=len(latencies),
                kinds=dict(load.kinds),
                correct=load.oracle.correct,
                wrong=load.oracle.wrong,
                misplaced=load.oracle.misplaced,
                increments=load.evidence.increments,
                told_again=load.again,
                errors=dict(load.errors),
                told=load.told,
                unknown=load.oracle.unknown,
                unknown_found=load.oracle.found,
                p50=percentile(latencies, 0.5) if latencies else 0.0,
                p99=percentile(latencies, 0.99) if latencies else 0.0,
                longest=max(latencies, default=0.0),
                rate=len(latencies) / self.loaded if self.loaded else 0.0,
            ),
            kinds=summarize(self.faults),
            faults=self.faults,
            falls=self.falls,
            waits=self.waits,
            plan=self.plan,
            rounds=self.rounds,
            summary=summary,
            round_plan=self.round_plan,
        )


def soak_node(spec: SoakSpec, teller: SoakObserver, keep: Path | None = None) -> SoakRecord:
    """Run all of it on a node of its own, and leave nothing behind, whatever happens.

    The node's logs are kept in ``keep`` if it is given.  Raises what ``trivisor up`` raises.
    """
    began, load_before = time.monotonic(), os.getloadavg()[0]
    directory = Path(tempfile.mkdtemp(prefix="tv-soak-"))
    layout = Layout(directory / "node")
    settings = msgspec.convert(
        {
            "accel": spec.accel,
            "http": "127.0.0.1:0",
            "allow_faults": True,
            "durability": spec.durability,
            "boot_deadline": BOOT_DEADLINE,
        },
        Settings,
    )
    try:
        node = prepare_node(layout, settings, teller.step)
        try:
            follow_start(layout, teller.step)
            run = _Run(spec, layout, teller, keep)
            asyncio.run(run.go())
        finally:
            teller.step("the node is taken down")
            take_down(layout)
            if keep is not None:
                _keep_logs(layout, keep)
        run.read_log(layout.voter_log)
        left = leftovers(layout)
        run.promises.append(
            Promise(
                promise="nothing is left running",
                held=not left,
                seen="; ".join(left) or "no process, no socket",
            )
        )
        return run.record(began, node, load_before)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _keep_logs(layout: Layout, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for path in layout.directory.glob("*.log*"):
        shutil.copy(path, keep / path.name)
