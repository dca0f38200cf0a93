"""Runs missions on a node fixture: a clean start, requests with faults between them, observations.

One mission, from start to end (``MissionRunner.run``):

1. Revert the guests that the last mission hit.  Fork a new voter and wait until all guests vote
   (plain design: connect to one guest's agent).  On failure all guests are reverted, and the clean
   start is tried again.
2. Make the requests one by one (``mission.Mission``).  Before request ``hit.at`` apply the fault
   (``mission_faults.FaultInjections``).  With repair, revert guests that left the vote.
3. Observe: were the faults met, what is the state of the guests, does the voter answer?
4. Undo the faults, end the voter, and mark the guests that are no longer clean.

The row holds observations, and which guests failed (see ``records``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from deploy.errors import DeployError
from faultinject.campaign.assessment import classify
from faultinject.campaign.mission.direct import DirectLink, LinkBroken
from faultinject.campaign.mission.mission import DirectTarget, Mission, MissionTrace, VotedTarget
from faultinject.campaign.mission.mission_faults import FaultInjections, Repairs
from faultinject.campaign.mission.node_fixture import NodeFixture
from faultinject.campaign.mission.voters import MissionVoter, VoterGone
from faultinject.campaign.records import (
    GuestResult,
    InjectionResult,
    MissionPlan,
    MissionRow,
    NodeSpec,
    Timings,
)
from faultinject.faults import CATALOGUE
from faultinject.results.outcome import NodeFacts
from voter.address import parse_address
from voter.client import Client
from voter.client.errors import RequestError

__all__ = ["MissionRunner", "NodeLost"]

CLEAN_START = 30.0
"""Seconds for all guests to vote at a clean start, or as many as a request may take, if that is
more.  Generous, because a busy host is no fault."""
LAG_POLL = 0.005
"""Seconds between polls for a guest's late answer: the voter does not notify."""
ATTEMPTS = 3
"""Clean starts that are tried for a mission before the node counts as lost."""

_log = structlog.get_logger(__name__)


class NodeLost(Exception):
    """The node cannot be brought to a clean start any more."""


class _NotClean(Exception):
    """One attempt at a clean start failed."""


class _Observations(NamedTuple):
    """What one mission showed."""

    trace: MissionTrace
    injections: tuple[InjectionResult, ...]
    guests: tuple[GuestResult, ...]
    voter_alive: bool
    reset: float
    settle: float


class MissionRunner:
    """Runs missions on its own node, one at a time.  Use ``open``."""

    def __init__(self, node: NodeFixture) -> None:
        self._node = node

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, spec: NodeSpec, directory: Path, progress: Callable[[str], None] = lambda _: None
    ) -> AsyncIterator[MissionRunner]:
        """Open the node (see ``NodeFixture.open``), and close it afterwards."""
        async with NodeFixture.open(spec, directory, progress) as node:
            yield cls(node)

    @property
    def facts(self) -> NodeFacts:
        """Return the facts of the host and the node."""
        return self._node.facts

    async def run(self, plan: MissionPlan) -> MissionRow:
        """Run one mission from a clean start; return its observations.

        Raises NodeLost if there is no clean start any more.
        """
        began, problem = time.time(), ""
        run = self._run_plain if plan.design == "nv" else self._run_voted
        for _ in range(ATTEMPTS):
            start = time.perf_counter()
            try:
                await self._node.revert_guests()
                seen = await run(plan, start)
                self._node.begin_reverts()
                return _row(plan, began, seen)
            except (_NotClean, DeployError) as error:
                problem = str(error)
                _log.warning(
                    "no clean start", mission=plan.index, error=problem, error_code="TV0535"
                )
                self._node.mark_dirty(self._node.names)
                await self._node.end_voter()
        raise NodeLost(f"no clean start for mission {plan.index} in {ATTEMPTS} attempts: {problem}")

    # ------------------------------------------------------------ the voted design

    async def _run_voted(self, plan: MissionPlan, start: float) -> _Observations:
        node = self._node
        injections = FaultInjections(node, plan)
        try:
            voter, client, first = await self._start_voted(plan)
            repairs = None
            if plan.repair:
                voter.keep()
                repairs = injections.repairs = Repairs(voter, node.machine)
            target = VotedTarget(client, node.spec.deadline if plan.repair else None)
            reset = time.perf_counter() - start
            try:
                trace = await self._make_requests(plan, target, injections)
            finally:
                if repairs is not None:
                    await repairs.end()
                await client.close()
            settling = time.perf_counter()
            results = await injections.results()
            guests, alive = await self._observe_guests(voter, first, results)
        finally:
            await injections.undo()
            await node.end_voter()
        self._mark_dirty(plan, guests)
        return _Observations(trace, results, guests, alive, reset, time.perf_counter() - settling)

    async def _start_voted(
        self, plan: MissionPlan
    ) -> tuple[MissionVoter, Client, Mapping[str, int]]:
        """Return the voter with all guests voting, its client, and the guests' incarnations."""
        node = self._node
        proxied = {hit.target for hit in plan.injections if "proxy" in CATALOGUE[hit.kind].needs}
        try:
            voter = await node.start_voter(
                plan.vote or node.spec.vote, proxied=proxied, journal=plan.repair
            )
            if node.function is not None:
                node.function.dirty = plan.host_function_hit  # however the mission ends
            status = await voter.all_vote(max(CLEAN_START, node.spec.deadline))
            client = await Client.connect(node.client_address, retry=plan.repair)
        except (OSError, TimeoutError, VoterGone, RequestError) as error:
            raise _NotClean(str(error)) from error
        return voter, client, {each["name"]: each["incarnation"] for each in status["replicas"]}

    async def _observe_guests(
        self, voter: MissionVoter, first: Mapping[str, int], results: Sequence[InjectionResult]
    ) -> tuple[tuple[GuestResult, ...], bool]:
        """Return the guests' states as the voter reports them, and whether it answers.

        A guest that still owes a reply, and need not fail, gets the time after which the voter
        takes it for hanging.
        """
        must_fail = {each.target for each in results if each.applied and CATALOGUE[each.kind].fails}
        end = time.monotonic() + self._node.spec.hang
        try:
            if not voter.alive:
                raise VoterGone("its process has ended")
            status = await voter.status()
            while time.monotonic() < end and any(
                each["lag"] and each["state"] == "active" and each["name"] not in must_fail
                for each in status["replicas"]
            ):
                await asyncio.sleep(LAG_POLL)
                status = await voter.status()
        except VoterGone:
            unknown = (
                GuestResult(name=name, state="unknown", reason="the voter is lost")
                for name in first
            )
            return tuple(unknown), False
        return tuple(
            GuestResult(
                name=each["name"],
                state=each["state"],
                reason=each["reason"],
                dissents=each["dissents"],
                failed=each["name"] in must_fail
                or each["state"] != "active"
                or bool(each["dissents"] or each["incarnations_ended"] or each["lag"])
                or each["incarnation"] != first[each["name"]],
            )
            for each in status["replicas"]
        ), True

    # ------------------------------------------------------------ the plain design

    async def _run_plain(self, plan: MissionPlan, start: float) -> _Observations:
        node = self._node
        name = next(
            (hit.target for hit in plan.injections if hit.target in node.names), node.names[0]
        )
        proxied = any("proxy" in CATALOGUE[hit.kind].needs for hit in plan.injections)
        address = parse_address(node.link_address(name, proxied=proxied))
        injections = FaultInjections(node, plan)
        try:
            try:
                link = await DirectLink.open(address, plan.seed or 1, patience=CLEAN_START)
            except (OSError, TimeoutError, LinkBroken) as error:
                raise _NotClean(f"{name} does not greet: {error!r}") from error
            reset = time.perf_counter() - start
            try:
                trace = await self._make_requests(plan, DirectTarget(link), injections)
            finally:
                link.close()
            settling = time.perf_counter()
            results = await injections.results()
        finally:
            await injections.undo()
        self._mark_dirty(plan, ())
        if classify(trace.requests, voter_alive=True).outcome.failed:
            node.mark_dirty({name})
        guests = (GuestResult(name=name, state="not watched", reason=""),)
        return _Observations(trace, results, guests, True, reset, time.perf_counter() - settling)

    # ------------------------------------------------------------ both designs

    async def _make_requests(
        self, plan: MissionPlan, target: VotedTarget | DirectTarget, injections: FaultInjections
    ) -> MissionTrace:
        mission = Mission(plan, self._node.spec, target)
        self._node.sender = mission.send
        try:
            return await mission.run(injections.inject)
        finally:
            self._node.sender = None

    def _mark_dirty(self, plan: MissionPlan, guests: Sequence[GuestResult]) -> None:
        """Mark the guests that are not as their clean snapshots are (services apart)."""
        names, on_links = self._node.names, set()
        for hit in plan.injections:
            if hit.target == "host":
                self._node.mark_dirty(names)
            elif hit.target in names and "proxy" in CATALOGUE[hit.kind].needs:
                on_links.add(hit.target)  # the guest itself is sound
            elif hit.target in names:
                self._node.mark_dirty({hit.target})
        self._node.mark_dirty({guest.name for guest in guests if guest.failed} - on_links)


def _row(plan: MissionPlan, began: float, seen: _Observations) -> MissionRow:
    trace = seen.trace
    return MissionRow(
        index=plan.index,
        requests=tuple(trace.requests),
        voter_alive=seen.voter_alive,
        injections=seen.injections,
        guests=seen.guests,
        latencies=tuple(round(each, 6) for each in trace.latencies),
        timings=Timings(
            reset=seen.reset, inject=trace.inject, workload=trace.workload, settle=seen.settle
        ),
        began=began,
    )
