"""Errors of HTTP clients: each gets a clear problem, and other clients are still served."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from tests.voter.conftest import Nodes
from tests.voter.http_client import HttpClient
from tests.voter.node import Node
from tests.waiting import until

QUICK = "[timing]\nheader = 0.3\nbody = 0.3\nidle = 0.3\n"
PUT = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


async def serves(node: Node) -> bool:
    """Whether another client is served."""
    return (await node.ask("PUT", "/kv/other", b"1")).status in (201, 204)


@pytest.mark.parametrize(
    ("data", "status", "kind", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "bad-request", "TV0312"),
        (PUT + b"Content-Length: 1048577\r\n\r\n", 413, "too-large", "TV0307"),
        (PUT + CHUNKED + b"100001\r\n" + bytes(0x100001), 413, "too-large", "TV0307"),
        (PUT + b"X: " + b"y" * 100_000, 431, "headers-too-large", "TV0314"),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505, "version", "TV0315"),
    ],
)
async def test_bad_requests_get_a_problem_and_the_connection_ends(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, data: bytes, status: int, kind: str, code: str
) -> None:
    node = await nodes.make()
    with caplog.at_level(logging.DEBUG):
        async with await node.open() as client:
            await client.send(data)
            response = await client.read()
            assert (response.status, response.problem) == (status, kind)
            assert response.error_code == code
            assert response.headers["connection"] == "close"
            assert await client.ended() == b""
    assert not [record for record in caplog.records if record.name != "asyncio"], "no log spam"
    assert await serves(node)


async def test_the_answer_to_a_body_too_large_is_not_lost_in_the_sending(nodes: Nodes) -> None:
    """A client that sends all of its 20 MB before it reads finds the 413, not a broken pipe."""
    node = await nodes.make()
    async with await node.open() as client:
        await client.send(PUT + b"Content-Length: 20000000\r\n\r\n")
        client.writer.write(bytes(20_000_000))
        assert (await client.read()).status == 413
        await client.writer.drain()
    assert node.http.bounds.held == 0
    assert await serves(node)


async def test_chunks_without_end_are_cut_off_at_the_limit(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.open() as client:
        await client.send(PUT + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            client.writer.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")
        assert (await client.read()).status == 413
    assert await serves(node)


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX:", b"\r\n\r"])
async def test_headers_that_do_not_come(nodes: Nodes, start: bytes) -> None:
    node = await nodes.make(QUICK)
    async with await node.open() as client:
        await client.send(start)
        response = await client.read()
        assert (response.status, response.problem) == (408, "slow-request")
        assert response.error_code == "TV0313"
        assert await client.ended() == b""


async def test_slow_headers_do_not_extend_the_deadline(nodes: Nodes) -> None:
    node = await nodes.make(QUICK)
    async with await node.open() as client:
        started = time.monotonic()
        reading = asyncio.create_task(client.read())
        await client.send(b"GET / HTTP/1.1\r\n")
        while not reading.done():
            await client.send(b"a")
            await asyncio.wait([reading], timeout=0.02)
        assert (await reading).status == 408
        assert time.monotonic() - started < 5


async def test_a_body_that_does_not_come(nodes: Nodes) -> None:
    node = await nodes.make(QUICK)
    async with await node.open() as client:
        await client.send(PUT + b"Content-Length: 10\r\n\r\n12345")
        response = await client.read()
        assert (response.status, response.problem) == (408, "slow-request")
        assert await client.ended() == b""
    assert await serves(node)


async def test_idle_connection_is_closed_silently(nodes: Nodes) -> None:
    node = await nodes.make(QUICK)
    async with await node.open() as fresh, await node.open() as used:
        await used.ask("GET", "/kv/a")
        assert await fresh.ended() == b""
        assert await used.ended() == b""


async def test_a_request_that_ends_before_its_end(nodes: Nodes) -> None:
    node = await nodes.make()
    for sent in (b"GET / HT", PUT + b"Content-Length: 10\r\n\r\n12345"):
        async with await node.open() as client:
            await client.send(sent)
            client.half_close()
            response = await client.read()
            assert (response.status, response.problem) == (400, "bad-request")
            assert await client.ended() == b""
    assert node.runner.counters["requests"] == 0


async def test_a_connection_that_breaks_is_forgotten_and_its_request_stays(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "says nothing"
    async with await node.open() as client:
        await client.send(PUT + b"Content-Length: 1\r\n\r\n1")
        await until(lambda: node.runner.waiting == 1, "the request is ordered")
        client.reset()
        await until(lambda: node.runner.waiting == 0, "the client is forgotten")
    assert node.runner.engine.pending == 1, "what was ordered stays in the order"
    await until(lambda: not node.http.connections)


async def test_a_client_that_never_reads_is_ended_and_holds_little(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nbody = 0.3\n")
    await node.ask("PUT", "/kv/big", bytes(1 << 20))
    async with await node.open() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        request = b"GET /kv/big HTTP/1.1\r\nHost: x\r\n\r\n"
        client.writer.write(request * 1000)
        await until(lambda: node.http.bounds.unsent > 0, "the client's socket is full")
        assert node.http.bounds.unsent <= 2 << 20, "one reply at a time"
        requests = node.runner.counters["requests"]
        assert requests < 100
        assert await serves(node)
        await until(lambda: not node.http.connections, "it is ended")
    assert (node.http.bounds.held, node.http.bounds.unsent) == (0, 0)


async def test_pipelining_without_end_is_not_read_without_end(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nrequest = 60\n")
    for agent in node.agents:
        agent.mode = "says nothing"
    async with await node.open() as client:
        client.writer.write(b"GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n" * 50_000)
        await until(lambda: node.http.bounds.held > 0)
        held = 0
        while held != node.http.bounds.held:  # until the voter reads no more
            held = node.http.bounds.held
            await asyncio.sleep(0.1)
        assert held < 1 << 20
        assert node.runner.counters["requests"] == 1
        client.reset()
        await until(lambda: not node.http.connections)
    assert node.http.bounds.held == 0


async def test_half_sent_bodies_of_many_clients_are_bounded(nodes: Nodes) -> None:
    node = await nodes.make()
    node.http.held_limit = 3 << 20
    clients = [await node.open() for _ in range(5)]
    try:
        for client in clients:
            await client.send(PUT + b"Content-Length: 1000000\r\n\r\n" + bytes(900_000))
        # Three fit: the fourth and the fifth are each one too many.
        await until(lambda: len(answered(clients)) == 2)
        refused = answered(clients)
        for client in refused:
            response = await client.read()
            assert (response.status, response.problem) == (503, "overload")
            assert response.error_code == "TV0302"
            assert response.headers["retry-after"]
        assert node.http.bounds.held <= 3 << 20
        for client in clients:
            if client not in refused:
                await client.send(bytes(100_000))
                assert (await client.read()).status in (201, 204)
    finally:
        for client in clients:
            async with client:
                pass


def answered(clients: list[HttpClient]) -> list[HttpClient]:
    """Return the clients that have received bytes."""
    return [client for client in clients if client.reader._buffer]  # type: ignore[attr-defined]


async def test_more_connections_than_allowed(nodes: Nodes) -> None:
    node = await nodes.make()
    node.http.max_connections = 2
    async with await node.open() as first, await node.open() as second:
        for client in (first, second):
            assert (await client.ask("GET", "/livez")).status == 200
        async with await node.open() as third:
            assert (await third.read()).status == 503
            assert await third.ended() == b""
        assert (await first.ask("GET", "/livez")).status == 200


async def test_too_few_replicas_is_a_clear_refusal(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents[:2]:
        agent.stop()
    await node.until_status("refusing")
    response = await node.ask("PUT", "/kv/a", b"1")
    assert (response.status, response.problem) == (503, "not-executed")
    assert "seq" not in response.json
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert "trivisor-vote" not in response.headers
    ready = await node.ask("GET", "/readyz")
    assert (ready.status, ready.body) == (503, b"refusing\n")
    assert (await node.ask("GET", "/livez")).status == 200


async def test_a_draining_node_names_no_time_to_retry(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.runner.drained()
    for target in ("/kv/a", "/readyz"):
        response = await node.ask("GET", target)
        assert response.status == 503
        assert "retry-after" not in response.headers


async def test_pipelined_refusals_do_not_pile_up_on_the_stack(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.stop()
    await node.until_status("refusing")
    async with await node.open() as client:
        await client.send(b"GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        for _ in range(5000):
            assert (await client.read()).status == 503


async def test_unknown_outcome_is_a_problem_with_its_sequence_number(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents[1:]:
        agent.mode = "says nothing"
    async with await node.open() as client:
        await client.send(PUT + b"Content-Length: 1\r\n\r\n1")
        await until(lambda: node.runner.waiting == 1)
        for agent in node.agents[1:]:
            agent.stop()
        response = await client.read()
        assert (response.status, response.problem) == (502, "outcome-unknown")
        assert response.json["seq"] > 0
        # The connection is as good as before.
        assert (await client.ask("GET", "/livez")).status == 200


async def test_a_vote_that_takes_too_long_is_a_timeout(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nrequest = 0.2\n")
    for agent in node.agents[1:]:
        agent.mode = "says nothing"
    response = await node.ask("PUT", "/kv/a", b"1")
    assert (response.status, response.problem) == (504, "timeout")


async def test_overload_is_answered_at_once(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\npending = 2\n")
    for agent in node.agents:
        agent.mode = "says nothing"
    waiting: list[HttpClient] = []
    for _ in range(2):
        waiting.append(await node.open())
        await waiting[-1].send(b"GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: node.runner.waiting == 2)
    response = await node.ask("GET", "/kv/a")
    assert (response.status, response.problem) == (503, "overload")
    for client in waiting:
        async with client:
            pass


async def test_a_voted_reply_that_is_not_http(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas agree on bytes; that those are HTTP is the service's affair, and may go wrong."""
    monkeypatch.setattr("guests.agent.incarnation.answer", lambda *_: b"this is no reply")
    node = await nodes.make()
    async with await node.open() as client:
        response = await client.ask("GET", "/kv/a")
        assert (response.status, response.problem) == (502, "bad-reply")
        assert response.error_code == "TV0311"
        assert response.json["seq"] > 0
        assert response.headers["trivisor-vote"].startswith(("2/3", "3/3"))


@pytest.mark.parametrize("name", ["Cache-Control", "Expires"])
async def test_a_service_decides_how_long_its_reply_is_fresh(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reply = f"HTTP/1.1 200 OK\r\n{name}: its own\r\n\r\n".encode()
    monkeypatch.setattr("guests.agent.incarnation.answer", lambda *_: reply)
    node = await nodes.make()
    headers = (await node.ask("GET", "/kv/a")).headers
    assert headers[name.lower()] == "its own"
    assert headers.get("cache-control") in (None, "its own")


async def test_stop_closes_all_connections(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.open() as client:
        await client.ask("GET", "/kv/a")
        await node.http.stop()
        assert await client.ended() == b""
    assert not node.http.connections
