"""The native front end: framed requests, and errors of clients."""

from __future__ import annotations

import asyncio
import random
import struct
from zlib import crc32

import pytest

from guests.protocol import wire
from guests.protocol.message import encode_request
from guests.protocol.wire import FLAG_ONCE, FrameKind, encode
from tests.errors import raises
from tests.voter.conftest import Nodes
from tests.voter.frontend.raw import OPEN, Raw, raw
from tests.voter.node import Node, turns
from tests.waiting import until
from voter.client import Client
from voter.client.errors import ConnectionFailed, NotExecuted, OutcomeUnknown, TimedOut
from voter.frontend import native
from voter.frontend.native import REQUEST_LIMIT
from voter.native_protocol import (
    MOST_TOGETHER,
    SESSION_SIZE,
    decode_failure,
    decode_response,
    decode_several,
    encode_numbers,
    encode_several,
)

GET = encode_request("GET", "/kv/a")


def get_frames(first: int, last: int) -> bytes:
    return b"".join(encode(FrameKind.REQUEST, 0, n, GET, 1) for n in range(first, last + 1))


def together(*items: tuple[int, int, bytes]) -> bytes:
    return encode(FrameKind.REQUESTS, 0, items[0][0], encode_several(items))


async def answers(connection: Raw, count: int) -> dict[int, tuple[int, bytes]]:
    """The next so many answers: kind and payload of each, by number."""
    found: dict[int, tuple[int, bytes]] = {}
    while len(found) < count:
        frame = await connection.frame()
        several = [(frame.seq, frame.kind, frame.payload)]
        if frame.kind == FrameKind.RESPONSES:
            several = decode_several(frame.payload)
        for number, kind, payload in several:
            assert number not in found
            found[number] = kind, payload
    return found


async def serves(node: Node) -> bool:
    """Whether another client is served."""
    async with await node.client() as client:
        return (await client.request("PUT", "/kv/other", b"1")).status in (201, 204)


# ------------------------------------------------------------ what is right


@pytest.mark.asyncio(loop_scope="module")
async def test_requests_of_three_processes(shared_node: Node) -> None:
    async with await shared_node.client() as client:
        assert client.server.replicas == ["g1", "g2", "g3"]
        assert client.server.vote == "2/3"
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
        answer = await client.request("GET", "/kv/a")
        assert (answer.status, answer.body) == (200, b"1")
        assert answer.vote.agreed >= 2
        assert answer.vote.seq > 0
        assert client.dissenters(answer.vote) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_over_tcp_too(shared_node: Node) -> None:
    async with await Client.connect(f"tcp:127.0.0.1:{shared_node.native_port}") as client:
        assert (await client.request("GET", "/kv/none")).status == 404


@pytest.mark.asyncio(loop_scope="module")
async def test_many_requests_in_flight(shared_node: Node) -> None:
    """Far more than may be under way on one connection at a time: all are answered, and right."""
    count = 3 * shared_node.native.max_in_flight
    async with await shared_node.client() as client:
        stored = await asyncio.gather(
            *(client.request("PUT", f"/kv/m{n}", b"%d" % n) for n in range(count))
        )
        assert {answer.status for answer in stored} == {201}
        assert len({answer.vote.seq for answer in stored}) == count
        got = await asyncio.gather(*(client.request("GET", f"/kv/m{n}") for n in range(count)))
        assert [answer.body for answer in got] == [b"%d" % n for n in range(count)]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_of_the_largest_size(shared_node: Node) -> None:
    body = bytes(1 << 20)
    async with await shared_node.client() as client:
        assert (await client.request("PUT", "/kv/large", body)).status == 201
        assert (await client.request("GET", "/kv/large")).body == body
        with raises("TV0307"):
            await client.request("PUT", "/kv/large", bytes(REQUEST_LIMIT))
        assert (await client.request("DELETE", "/kv/large")).status == 204


@pytest.mark.asyncio(loop_scope="module")
async def test_half_closed_client_gets_its_replies(shared_node: Node) -> None:
    async with raw(shared_node) as connection:
        await connection.send(
            b"".join(encode(FrameKind.REQUEST, 0, n, GET, 1) for n in range(1, 51))
        )
        connection.client.half_close()
        numbers = [(await connection.frame()).seq for _ in range(50)]
        assert sorted(numbers) == list(range(1, 51))
        assert await connection.ended()


@pytest.mark.asyncio(loop_scope="module")
async def test_requests_of_one_frame_are_each_answered(shared_node: Node) -> None:
    """One that the service cannot read, and one without its session's name, change no other."""
    items = [(n, 1, b"nonsense" if n == 7 else GET) for n in range(1, MOST_TOGETHER + 1)]
    alone = encode(FrameKind.REQUEST, 0, 1000, GET, 1)
    async with raw(shared_node) as connection:
        await connection.send(together(*items) + alone)
        found = await answers(connection, MOST_TOGETHER + 1)
    assert found.keys() == {*range(1, MOST_TOGETHER + 1), 1000}
    assert {kind for kind, _ in found.values()} == {FrameKind.RESPONSE}
    assert len({decode_response(payload)[0].seq for _, payload in found.values()}) == len(found)
    replies = {n: decode_response(payload)[1] for n, (_, payload) in found.items()}
    assert replies[7] != replies[6] == replies[8] == replies[1000]


@pytest.mark.asyncio(loop_scope="module")
async def test_failures_of_one_turn_are_answered_in_one_frame(shared_node: Node) -> None:
    unknown = encode(FrameKind.SESSION, 0, 1, bytes(SESSION_SIZE))
    items = [(n, FLAG_ONCE, encode_numbers(0, n) + GET) for n in (5, 6, 7)]
    async with raw(shared_node) as connection:
        await connection.send(unknown + together(*items))
        assert (await connection.frame()).kind == FrameKind.SESSION
        frame = await connection.frame()
    assert frame.kind == FrameKind.RESPONSES
    found = decode_several(frame.payload)
    assert [number for number, _, _ in found] == [5, 6, 7]
    assert {decode_failure(payload)[0] for _, _, payload in found} == {"session-expired"}


@pytest.mark.asyncio(loop_scope="module")
async def test_services_get_the_caller(shared_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = []
    submit = shared_node.runner.submit

    def note(request: bytes, caller: bytes, *rest: object) -> int:
        callers.append(caller)
        return submit(request, caller, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_node.runner, "submit", note)
    async with await shared_node.client() as client:
        await client.request("GET", "/kv/a")
    async with raw(shared_node, tcp=True) as connection:
        await connection.send(encode(FrameKind.REQUEST, 0, 1, GET))
        await connection.frame()
    await shared_node.ask("GET", "/kv/a")
    assert callers[0].startswith(b"uid:")
    assert callers[1:] == [b"tcp:127.0.0.1", b"http:127.0.0.1"]


# ------------------------------------------------------------ what is wrong


def announce(length: int) -> bytes:
    """A header, its own checksum right, for a payload of this length."""
    head = struct.pack(">4sBBIQQI", b"\xd7TRV", FrameKind.REQUEST, 0, length, 0, 1, 0)
    return head + struct.pack(">I", crc32(head))


PAIR = encode_several([(1, 1, GET), (2, 1, GET)])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (encode(FrameKind.REQUESTS, 0, 1, b""), "payloads"),
        (encode(FrameKind.REQUESTS, 0, 1, bytes(2)), "payloads"),
        (encode(FrameKind.REQUESTS, 0, 1, b"\0\2" + bytes(25)), "payloads"),
        (encode(FrameKind.REQUESTS, 0, 1, b"\xff\xff" + bytes(13 * 65_535)), "payloads"),
        (encode(FrameKind.REQUESTS, 0, 1, PAIR[:-1]), "add up"),
        (encode(FrameKind.REQUESTS, 0, 1, PAIR + b"?"), "add up"),
        (together((1, FLAG_ONCE, bytes(16) + GET), (2, 1, GET)), "session"),
        (encode(FrameKind.RESPONSES, 0, 1, PAIR), "not expected"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(40), "wrong port"),
        (random.Random(1).randbytes(100_000), "wrong port"),
        (bytes(100_000), "wrong port"),
        (announce(1 << 31), "wrong port"),
        (announce(wire.MAX_PAYLOAD + 1), "wrong port"),
        (encode(FrameKind.REQUEST, 0, 7, GET)[:-1] + b"?", "wrong port"),  # damaged on its way
        (encode(FrameKind.HELLO, 1, 1, b"\0\1\0"), "not expected"),
        (OPEN, "not expected"),
    ],
)
@pytest.mark.parametrize("tcp", [False, True])
async def test_malformed_bytes_end_the_connection_with_a_failure(
    nodes: Nodes, data: bytes, word: str, tcp: bool
) -> None:
    node = await nodes.make()
    async with raw(node, tcp=tcp) as connection:
        await connection.send(data)
        code, text = await connection.failure()
        assert code == "protocol"
        assert word in text
        assert await connection.ended()
    assert await serves(node)
    await until(lambda: not node.native.connections)
    assert (node.native.bounds.held, node.runner.waiting) == (0, 0)


async def test_number_repeated_in_a_frame_ends_the_connection_after_the_first(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await connection.send(together((1, 1, GET), (2, 1, GET), (1, 1, GET), (3, 1, GET)))
        found = await answers(connection, 2)
        assert found.keys() == {1, 2}
        assert "still under way" in (await connection.failure())[1]
        assert await connection.ended()
    assert node.runner.counters["requests"] == 2


async def test_a_cut_frame_of_requests_orders_none(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await connection.send(together(*[(n, 0, GET) for n in range(1, 20)])[:-1])
        await until(lambda: node.native.bounds.held > 0)
    await until(lambda: not node.native.connections)
    assert (node.native.bounds.held, node.runner.counters["requests"]) == (0, 0)
    assert await serves(node)


async def test_a_request_before_open_is_refused(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node, opened=False) as connection:
        await connection.send(encode(FrameKind.REQUEST, 0, 1, GET))
        assert (await connection.failure())[0] == "protocol"
        assert await connection.ended()
    assert node.runner.counters["requests"] == 0


@pytest.mark.parametrize("version", [0, 1, 65535])
async def test_another_version_is_named(nodes: Nodes, version: int) -> None:
    node = await nodes.make()
    async with raw(node, opened=False) as connection:
        await connection.send(encode(FrameKind.OPEN, 0, 0, version.to_bytes(2)))
        code, text = await connection.failure()
        assert code == "version"
        assert str(version) in text
        assert str(wire.PROTOCOL) in text
        assert await connection.ended()


async def test_client_reports_a_port_that_is_not_a_voter(nodes: Nodes) -> None:
    node = await nodes.make()
    with raises("TV0310", match="not a Trivisor voter"):
        await Client.connect(f"tcp:127.0.0.1:{node.port}")


async def test_too_large_request_is_refused_and_the_connection_stays_open(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await connection.send(encode(FrameKind.REQUEST, 0, 1, bytes(REQUEST_LIMIT + 1)))
        assert (await connection.failure())[0] == "too-large"
        await connection.send(encode(FrameKind.REQUEST, 0, 2, GET, 1))
        assert (await connection.frame()).seq == 2


async def test_service_answers_a_request_that_is_not_http(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await connection.send(encode(FrameKind.REQUEST, 0, 1, b"nonsense"))
        frame = await connection.frame()
        assert frame.kind == FrameKind.RESPONSE
        assert decode_response(frame.payload)[1].startswith(b"HTTP/1.1 400 ")


async def test_slow_open_and_slow_frame_are_refused(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nheader = 0.3\nbody = 0.3\n")
    async with raw(node, opened=False) as silent, raw(node) as slow, raw(node) as idle:
        await slow.send(announce(1000) + b"abc")
        assert "no OPEN" in (await silent.failure())[1]
        assert "not completed in time" in (await slow.failure())[1]
        assert await silent.ended()
        assert await slow.ended()
        await idle.send(encode(FrameKind.REQUEST, 0, 1, GET, 1))
        assert (await idle.frame()).seq == 1, "between frames a client may take its time"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (b"stray bytes", "wrong port"),
        (get_frames(51, 51)[:-1] + b"?", "wrong port"),
        (encode(FrameKind.HELLO, 1, 1, b"\0\1\0"), "not expected"),
        (encode(FrameKind.REQUEST, 0, 50, GET, 1), "still under way"),
    ],
)
@pytest.mark.parametrize("half_closed", [False, True])
async def test_requests_before_malformed_bytes_are_answered_first(
    nodes: Nodes, more: bytes, word: str, half_closed: bool
) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "waits"
    async with raw(node) as connection:
        await connection.send(get_frames(1, 50) + more)
        await until(lambda: node.runner.waiting == 50)
        if half_closed:
            connection.client.half_close()
        for agent in node.agents:
            agent.release_answers()
        frames = [await connection.frame() for _ in range(50)]
        assert sorted(frame.seq for frame in frames) == list(range(1, 51))
        assert {frame.kind for frame in frames} == {FrameKind.RESPONSE}
        assert word in (await connection.failure())[1]
        assert await connection.ended()
    await until(lambda: not node.native.connections)


async def test_thousands_of_frames_in_one_segment_are_taken_a_few_in_a_turn(nodes: Nodes) -> None:
    node = await nodes.make("max_in_flight = 10000\n")
    async with raw(node) as connection:
        async with turns(lambda: node.runner.counters["requests"]) as seen:
            connection.client.writer.write(get_frames(1, 4000))
            await until(lambda: node.runner.counters["requests"] == 4000)
        assert max(seen) < 1000


async def test_slow_frame_that_makes_progress_is_taken(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nbody = 1.0\n")
    frame = encode(FrameKind.REQUEST, 0, 1, encode_request("PUT", "/kv/a", (), bytes(200_000)))
    async with raw(node) as connection:
        for at in range(0, len(frame), 20_000):
            await connection.send(frame[at : at + 20_000])
            await asyncio.sleep(0.15)  # a slow sender: longer than the limit in all
        assert (await connection.frame()).kind == FrameKind.RESPONSE


@pytest.mark.parametrize("limit", [2 << 20, native.WRITE_LIMIT])
async def test_a_client_that_never_reads_is_ended(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """At once above a limit of unread bytes, else after the deadline; its memory is released."""
    monkeypatch.setattr(native, "WRITE_LIMIT", limit)
    seen = []
    node = await nodes.make("[timing]\nbody = 0.3\n")
    assert (await node.ask("PUT", "/kv/big", bytes(1 << 20))).status == 201
    async with raw(node) as connection:
        connection.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        get = encode_request("GET", "/kv/big")
        for number in range(1, 7):
            connection.client.writer.write(encode(FrameKind.REQUEST, 0, number, get, 1))
        await until(lambda: node.runner.counters["requests"] == 7)
        assert await serves(node)

        def ended() -> bool:
            seen.append(node.native.bounds.unsent)
            return not node.native.connections

        await until(ended, "it is ended")
    assert max(seen) <= 7 << 20
    assert (node.native.bounds.held, node.native.bounds.unsent) == (0, 0)
    await until(lambda: node.runner.waiting == 0)


async def test_slow_reader_is_not_closed(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nbody = 1.0\n")
    assert (await node.ask("PUT", "/kv/big", bytes(1 << 20))).status == 201
    async with raw(node) as connection:
        writer, reader = connection.client.writer, connection.client.reader
        get = encode_request("GET", "/kv/big")
        for number in range(1, 5):
            writer.write(encode(FrameKind.REQUEST, 0, number, get, 1))
        size = 0
        while size < 4 << 20:  # longer than the limit in all, STEP bytes far sooner
            size += len(await reader.read(1 << 16))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)  # what a slow client is
            writer.transport.resume_reading()  # type: ignore[attr-defined]


async def test_half_sent_frames_of_many_clients_are_bounded(nodes: Nodes) -> None:
    node = await nodes.make()
    node.native.held_limit = 3 << 20
    half = encode(FrameKind.REQUEST, 0, 1, bytes(1_000_000))[:900_000]
    async with raw(node) as first, raw(node) as second, raw(node) as third, raw(node) as fourth:
        for connection in (first, second, third, fourth):
            await connection.send(half)
        assert (await fourth.failure())[0] == "overload"
        assert await fourth.ended()
        assert node.native.bounds.held <= 3 << 20
    await until(lambda: not node.native.connections)
    assert node.native.bounds.held == 0


async def test_requests_under_way_on_a_connection_are_bounded(nodes: Nodes) -> None:
    node = await nodes.make("max_in_flight = 10\n")
    for agent in node.agents:
        agent.mode = "says nothing"
    async with raw(node) as connection:
        for number in range(1, 11):
            await connection.send(encode(FrameKind.REQUEST, 0, number, GET, 1))
        await until(lambda: node.runner.waiting == 10)
        (server_side,) = node.native.connections
        await until(lambda: server_side._choked)
        # What is sent now waits in the socket; others are served meanwhile.
        await connection.send(encode(FrameKind.REQUEST, 0, 11, GET, 1))
        for agent in node.agents:
            agent.mode = "honest"
        async with await node.client() as client:
            with pytest.raises((NotExecuted, OutcomeUnknown, TimedOut)):
                # The replicas were silent about ten requests: answering this one breaks the order.
                await client.request("GET", "/kv/a")
        assert node.runner.counters["requests"] >= 11


async def test_lost_client_leaves_nothing_behind(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "says nothing"
    async with raw(node, tcp=True) as connection:
        await connection.send(encode(FrameKind.REQUEST, 0, 1, GET))
        await until(lambda: node.runner.waiting == 1)
        connection.client.reset()
        await until(lambda: node.runner.waiting == 0)
    assert not node.native.connections


async def test_failures_have_their_names(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.client() as client:
        for agent in node.agents[1:]:
            agent.mode = "says nothing"
        write = asyncio.create_task(client.request("PUT", "/kv/a", b"1"))
        await until(lambda: node.runner.waiting == 1)
        for agent in node.agents[1:]:
            agent.stop()
        with raises("TV0303"):
            await write
        with raises("TV0301", match="no majority"):
            await client.request("PUT", "/kv/a", b"1")


async def test_client_reports_a_stopped_voter(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.client() as client:
        await client.request("GET", "/kv/a")
        await node.native.stop()
        with pytest.raises(ConnectionFailed):
            await client.request("GET", "/kv/a")
