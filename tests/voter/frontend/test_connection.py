"""One connection: bad requests by example, and arbitrary bytes sent to a live voter."""

from __future__ import annotations

import asyncio
import logging
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.voter.conftest import Nodes
from tests.voter.frontend.messages import parse, requests
from tests.voter.node import Node, turns
from tests.waiting import until
from voter.frontend.request import (
    HEAD_LIMIT,
    HEADER_LIMIT,
    LINE_LIMIT,
    BadRequest,
    RequestReader,
)
from voter.frontend.serving import ACCEPTED


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
        (b"GARBAGE\r\n", 400),
        (b"\r\n" * 5 + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
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


ONE = b"GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("valid", "count"),
    [
        (ONE, 1),
        (ONE * 50, 50),
        (b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 1),
        (
            b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\na\r\n0\r\n\r\n",
            1,
        ),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2, 2),
    ],
)
@pytest.mark.parametrize(
    ("stray", "status"),
    [
        (b"\x00\xff", 400),
        (b"stray bytes\r\n", 400),
        (b"\r\n\r\n{}", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", 413),
    ],
)
async def test_requests_before_stray_bytes_are_answered_first(
    nodes: Nodes, valid: bytes, count: int, stray: bytes, status: int
) -> None:
    node = await nodes.make()
    for half_closed in (False, True):
        async with await node.open() as client:
            await client.send(valid + stray)
            if half_closed:
                client.half_close()
            for _ in range(count):
                assert (await client.read()).status in (200, 201, 204, 404)
            refused = await client.read()
            assert (refused.status, refused.headers["connection"]) == (status, "close")
            assert refused.problem
            assert await client.ended() == b""
    await quiet(node)


async def test_bytes_after_the_last_request_are_ignored(nodes: Nodes) -> None:
    node = await nodes.make()
    last = b"GET /kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for more in (b"\x00\xff", ONE, b"x" * 100_000):
        async with await node.open() as client:
            client.writer.write(last + more)
            response = await client.read()
            assert (response.status, response.headers["connection"]) == (404, "close")
            assert await client.ended() == b""
    assert node.runner.counters["requests"] == 3
    await quiet(node)


CHUNKED = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n",
        CHUNKED + (b"1;" + b"e" * 2000 + b"\r\na\r\n") * 1000 + b"0\r\n\r\n",
    ],
    ids=["tiny chunks", "long extensions"],
)
def test_steps_of_a_chunked_body_are_small(data: bytes) -> None:
    reader, steps = RequestReader(1 << 20), 1
    reader.feed(data)
    while (request := reader.next()) is None:
        assert reader.more
        steps += 1
    assert request.body == b"a" * data.count(b"\r\na\r\n")
    assert steps > len(request.body) / 100


def test_head_that_comes_byte_by_byte_is_read_in_linear_time() -> None:
    """Looked through once in all, not once for each byte: counted, as time depends on the host."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 90 + b"c: " + b"d" * 8000 + b"\r\n\r\n"
    reader, checks = RequestReader(1 << 20), 0

    def count(checked: bytes) -> None:
        nonlocal checks
        checks += len(checked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voter.frontend.request._check_head", count)
        for at in range(len(head) - 1):
            reader.feed(head[at : at + 1])
            assert reader.next() is None
        reader.feed(head[-1:])
        assert reader.next() is not None
    assert checks < 4 * len(head)


async def test_other_clients_are_served_during_a_body_of_tiny_chunks(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.open() as attacker, await node.open() as other:
        attacker.writer.write(CHUNKED + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
        upload, served = asyncio.create_task(attacker.read()), 0
        while not upload.done():
            assert (await other.ask("GET", "/livez")).status == 200
            served += 1
        assert (await upload).status == 201
    assert served > 60


async def test_burst_of_connections_is_accepted_a_few_in_a_turn(nodes: Nodes) -> None:
    node = await nodes.make()
    sockets = [socket.socket() for _ in range(300)]
    try:
        async with turns(lambda: len(node.http.connections)) as grown:
            for sock in sockets:  # the kernel completes them at once: they wait to be accepted
                sock.connect(("127.0.0.1", node.port))
            await until(lambda: len(node.http.connections) == len(sockets))
        assert max(grown) <= 2 * ACCEPTED
        assert (await node.ask("GET", "/livez")).status == 200
    finally:
        for sock in sockets:
            sock.close()
    await quiet(node)


async def test_slow_upload_that_makes_progress_is_taken(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nbody = 1.0\n")
    put = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\n"
    async with await node.open() as plain, await node.open() as chunked:
        await plain.send(put + b"Content-Length: 200000\r\n\r\n")
        await chunked.send(put + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            await plain.send(bytes(20_000))
            await chunked.send(b"4e20\r\n" + bytes(20_000) + b"\r\n")
            await asyncio.sleep(0.15)  # slow senders: longer than the limit in all
        await chunked.send(b"0\r\n\r\n")
        assert {(await plain.read()).status, (await chunked.read()).status} == {201, 204}


async def test_upload_without_enough_progress_is_refused(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nbody = 0.4\n")
    async with await node.open() as client:
        await client.send(
            b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(40_000)
        )
        late = asyncio.create_task(client.read())
        while not late.done():
            client.writer.write(b"x")
            await asyncio.sleep(0.02)  # a byte at a time
        assert ((await late).status, (await late).problem) == (408, "slow-request")


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
