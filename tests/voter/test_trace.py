"""Traces: what happened to one request, on a running voter, and errors for unknown ids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guests.protocol.wire import encode_replies
from tests.voter.conftest import Nodes
from tests.voter.http_client import HttpClient, Response
from tests.voter.node import Node
from tests.waiting import until
from voter.client.errors import ConnectionFailed, TimedOut
from voter.core import events as ev
from voter.core.dedup import DedupTable
from voter.core.entries import Record
from voter.core.limits import Limits
from voter.trace import FRAMES, NAMED, Tracer, UnknownRequest


async def trace(node: Node, name: str) -> Response:
    """Ask the control socket for a trace."""
    async with await HttpClient.open_unix(node.control_path) as client:
        return await client.ask("GET", f"/trace/{name}")


async def traced(node: Node, name: str) -> dict[str, Any]:
    """Return the trace of a request that must be known."""
    response = await trace(node, name)
    assert response.status == 200, response.body
    found: dict[str, Any] = response.json
    return found


def times(found: dict[str, Any], event: str) -> list[float]:
    """Return when something happened."""
    return [step["at"] for step in found["timeline"] if step["event"] == event]


def sequence_number(response: Response) -> str:
    """Return the sequence number in a response."""
    return response.headers["trivisor-vote"].rpartition("seq=")[2]


async def test_trace_follows_a_request_through_each_replica_and_back(nodes: Nodes) -> None:
    node = await nodes.make()
    response = await node.ask("PUT", "/kv/a", b"1", ("x-request-id", "checkout-17"))
    assert response.headers["x-request-id"] == "checkout-17"
    seq = sequence_number(response)
    await until(lambda: set(node.runner.trace(seq)["replicas"].values()) <= {"agrees", "late"})
    found = await traced(node, seq)
    assert found["seq"] == int(seq)
    assert found["ids"] == ["checkout-17"]
    assert found["outcome"] == "released"
    assert found["batch"] == {"first": int(seq), "requests": 1}
    (received,), (ordered,) = times(found, "received"), times(found, "ordered")
    (decided,), (released,) = times(found, "decided"), times(found, "released")
    assert 0 == received <= ordered <= decided <= released
    sent, answered = times(found, "sent"), times(found, "answered")
    assert len(sent) == len(answered) == 3
    assert all(ordered <= at for at in sent)
    assert sorted(answered)[1] <= decided
    assert await traced(node, "checkout-17") == found | {"time": pytest.approx(found["time"])}


def test_trace_of_a_write_states_when_it_was_journaled_and_synced() -> None:
    tracer = Tracer(["g1", "g2"], 2)
    records = [Record(seq, b"", b"", 0, b"", b"", False, False, None) for seq in (7, 8)]
    tracer.synced(0.5, 3)
    tracer.ordered(1.0, records, 0b11, 5)
    tracer.flushed(1.1, 1.2, 5, 0b01)  # the second replica's orders are held
    tracer.flushed(1.4, 1.5, 5, 0b11)
    replies = encode_replies([b"", b""])
    tracer.answered(1.7, ev.AnsweredAll(0, 0, 7, replies), decided=False)
    tracer.synced(1.8, 5)
    tracer.answered(1.9, ev.AnsweredAll(1, 0, 7, replies), decided=True)
    tracer.released(2.0, 0.9, [ev.Release(4, 7, b"", 2, ()), ev.Release(5, 8, b"", 2, ())])
    found = tracer.trace(8, 0, 3.0, 1000.0)
    assert found["time"] == pytest.approx(1000 - 2.1)
    steps = [(step["at"], step["event"], step.get("replica")) for step in found["timeline"]]
    assert steps == [
        (0.0, "received", None),
        (0.1, "ordered", None),
        (0.2, "journaled", None),
        (0.3, "sent", "g1"),
        (0.6, "sent", "g2"),
        (0.8, "answered", "g1"),
        (0.9, "synced", None),
        (1.0, "answered", "g2"),
        (1.0, "decided", None),
        (1.1, "released", None),
    ]


async def test_trace_names_the_dissenter_and_the_late_replica(nodes: Nodes) -> None:
    node = await nodes.make()
    node.agents[1].mode = "waits"
    node.agents[2].mode = "lies"
    asked = asyncio.ensure_future(node.ask("GET", "/kv/a"))
    await until(lambda: node.agents[2].orders > 0 and node.agents[0].orders > 0)
    node.agents[1].release_answers()
    seq = sequence_number(await asked)
    await until(lambda: node.state("g3") == "expelled")
    found = await traced(node, seq)
    assert found["replicas"]["g3"] == "dissents"
    assert [s["replica"] for s in found["timeline"] if s["event"] == "dissented"] == ["g3"]
    assert found["replicas"]["g1"] in ("agrees", "late")


def test_replica_that_dissented_late_and_agreed_after_its_repair_is_a_dissenter() -> None:
    tracer = Tracer(["g1", "g2"], 1)
    record = Record(1, b"", b"", 0, b"", b"", False, False, None)
    tracer.ordered(1.0, [record], 0b11, 0)
    tracer.answered(1.1, ev.Answered(0, 0, 1, b"a"), decided=True)
    tracer.released(1.1, 0.9, [ev.Release(1, 1, b"a", 1, ())])
    tracer.changed(1.2, ev.Changed(1, "active", "expelled", "dissent", 1))
    tracer.answered(1.2, ev.Answered(1, 0, 1, b"b"), decided=True)
    tracer.ordered(2.0, [record], 0b10, 0)
    tracer.answered(2.1, ev.Answered(1, 0, 1, b"a"), decided=True)
    found = tracer.trace(1, 0, 3.0, 3.0)
    last = [(s["event"], s.get("replica")) for s in found["timeline"]][-4:]
    assert last == [
        ("answered", "g2"), ("dissented", "g2"), ("sent-again", "g2"), ("answered", "g2"),
    ]  # fmt: skip
    assert found["replicas"] == {"g1": "agrees", "g2": "dissents"}


async def test_trace_shows_a_replica_that_left_without_an_answer(nodes: Nodes) -> None:
    node = await nodes.make()
    node.agents[2].mode = "cuts the link"
    seq = sequence_number(await node.ask("PUT", "/kv/a", b"1"))
    await until(lambda: node.agents[2].orders > 0)
    await until(lambda: node.runner.trace(seq)["replicas"]["g3"] in ("no-answer", "late"))
    found = await traced(node, seq)
    left = [step for step in found["timeline"] if step["event"] == "left"]
    assert [step["replica"] for step in left] == ["g3"]
    assert "link closed" in left[0]["reason"]


async def test_refused_request_is_found_by_its_id(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents[:2]:
        agent.stop()
    await node.until_status("refusing")
    response = await node.ask("GET", "/kv/a")
    assert response.status == 503
    found = await traced(node, response.headers["x-request-id"])
    assert (found["seq"], found["outcome"]) == (None, "failed")
    (failed,) = (step for step in found["timeline"] if step["event"] == "failed")
    assert failed["failure"] == "not-executed"
    assert "no majority" in failed["reason"]


async def test_request_that_timed_out_is_found_by_its_sequence_number(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nrequest = 0.3\n")
    for agent in node.agents[1:]:
        agent.mode = "waits"
    response = await node.ask("PUT", "/kv/a", b"1")
    assert response.problem == "timeout"
    found = await traced(node, str(response.json["seq"]))
    assert found["outcome"] == "failed"
    assert found["replicas"]["g1"] == "agrees"
    assert [found["replicas"][name] for name in ("g2", "g3")] == ["no-answer", "no-answer"]


async def test_native_request_without_a_reply_is_found_by_the_id_in_its_error(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    async with await node.client(retry=True) as client:
        await client.request("PUT", "/kv/a", b"1")
        for agent in node.agents:
            agent.mode = "waits"
        with pytest.raises(TimedOut) as raised:
            await client.request("PUT", "/kv/a", b"2", timeout=0.2)
        found = await traced(node, raised.value.request_id)
        assert found["seq"] == node.runner.engine.log.last_write
        assert found["outcome"] == "pending"
        for agent in node.agents:
            agent.mode = "honest"
            agent.release_answers()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("999999", "yet; the last is"),
        ("0", "no longer kept"),
        ("never-given", "no recent request has this id"),
        ("00112233445566778899aabbccddeeff:1", "no recent request has this id"),
        ("zz112233445566778899aabbccddeeff:1", "no recent request has this id"),
        ("%00%ff", "no recent request has this id"),
        ("1" * 4000, "no recent request has this id"),
    ],
)
async def test_unknown_ids_are_answered_404_with_the_reason(
    nodes: Nodes, name: str, reason: str
) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1")
    response = await trace(node, name)
    assert response.status == 404
    assert response.problem == "not-found"
    assert reason in response.json["detail"]


def test_records_are_bounded_and_an_older_request_is_reported_as_no_longer_kept() -> None:
    tracer = Tracer(["g1"], 1)
    for seq in range(1, FRAMES + 3):
        record = Record(seq, b"", b"", 0, b"", b"", False, False, None)
        tracer.identify(seq, (f"id-{seq}",))
        tracer.ordered(float(seq), [record], 1, seq)
        tracer.flushed(float(seq), float(seq), seq, 1)
        tracer.answered(float(seq), ev.Answered(0, 0, seq, b""), decided=True)
        tracer.released(float(seq), float(seq), [ev.Release(seq, seq, b"", 1, ())])
    with pytest.raises(UnknownRequest, match="no longer kept; the oldest are of 3"):
        tracer.trace(2, 0, 0.0, 0.0)
    assert tracer.trace(3, 0, 0.0, 0.0)["outcome"] == "released"
    assert tracer.find(f"id-{FRAMES}", DedupTable(Limits())) == (FRAMES, FRAMES)
    with pytest.raises(UnknownRequest):
        tracer.find(f"id-{FRAMES + 2 - NAMED}", DedupTable(Limits()))


def test_request_of_an_earlier_voter_is_reported_as_no_longer_kept() -> None:
    tracer = Tracer(["g1"], 1)
    tracer.begin(65536)
    with pytest.raises(UnknownRequest, match=r"no longer kept.*in the voter's memory"):
        tracer.trace(17, 0, 0.0, 0.0)


def test_kept_trace_outlives_its_records() -> None:
    tracer = Tracer(["g1"], 1)
    record = Record(1, b"", b"", 0, b"", b"", False, False, None)
    tracer.ordered(0.0, [record], 1, 0)
    tracer.keep(1, 0.0, 0.0)
    for seq in range(2, FRAMES + 3):
        tracer.ordered(1.0, [Record(seq, b"", b"", 0, b"", b"", False, False, None)], 1, 0)
    assert tracer.trace(1, 0, 2.0, 2.0)["seq"] == 1


async def test_client_that_leaves_before_its_reply_leaves_a_trace(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "waits"
    client = await node.client()
    asked = asyncio.ensure_future(client.request("GET", "/kv/a"))
    await until(lambda: node.runner.engine.pending == 1)
    seq = node.runner.engine.log.seq
    await client.close()
    with pytest.raises(ConnectionFailed):
        await asked
    assert (await traced(node, str(seq)))["seq"] == seq
