"""Missions of signed requests over a real voter and replicas that are processes: C1 and C2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faultinject.campaign.assessment import classify
from faultinject.campaign.mission.host_function import HostFunction
from faultinject.campaign.mission.mission import Mission, VotedTarget, workload
from faultinject.campaign.records import MissionPlan, NodeSpec
from faultinject.faults import Injection
from faultinject.faults.injection import inject
from faultinject.history.oracle import SequentialOracle
from faultinject.history.workload import KEY, WorkloadCall
from faultinject.results.outcome import Outcome
from faultinject.services import FRAIL
from guests.function import Authentication
from guests.protocol.function import REFUSAL
from guests.protocol.message import Request
from tests.faultinject.faults.test_functions import FunctionSite
from tests.voter.node import EXEC_KV, Node, configure, running

__all__: list[str] = []


def planned(*hits: Injection, seed: int = 3, length: int = 20) -> MissionPlan:
    return MissionPlan(
        index=0, order=0, stratum="t", design="voted", repair=False, k=0, voter_hit=False,
        seed=seed, length=length, injections=hits,
    )  # fmt: skip


def admitted(calls: list[WorkloadCall]) -> list[bool]:
    f = Authentication(KEY)
    return [f.admits(Request.decode(call.request)) for call in calls]


@pytest.mark.parametrize("service", ["kv", "static"])
def test_workload_has_signed_requests_and_one_unsigned(service: str) -> None:
    spec = NodeSpec(service=service, function="host")
    for seed in range(40):
        admits = admitted(workload(planned(seed=seed), spec))
        assert len(admits) == 21
        assert (admits[-2], admits[-1]) == (True, False)
        plain = workload(planned(seed=seed), NodeSpec(service=service))
        assert len(plain) == 20 and not any(admitted(plain))


def test_oracle_rejects_unsigned_requests() -> None:
    spec = NodeSpec(function="guest")
    calls = workload(planned(), spec)
    oracle = SequentialOracle("kv", KEY)
    for call, good in zip(calls, admitted(calls), strict=True):
        assert oracle.accepts(call.request, REFUSAL, read_only=call.read_only) == (not good)


@asynccontextmanager
async def host(scratch: Path) -> AsyncIterator[tuple[Node, FunctionSite]]:
    """C2: replicas without f, and F."""
    function = HostFunction(scratch / "f")
    try:
        await function.renew()
        more = f'function = "{function.address}"\n[timing]\nfunction = 2.0\n'
        async with running(configure([EXEC_KV] * 2, more, vote="1/2"), scratch) as node:
            await node.until_status("ready")
            yield node, FunctionSite(scratch, function)
    finally:
        await function.end()


async def run(node: Node, site: FunctionSite | None, kind: str = "") -> Outcome:
    hits = (Injection(target="function", kind=kind, at=7, seed=1),) if kind else ()
    spec = NodeSpec(function="host" if site else "guest", deadline=10.0)

    async def inject_hit(hit: Injection) -> float:
        assert site is not None
        await inject(hit, site)
        return 0.0

    async with await node.client() as client:
        trace = await Mission(planned(*hits), spec, VotedTarget(client)).run(inject_hit)
    return classify(trace.requests, voter_alive=True).outcome


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("", Outcome.CORRECT),
        ("host-function-kill", Outcome.DETECTED),
        ("host-function-hang", Outcome.DETECTED),
        ("host-function-admit", Outcome.SILENT),
        ("host-function-refuse", Outcome.SILENT),
    ],
)
async def test_mission_outcome_when_f_on_the_host_is_hit(
    scratch: Path, kind: str, outcome: Outcome
) -> None:
    async with host(scratch) as (node, site):
        assert await run(node, site, kind) is outcome


async def test_mission_is_correct_with_f_in_each_guest(scratch: Path) -> None:
    key = scratch / "key"
    key.write_text(KEY.hex())
    inside = f"{EXEC_KV} --function {FRAIL} --key {key}"
    async with running(configure([inside] * 3), scratch) as node:
        await node.until_status("ready")
        assert await run(node, None) is Outcome.CORRECT


async def test_mission_is_silent_when_guests_have_no_f(scratch: Path) -> None:
    async with running(configure([EXEC_KV] * 3), scratch) as node:
        await node.until_status("ready")
        assert await run(node, None) is Outcome.SILENT
