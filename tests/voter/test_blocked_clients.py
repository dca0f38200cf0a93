"""Clients that are blocked: refused on every front end, and their connections closed."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from tests.voter.conftest import Nodes
from tests.voter.node import Node
from tests.voter.test_control import call
from tests.waiting import until
from voter import blocked_clients
from voter.client import Client
from voter.client.errors import Blocked, ConnectionFailed

CALLER = "http:127.0.0.1"


async def block(node: Node, caller: str, seconds: float | None = None) -> None:
    body = {"caller": caller, "seconds": seconds, "reason": "it attacks"}
    response = await call(node, "POST", "/clients/block", json.dumps(body).encode())
    assert response.json == {"caller": caller, "blocked": True}


async def test_blocked_client_gets_403_and_others_are_served(nodes: Nodes) -> None:
    node = await nodes.make()
    await block(node, CALLER)
    refused = await node.ask("GET", "/kv/a")
    assert (refused.status, refused.problem, refused.error_code) == (403, "blocked", "TV0250")
    assert refused.json["detail"] == "it attacks"
    assert refused.headers["connection"] == "close"
    assert (await call(node, "GET", "/status")).json["blocked"] == {CALLER: "it attacks"}
    async with await node.client() as client:
        assert (await client.request("GET", "/kv/a")).status == 404
    body = json.dumps({"caller": CALLER}).encode()
    assert (await call(node, "POST", "/clients/unblock", body)).json["blocked"] is False
    assert (await node.ask("GET", "/kv/a")).status == 404
    assert (await call(node, "GET", "/status")).json["blocked"] == {}


async def test_connection_of_a_blocked_client_is_closed_and_its_reply_is_not_sent(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "waits"
    async with await node.open() as client:
        await client.send(b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
        await until(lambda: node.runner.engine.pending == 1)
        await block(node, CALLER)
        for agent in node.agents:
            agent.release_answers()
        assert await client.ended() == b""


async def test_native_client_is_blocked_by_its_user(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.client() as client:
        assert (await client.request("GET", "/kv/a")).status == 404
        await block(node, f"uid:{os.getuid()}")
        with pytest.raises(ConnectionFailed):
            await client.request("GET", "/kv/a")
    with pytest.raises((Blocked, ConnectionFailed)):
        async with await Client.connect(f"unix:{node.native_path}", retry=False) as client:
            await client.request("GET", "/kv/a")


async def test_block_ends_after_its_time(nodes: Nodes) -> None:
    node = await nodes.make()
    await block(node, CALLER, 0.3)
    assert (await node.ask("GET", "/kv/a")).status == 403

    async def served() -> bool:
        return (await node.ask("GET", "/kv/a")).status == 404

    await until(served, "the block is over")


async def test_only_so_many_clients_are_blocked(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_clients, "MOST", 2)
    node = await nodes.make()
    await block(node, "tcp:192.0.2.1", 0.001)
    await asyncio.sleep(0.01)  # its time is over, which frees its place
    await block(node, "tcp:192.0.2.2")
    await block(node, "tcp:192.0.2.3")
    await block(node, "tcp:192.0.2.3")
    body = json.dumps({"caller": "tcp:192.0.2.4"}).encode()
    refused = await call(node, "POST", "/clients/block", body)
    assert refused.status == 400
    assert "2 clients are blocked already" in refused.json["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/clients/block", b"{}", 400),
        ("/clients/block", b'{"caller": "a", "seconds": 0}', 400),
        ("/clients/block", b'{"caller": "a", "why": "b"}', 400),
        ("/clients/nothing", b'{"caller": "a"}', 404),
        ("/clients", b"", 404),
    ],
)
async def test_bad_call_blocks_nobody(nodes: Nodes, path: str, body: bytes, status: int) -> None:
    node = await nodes.make()
    assert (await call(node, "POST", path, body)).status == status
    assert (await node.ask("GET", "/kv/a")).status == 404
