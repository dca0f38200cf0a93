"""The control socket: status, events, drain, admit and expel, and bad calls."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from base64 import b64decode
from functools import partial
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
    async def open(cls, client: HttpClient, since: int, what: str = "events") -> Events:
        request = f"GET /{what}?since={since} HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.send(request.encode())
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


PARTS = ("request", "released", "other")


def roles_body(version: int, **roles: str) -> bytes:
    return json.dumps({"version": version, "roles": roles, "reason": "a test"}).encode()


async def test_replica_in_the_free_slot_takes_the_place_of_another(nodes: Nodes) -> None:
    node = await nodes.make(spares=1)
    assert node.state("g4") == "retired"
    assert not node.agents[3].connections, "a retired replica is not connected"
    begun = await call(node, "POST", "/roles", roles_body(0, g4="learner"))
    assert begun.status == 200
    assert begun.json["version"] == 1
    await until(lambda: node.state("g4") == "standby", "g4 has caught up")
    status = (await call(node, "GET", "/status")).json
    assert [replica["caught_up"] for replica in status["replicas"]] == [True] * 4
    replaced = await call(node, "POST", "/roles", roles_body(1, g4="voter", g2="retired"))
    table = {"g1": "voter", "g2": "retired", "g3": "voter", "g4": "voter"}
    assert replaced.json["roles"] == {"version": 2, "table": table}
    assert replaced.json["seq"] == node.runner.engine.log.seq
    await until(lambda: not node.agents[1].connections, "the link of g2 is closed")
    assert (await node.ask("PUT", "/kv/a", b"1")).status == 201
    assert node.runner.engine.status == "ready"
    status = (await call(node, "GET", "/status")).json
    assert status["roles"] == {"version": 2, "table": table}
    assert [replica["role"] for replica in status["replicas"]] == list(table.values())
    reasons = [incident.reason for incident in node.runner.reports.incidents.kept]
    assert "role voter -> retired: a test" in reasons


async def test_checkpoint_is_made_on_request(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1")
    assert (await call(node, "POST", "/checkpoint")).json == {"requested": True}
    await until(lambda: node.runner.engine.log.checkpoint.seq > 0)
    status = (await call(node, "GET", "/status")).json
    seq = status["checkpoint"]["seq"]
    assert [replica["digest_seq"] for replica in status["replicas"]] == [seq] * 3


async def test_change_of_roles_can_ask_for_more_active_voters(nodes: Nodes) -> None:
    node = await nodes.make(spares=1)
    await call(node, "POST", "/roles", roles_body(0, g4="observer"))
    await until(lambda: node.state("g4") == "observer")
    body = json.loads(roles_body(1, g4="voter", g2="retired")) | {"active": 4}
    refused = await call(node, "POST", "/roles", json.dumps(body).encode())
    assert (
        refused.json["detail"]
        == "vote 2/3 needs 2 active voters, and 4 are wanted, only 3 would be left"
    )


async def test_impossible_change_of_roles_is_refused_with_the_table(nodes: Nodes) -> None:
    node = await nodes.make(spares=1)
    refused = await call(node, "POST", "/roles", roles_body(0, g1="retired"))
    assert (refused.status, refused.problem, refused.error_code) == (409, "roles", "TV0241")
    assert refused.json["detail"] == "vote 2/3 needs exactly 3 voters, not 2"
    assert refused.json["roles"]["table"]["g1"] == "voter"


async def test_change_of_roles_for_another_version_is_refused(nodes: Nodes) -> None:
    node = await nodes.make(spares=1)
    refused = await call(node, "POST", "/roles", roles_body(7, g4="learner"))
    assert (refused.status, refused.problem, refused.error_code) == (409, "stale-roles", "TV0242")
    assert refused.json["roles"]["version"] == 0


async def test_retired_replica_that_becomes_a_learner_is_connected(nodes: Nodes) -> None:
    node = await nodes.make(spares=1)
    states = {"learner": "standby", "retired": "retired", "observer": "observer"}
    for version, (role, state) in enumerate(states.items()):
        await call(node, "POST", "/roles", roles_body(version, g4=role))
        await until(partial(in_state, node, state), state)


def in_state(node: Node, state: str) -> bool:
    """Return whether g4 is in this state, and connected unless it is retired."""
    connected = bool(node.agents[3].connections)
    return node.state("g4") == state and connected == (state != "retired")


async def test_differences_of_an_observer_are_streamed(nodes: Nodes) -> None:
    node = await nodes.make(spares=1)
    await call(node, "POST", "/roles", roles_body(0, g4="observer"))
    await until(lambda: node.state("g4") == "observer", "g4 observes")
    await node.ask("PUT", "/kv/a", b"1")
    await until(lambda: node.runner.engine.members[3].compared == 1, "its reply was compared")
    node.agents[3].mode = "lies"
    async with await HttpClient.open_unix(node.control_path) as client:
        stream = await Events.open(client, 0, "differences")
        await node.ask("PUT", "/kv/a", b"2")
        found = await stream.next()
    assert (found["replica"], found["role"], found["kind"]) == ("g4", "observer", "reply")
    assert b"PUT /kv/a" in b64decode(found["request"])
    assert b64decode(found["released"]) != b64decode(found["other"])
    assert found["sizes"] == [len(b64decode(found[name])) for name in PARTS]
    assert found["behind"] >= 0
    replica = (await call(node, "GET", "/status")).json["replicas"][3]
    assert (replica["compared"], replica["differed"]) == (2, 1)
    assert (await call(node, "GET", "/status")).json["counters"]["masked"] == 0


async def test_events_start_after_the_given_id_and_continue(nodes: Nodes) -> None:
    node = await nodes.make()
    last = node.runner.reports.incidents.kept[-1].id
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
        ("GET", "/roles", b"", 405),
        ("POST", "/roles", b"", 400),
        ("POST", "/roles", b'{"version": "x", "roles": {}}', 400),
        ("POST", "/roles", b'{"version": 0, "roles": {"g1": 5}}', 400),
        ("POST", "/roles", b'{"version": 0, "roles": {"g1": "king"}}', 404),
        ("POST", "/roles", b'{"version": 0, "roles": {"g9": "voter"}}', 404),
        ("GET", "/differences?since=x", b"", 400),
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
