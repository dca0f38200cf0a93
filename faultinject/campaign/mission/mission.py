"""The requests of one mission, with faults between them, and the check of every reply.

``Mission.run`` makes the requests one after another.  Before request ``hit.at`` it applies the
fault.  A ``Target`` answers: the voter, or (NV) one guest.  The ``SequentialOracle`` knows which
replies are right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import NamedTuple, Protocol

from faultinject.campaign.assessment import NO_RESULT
from faultinject.campaign.mission.direct import DirectLink, LinkBroken
from faultinject.campaign.planning.spec import is_file
from faultinject.campaign.records import MissionPlan, NodeSpec, RequestResult
from faultinject.faults import Injection
from faultinject.history.oracle import SequentialOracle
from faultinject.history.workload import (
    KEY,
    WorkloadCall,
    mixed_calls,
    own_calls,
    signed_calls,
    static_calls,
)
from guests.check.run import own_requests
from guests.function import sign
from guests.protocol.message import Reply, encode_request
from guests.service import load
from voter.client import READ_ONLY_METHODS, Client
from voter.client.errors import NotExecuted, RequestError

__all__ = ["DirectTarget", "MissionTrace", "Mission", "Response", "Target", "VotedTarget"]

CALLER = b"mission"
KEPT_REPLY, KEPT_STATUS = 120, 16
"""First bytes that are kept of a wrong reply: of the first MOST_KEPT of a mission, and of others.
This bounds a row to a few kilobytes, and every status line is kept."""
MOST_KEPT = 20
KEPT_LINE = 80
"""Letters of a request line in a message."""
REST = 1.0
"""Seconds for all requests after one without a verdict: the mission has failed already."""
ORACLES = {"poisoned": "kv"}
"""Services with a planted bug, and the services that they are without it."""

Inject = Callable[[Injection], Awaitable[float]]
"""Applies a fault; returns the seconds that it took."""


class Response(NamedTuple):
    """A reply: the service's bytes, and whether a replica dissented (``masked``)."""

    data: bytes
    masked: bool = False


class Target(Protocol):
    """Answers requests.  Raises RequestError, LinkBroken."""

    async def ask(self, call: WorkloadCall) -> Response:
        """Make one request and wait for its reply without a time limit."""


class VotedTarget:
    """The voter.  With ``patience`` (seconds), a request is retried after a voter's death."""

    def __init__(self, client: Client, patience: float | None = None) -> None:
        self._client = client
        self._patience = patience

    async def ask(self, call: WorkloadCall) -> Response:
        """Make one request through the vote."""
        if self._patience is None:
            vote, data = await self._client.start(call.request, read_only=call.read_only)
        else:
            vote, data = await self._client.ask(
                call.request, read_only=call.read_only, timeout=self._patience
            )
        return Response(data, bool(vote.dissent))


class DirectTarget:
    """One guest's agent."""

    def __init__(self, link: DirectLink) -> None:
        self._link = link

    async def ask(self, call: WorkloadCall) -> Response:
        """Make one request past the voter."""
        return Response(
            await self._link.start(call.request, caller=CALLER, read_only=call.read_only)
        )


class MissionTrace(NamedTuple):
    """The result of each request, in order, and its latency (seconds, -1: no reply).

    ``inject``, ``workload``: seconds that the faults and the requests took.
    """

    requests: list[RequestResult]
    latencies: list[float]
    inject: float
    workload: float


def workload(plan: MissionPlan, spec: NodeSpec) -> list[WorkloadCall]:
    """Return the mission's requests; if requests must be signed, also one without a signature."""
    if spec.service == "static":
        calls = list(islice(static_calls(plan.seed, mix=spec.mix), plan.length))
    elif is_file(spec.service) and (requests := own_requests(load(spec.service))):
        calls = list(islice(own_calls(plan.seed, requests), plan.length))
    else:
        mixed = mixed_calls(plan.seed, keys=spec.keys, size=spec.size, mix=spec.mix)
        calls = list(islice(mixed, plan.length))
    return calls if spec.function == "none" else signed_calls(calls, plan.seed)


class Mission:
    """A mission that runs.  A fault may ``send`` a request of its own."""

    def __init__(self, plan: MissionPlan, spec: NodeSpec, target: Target) -> None:
        self._plan = plan
        self._spec = spec
        self._target = target
        key = b"" if spec.function == "none" else KEY
        self._oracle = SequentialOracle(ORACLES.get(spec.service, spec.service), key)
        self._late = False  # a request had no verdict
        self._requests: list[RequestResult] = []
        self._wrong = 0  # wrong replies
        self._explained: set[str] = set()  # codes whose first request has its message
        self._latencies: list[float] = []

    async def run(self, inject_fault: Inject) -> MissionTrace:
        """Make all requests, each within ``spec.deadline`` seconds, and apply the faults.

        After a request that failed the others are still made, because a wrong reply may follow.
        After a request without a verdict the remaining faults are applied, and the remaining
        requests are made at once: else a lost mission would take too long.
        """
        inject, began = 0.0, time.perf_counter()
        hits = sorted(self._plan.injections, key=lambda hit: hit.at)
        calls = workload(self._plan, self._spec)
        for at, call in enumerate(calls):
            while hits and (hits[0].at <= at or self._late):
                inject += await inject_fault(hits.pop(0))
            if self._late:
                await self._make_rest(calls[at:])
                break
            await self._make(call)
        taken = time.perf_counter() - began
        return MissionTrace(self._requests, self._latencies, inject, taken - inject)

    async def _make_rest(self, calls: list[WorkloadCall]) -> None:
        """Make these requests at once; together they have ``REST`` seconds."""
        asks = [asyncio.ensure_future(self._target.ask(call)) for call in calls]
        began = time.perf_counter()
        await asyncio.wait(asks, timeout=REST)
        for call, ask in zip(calls, asks, strict=True):
            if ask.cancel():
                self._failed(call, NO_RESULT, f"after {REST:g} s, with all the rest")
            else:
                self._check(call, ask, began)
        await asyncio.gather(*asks, return_exceptions=True)

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """Make a request outside the workload; return status (0: no reply) and body."""
        if self._spec.function != "none":
            headers = (*headers, sign(KEY, method, target, body))
        request = encode_request(method, target, headers, body)
        data = await self._make(WorkloadCall("sent", request, method in READ_ONLY_METHODS))
        if data is None:
            return 0, b""
        try:
            reply = Reply.decode(data)
        except ValueError:
            return 0, data
        return reply.status, reply.body

    async def _make(self, call: WorkloadCall) -> bytes | None:
        """Make one request and check its reply; return the reply, or None without one."""
        began = time.perf_counter()
        ask = asyncio.ensure_future(self._target.ask(call))
        try:
            await asyncio.wait([ask], timeout=self._spec.deadline)
        finally:
            unanswered = ask.cancel()
        if unanswered:
            await asyncio.gather(ask, return_exceptions=True)
            self._failed(call, NO_RESULT, f"after {self._spec.deadline:g} s")
            self._late = True
            return None
        return self._check(call, ask, began)

    def _check(
        self, call: WorkloadCall, ask: asyncio.Future[Response], began: float
    ) -> bytes | None:
        """Record the result of a request that has ended; return the reply, or None."""
        try:
            reply = ask.result()
        except (RequestError, LinkBroken) as error:
            self._failed(call, error.code, str(error), executed=not isinstance(error, NotExecuted))
            return None
        self._latencies.append(time.perf_counter() - began)
        if self._oracle.accepts(call.request, reply.data, read_only=call.read_only):
            self._record("right", masked=reply.masked)
        else:
            self._wrong += 1
            kept = KEPT_REPLY if self._wrong <= MOST_KEPT else KEPT_STATUS
            self._requests.append(
                RequestResult(
                    code="wrong", masked=reply.masked, problem=_line(call),
                    reply=reply.data[:kept].decode("latin-1"),
                )
            )  # fmt: skip
        return reply.data

    def _failed(self, call: WorkloadCall, code: str, why: str, *, executed: bool = True) -> None:
        if executed:
            self._oracle.unknown(call.request, read_only=call.read_only)
        self._record(code, f"{_line(call)}: {code}: {why}")
        self._latencies.append(-1.0)

    def _record(self, code: str, problem: str = "", *, masked: bool = False) -> None:
        known = code in self._explained
        self._explained.add(code)
        self._requests.append(
            RequestResult(code=code, masked=masked, problem="" if known else problem)
        )


def _line(call: WorkloadCall) -> str:
    return call.request.partition(b"\r\n")[0].decode("latin-1")[:KEPT_LINE]
