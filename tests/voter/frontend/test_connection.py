"""One connection: bad requests by example, and arbitrary bytes sent to a live voter."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.voter.conftest import Nodes
from tests.voter.frontend.messages import parse, requests
from tests.voter.node import Node, until
from voter.frontend.request import HEAD_LIMIT, HEADER_LIMIT, LINE_LIMIT, BadRequest


async def refusal(nodes: Nodes, data: bytes) -> int:
    """Return the status that `data` is refused with; the connection must end."""
    node = await nodes.make("max_body = 1000\n", ready=False)
    async with await node.open() as client:
        await client.send(data)
        client.half_close()
        response = await client.read()
        assert response.problem
        assert await client.ended() == b""
    assert (node.http.bounds.held, node.runner.counters["requests"]) == (0, 0)
    return response.status


LINE = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /\r\nHost: x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTX/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),  # TLS on a plain port
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (LINE + b"Host: x\n\r\n", 400),
        (LINE + b"\r\n", 400),  # no Host
        (LINE + b"Host: x\r\nHost: x\r\n\r\n", 400),
        (LINE + b"Host : x\r\n\r\n", 400),
        (LINE + b"Host: x\r\n folded\r\n\r\n", 400),
        (LINE + b"Host: x\r\nno colon\r\n\r\n", 400),
        (LINE + b"Host: x\r\n: empty\r\n\r\n", 400),
        (LINE + b"Host: x\r\nA: b\rc\r\n\r\n", 400),
        (LINE + b"Host: x\r\nA: b\x00\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: -1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: +1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1_0\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length:\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1001\r\n\r\n", 413),
        (LINE + b"Host: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (LINE + b"Host: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (LINE + b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (
            LINE + b"Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            501,
        ),
        (LINE + b"Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (LINE + b"Host: x\r\nExpect: magic\r\n\r\n", 417),
        (b"GET /" + b"a" * LINE_LIMIT + b" HTTP/1.1\r\n", 414),
        (b"GET /" + b"a" * HEAD_LIMIT, 414),
        (LINE + b"Host: x\r\nA: " + b"a" * HEAD_LIMIT, 431),
        (LINE + b"Host: x\r\nA: " + b"a" * HEAD_LIMIT + b"\r\n\r\n", 431),
        (LINE + b"Host: x\r\n" + b"A: b\r\n" * HEADER_LIMIT + b"\r\n", 431),
    ],
)
async def test_bad_request_is_refused_with_its_status(
    nodes: Nodes, data: bytes, status: int
) -> None:
    assert await refusal(nodes, data) == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x\r\n", 400),
        (b"\xff\r\n", 400),
        (b"0x1\r\na\r\n", 400),
        (b"-1\r\n", 400),
        (b"\r\n", 400),
        (b" 1\r\na\r\n", 400),
        (b"1 \r\na\r\n", 400),
        (b"1\na\n", 400),
        (b"1\r\nab\r\n", 400),
        (b"1;" + b"e" * 300, 400),
        (b"1;\x01\r\na\r\n", 400),
        (b"F" * 17 + b"\r\n", 400),
        (b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n", 413),
        (b"3e8\r\n" + b"a" * 1000 + b"\r\n1\r\na\r\n0\r\n\r\n", 413),
        (b"0\r\nno colon\r\n\r\n", 400),
        (b"0\r\n" + b"A: b\r\n" * 2000, 400),
        (b"0\r\nA: " + b"b" * 9000 + b"\r\n", 400),
    ],
)
async def test_bad_chunk_is_refused_with_its_status(nodes: Nodes, body: bytes, status: int) -> None:
    head = LINE + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await refusal(nodes, head + body) == status


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_requests_or_a_clean_refusal(data: bytes, piece: int) -> None:
    try:
        parse(data, piece=piece)
    except BadRequest:
        pass


@given(requests(), st.data())
def test_damaged_requests_too(request: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(request) - 1))
    damage = data.draw(st.binary(max_size=3))
    try:
        parse(request[:at] + damage + request[at + 1 :])
    except BadRequest:
        pass


GOOD = (
    b"GET /kv/a?b=c HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    b"PUT http://x/kv/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"
    b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\na\r\n0\r\nX: y\r\n\r\n"
)


async def test_a_live_voter_survives_any_bytes(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    node, chance = await nodes.make(), random.Random(7)
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            data = bytearray(GOOD)
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(data))
                data[at : at + chance.randrange(3)] = chance.choice(
                    [b"\r\n", b"\n", b"\r", b" ", b":", b"0", chance.randbytes(2)]
                )
            cut = chance.randrange(len(data))
            async with await node.open() as client:
                await client.send(bytes(data[:cut]))
                await client.send(bytes(data[cut:]))
                client.half_close()
                assert (await client.ended()).startswith(b"HTTP/1.")
    assert not caplog.records
    await quiet(node)


async def quiet(node: Node) -> None:
    """All that clients did is over: nothing is held, and another is served."""
    await until(lambda: not node.http.connections)
    assert (node.http.bounds.held, node.http.bounds.unsent, node.runner.waiting) == (0, 0, 0)
    assert (await node.ask("PUT", "/kv/other", b"1")).status in (201, 204)


async def test_requests_that_come_piece_by_piece_each_have_their_own_time(nodes: Nodes) -> None:
    """A client that pipelines, and always has the next one half sent, is not late."""
    node = await nodes.make("[timing]\nheader = 2.0\n")
    request = b"GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n"
    async with await node.open() as client:
        await client.send(request[:10])
        for _ in range(25):
            await client.send(request[10:] + request[:10])
            assert (await client.read()).status == 404
            await asyncio.sleep(0.1)  # what such a client does
        assert (await client.read()).status == 408
