"""A mission's requests against a target that the test decides."""

from __future__ import annotations

import asyncio

from faultinject.campaign.assessment import classify
from faultinject.campaign.mission.mission import (
    KEPT_REPLY,
    KEPT_STATUS,
    MOST_KEPT,
    Mission,
    MissionTrace,
    Response,
)
from faultinject.campaign.records import MissionPlan, NodeSpec
from faultinject.faults import Injection
from faultinject.history.workload import WorkloadCall
from faultinject.results.outcome import Outcome


class Replies:
    """A target that gives the same replies whatever it is asked, the last of them for ever."""

    def __init__(self, *replies: bytes) -> None:
        self._replies = list(replies)

    async def ask(self, call: WorkloadCall) -> Response:
        return Response(self._replies.pop(0) if len(self._replies) > 1 else self._replies[0])


def run(target: Replies, length: int) -> MissionTrace:
    plan = MissionPlan(
        index=0, order=0, stratum="nv1", design="nv", repair=False, k=1, voter_hit=False, seed=5,
        length=length,
    )  # fmt: skip

    async def nothing(_: Injection) -> float:
        return 0.0

    return asyncio.run(Mission(plan, NodeSpec(), target).run(nothing))


def test_every_wrong_reply_of_a_mission_is_kept_in_a_bounded_amount() -> None:
    wrong = b"HTTP/1.1 206 Partial Content\r\n\r\n" + bytes(range(256)) * 40
    trace = run(Replies(wrong), 3 * MOST_KEPT)
    kept = [request.reply.encode("latin-1") for request in trace.requests]
    assert kept == [wrong[:KEPT_REPLY]] * MOST_KEPT + [wrong[:KEPT_STATUS]] * (2 * MOST_KEPT)
    assert all(request.problem for request in trace.requests)
    summary = classify(trace.requests, voter_alive=True)
    assert (summary.wrong, summary.believed, summary.status) == (60, 60, 206)


def test_a_later_silent_corruption_is_seen_after_errors_that_declare_themselves() -> None:
    broken, lie = b"HTTP/1.1 500 Error\r\n\r\nbroken", b"HTTP/1.1 206 Partial Content\r\n\r\n"
    assert outcome(Replies(broken)) is Outcome.DECLARED
    assert outcome(Replies(*[broken] * 7, lie, broken)) is Outcome.SILENT


def outcome(target: Replies) -> Outcome:
    return classify(run(target, 20).requests, voter_alive=True).outcome
