"""The control socket: status, events, drain, admit and expel, and bad calls."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from typing import Any

import pytest

from tests.voter.conftest import Nodes
from tests.voter.http_client import HttpClient, Response
from tests.voter.node import Node
from tests.waiting import until
from voter.control import HEARTBEAT


async def call(node: Node, method: str, path: str, body: bytes = b"") -> Response:
    """Make one call on the control socket."""
    async with await HttpClient.open_unix(node.control_path) as client:
        return await client.ask(method, path, body)


class Events:
    """A stream of incidents."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    @classmethod
    async def open(cls, client: HttpClient, since: int) -> Events:
        await client.send(b"GET /events?since=%d HTTP/1.1\r\nHost: x\r\n\r\n" % since)
        response = await client.read()
        assert response.status == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        return cls(client)

    async def next(self) -> dict[str, Any]:
        """The next incident."""
        async with asyncio.timeout(10):
            found: dict[str, Any] = json.loads(await self._client.reader.readline())
        return found


async def test_status_reports_voter_replicas_and_counters(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1")
    response = await call(node, "GET", "/status")
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    status = response.json
    assert status["pid"] == os.getpid()
    assert status["status"] == "ready"
    assert status["vote"] == "2/3"
    assert status["waiting"] == 0
    assert [replica["name"] for replica in status["replicas"]] == ["g1", "g2", "g3"]
    assert {replica["state"] for replica in status["replicas"]} == {"active"}
    assert status["counters"]["released"] == 1


async def test_only_its_owner_may_ask(nodes: Nodes) -> None:
    node = await nodes.make()
    assert stat.S_IMODE(node.control_path.stat().st_mode) == 0o600


async def test_the_probes_are_here_too(nodes: Nodes) -> None:
    node = await nodes.make()
    assert (await call(node, "GET", "/livez")).body == b"live\n"
    assert (await call(node, "GET", "/readyz")).body == b"ready\n"
    assert (await call(node, "GET", "/readyz?verbose")).json["active"] == 3
    assert b"trivisor_requests_total" in (await call(node, "GET", "/metrics")).body


async def test_expel_and_admit(nodes: Nodes) -> None:
    node = await nodes.make()
    body = json.dumps({"reason": "it looks odd"}).encode()
    expelled = await call(node, "POST", "/replicas/g2/expel", body)
    assert expelled.json == {"name": "g2", "state": "expelled", "reason": "it looks odd"}
    assert node.runner.engine.status == "degraded"
    admitted = await call(node, "POST", "/replicas/g2/admit")
    assert admitted.status == 200
    await node.until_status("ready")
    assert (await call(node, "POST", "/replicas/g1/expel")).json["state"] == "expelled"


async def test_events_start_after_the_given_id_and_continue(nodes: Nodes) -> None:
    node = await nodes.make()
    last = node.runner.incidents.kept[-1].id
    async with (
        await HttpClient.open_unix(node.control_path) as first,
        await HttpClient.open_unix(node.control_path) as second,
    ):
        all_of_them = await Events.open(first, 0)
        new_ones = await Events.open(second, last)
        seen = [await all_of_them.next() for _ in range(last)]
        assert [incident["id"] for incident in seen] == list(range(1, last + 1))
        assert {incident["replica"] for incident in seen} == {"g1", "g2", "g3"}
        await call(node, "POST", "/replicas/g3/expel", b'{"reason": "test"}')
        for listener in (all_of_them, new_ones):
            incident = await listener.next()
            assert incident["id"] == last + 1
            assert incident["replica"] == "g3"
            assert incident["after"] == "expelled"
            assert incident["reason"] == "test"


async def test_a_listener_that_goes_away_leaves_nothing(nodes: Nodes) -> None:
    node = await nodes.make()
    before = len(asyncio.all_tasks())
    for _ in range(5):
        async with await HttpClient.open_unix(node.control_path) as client:
            await Events.open(client, 10_000)
    began = asyncio.get_running_loop().time()
    await until(lambda: len(asyncio.all_tasks()) <= before, "the listeners' tasks have ended")
    assert asyncio.get_running_loop().time() - began < HEARTBEAT / 2, "not only at the next write"


async def test_drain_waits_for_requests_under_way(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "waits"
    async with await node.open() as client:
        await client.send(b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
        await until(lambda: node.runner.waiting == 1)
        draining = asyncio.create_task(call(node, "POST", "/drain"))
        await node.until_status("draining")
        refused = await node.ask("GET", "/kv/a")
        assert (refused.status, refused.problem) == (503, "not-executed")
        assert "draining" in refused.json["detail"]
        assert not draining.done()
        for agent in node.agents:
            agent.release_answers()
        assert (await client.read()).status == 201
        drained = await draining
        assert (drained.status, drained.json) == (200, {"pending": 0})
        assert (await node.ask("GET", "/readyz")).status == 503


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", b"", 404),
        ("POST", "/replicas/g9/admit", b"", 404),
        ("POST", "/replicas/g9/expel", b"", 404),
        ("GET", "/drain", b"", 405),
        ("POST", "/status", b"", 405),
        ("GET", "/events?since=abc", b"", 400),
        ("GET", "/events?since=-1", b"", 400),
        ("POST", "/replicas/g1/expel", b"not json", 400),
        ("POST", "/replicas/g1/expel", b'{"cause": "x"}', 400),
        ("POST", "/replicas/g1/expel", b'{"reason": 5}', 400),
        ("POST", "/replicas/g1/expel", b" " * 100_000, 413),
    ],
)
async def test_control_answers_bad_calls_with_a_problem(
    nodes: Nodes, method: str, path: str, body: bytes, status: int
) -> None:
    node = await nodes.make()
    response = await call(node, method, path, body)
    assert response.status == status
    assert response.problem
    assert response.error_code == {
        400: "TV0312", 404: "TV0316", 405: "TV0317", 413: "TV0307"
    }[status]  # fmt: skip
    assert node.runner.engine.status == "ready"


async def test_unknown_replica_error_lists_the_names(nodes: Nodes) -> None:
    node = await nodes.make()
    response = await call(node, "POST", "/replicas/g9/admit")
    assert "g1, g2, g3" in response.json["detail"]
