"""Native sessions: a numbered request is executed once, however often and wherever it is sent."""

from __future__ import annotations

import asyncio

import pytest

from guests.protocol.message import Reply, encode_request
from guests.protocol.wire import FLAG_ONCE, FLAG_READ_ONLY, Frame, FrameKind, encode
from tests.voter.conftest import Nodes
from tests.voter.frontend.raw import Raw, raw
from tests.waiting import until
from voter.native_protocol import decode_failure, decode_response, encode_numbers

ADD = encode_request("POST", "/kv/n?increment=1")
PUT = encode_request("PUT", "/kv/n", (), b"0")


async def open_session(connection: Raw, number: int = 1) -> bytes:
    await connection.send(encode(FrameKind.SESSION, 0, number))
    frame = await connection.frame()
    assert (frame.kind, frame.seq) == (FrameKind.SESSION, number)
    assert len(frame.payload) == 16
    return frame.payload


async def select_session(connection: Raw, session: bytes) -> None:
    await connection.send(encode(FrameKind.SESSION, 0, 7, session))
    frame = await connection.frame()
    assert frame == Frame(FrameKind.SESSION, 0, 0, 7, session)


def numbered(
    seq: int, number: int, request: bytes = ADD, *, done: int = 0, flags: int = 0
) -> bytes:
    payload = encode_numbers(done, number) + request
    return encode(FrameKind.REQUEST, 0, seq, payload, FLAG_ONCE | flags)


async def reply(connection: Raw) -> tuple[int, bytes]:
    """The next frame must be a RESPONSE: its place and body."""
    frame = await connection.frame()
    assert frame.kind == FrameKind.RESPONSE, frame
    vote, data = decode_response(frame.payload)
    return vote.seq, Reply.decode(data).body


async def failure(connection: Raw) -> str:
    frame = await connection.frame()
    assert frame.kind == FrameKind.FAILURE, frame
    return decode_failure(frame.payload)[0]


async def test_a_retry_gets_the_same_reply_on_the_same_connection_and_on_another(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    async with raw(node) as first, raw(node) as second:
        session = await open_session(first)
        await first.send(numbered(5, 1))
        first_reply = await reply(first)
        assert first_reply[1] == b"1"
        await first.send(numbered(6, 1))
        assert await reply(first) == first_reply
        await select_session(second, session)
        await second.send(numbered(1, 1))
        assert await reply(second) == first_reply
        await second.send(numbered(2, 2, done=1))
        assert (await reply(second))[1] == b"2"
        await first.send(numbered(7, 1))
        assert await failure(first) == "session-expired"
    await until(lambda: [agent.orders for agent in node.agents] == [2, 2, 2])


async def test_retry_joins_the_request_under_way(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node, tcp=True) as first, raw(node, tcp=True) as second:
        session = await open_session(first)
        await select_session(second, session)
        for agent in node.agents:
            agent.mode = "waits"
        await first.send(numbered(1, 1))
        await until(lambda: node.runner.waiting == 1)
        await second.send(numbered(1, 1) + numbered(2, 1))
        await until(lambda: node.runner.waiting == 3)
        first.client.reset()
        await until(lambda: node.runner.waiting == 2)
        for agent in node.agents:
            agent.release_answers()
        first_reply = [await reply(second) for _ in range(2)]
        assert first_reply[0] == first_reply[1]
        assert first_reply[0][1] == b"1"
    await until(lambda: [agent.orders for agent in node.agents] == [1, 1, 1])


async def test_request_outside_its_session_is_never_executed(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\nsession_window = 4\n")
    async with raw(node) as connection, raw(node, tcp=True) as stranger:
        session = await open_session(connection)
        await select_session(stranger, session)
        await stranger.send(numbered(1, 1))
        assert await failure(stranger) == "session-expired"  # another caller's
        await connection.send(numbered(1, 5) + numbered(2, 0) + numbered(3, 3, done=3))
        assert [await failure(connection) for _ in range(3)] == ["session-expired"] * 3
        await select_session(connection, bytes(16))
        await connection.send(numbered(4, 1))
        assert await failure(connection) == "session-expired"
        await select_session(connection, session)
        await connection.send(numbered(5, 4))
        assert (await reply(connection))[1] == b"1"
        await connection.send(numbered(6, 4, PUT))
        assert await failure(connection) == "key-reused"
        await connection.send(numbered(7, 4))
        assert (await reply(connection))[1] == b"1"
    await until(lambda: [agent.orders for agent in node.agents] == [1, 1, 1])


async def test_a_read_has_no_place_in_the_session(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await open_session(connection)
        get = encode_request("GET", "/kv/none")
        await connection.send(
            numbered(1, 1, get, flags=FLAG_READ_ONLY) + numbered(2, 1, get, flags=FLAG_READ_ONLY)
        )
        assert (await reply(connection))[0] != (await reply(connection))[0]
        await connection.send(numbered(3, 1))
        assert (await reply(connection))[1] == b"1"


async def test_the_first_session_counts_until_another_is_named(nodes: Nodes) -> None:
    """So that requests never belong to one that their client does not know of yet."""
    node = await nodes.make()
    async with raw(node) as connection:
        first = await open_session(connection)
        other = await open_session(connection, 2)
        assert first != other
        await connection.send(numbered(1, 1))
        assert (await reply(connection))[1] == b"1"
        await select_session(connection, other)
        await connection.send(numbered(2, 1))
        assert (await reply(connection))[1] == b"2"
        await select_session(connection, first)
        await connection.send(numbered(3, 1))
        assert (await reply(connection))[1] == b"1"


@pytest.mark.parametrize(
    "data",
    [
        numbered(1, 1),  # in no session
        encode(FrameKind.SESSION, 0, 1, bytes(15)),
        encode(FrameKind.SESSION, 0, 1, bytes(17)),
        encode(FrameKind.SESSION, 0, 1, bytes(16))
        + encode(FrameKind.REQUEST, 0, 1, bytes(15), FLAG_ONCE),
    ],
)
async def test_malformed_session_frames_end_the_connection(nodes: Nodes, data: bytes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await connection.send(data)
        frame = await connection.frame()
        if frame.kind == FrameKind.SESSION:
            frame = await connection.frame()
        assert decode_failure(frame.payload)[0] == "protocol"
        assert await connection.ended()
    async with raw(node, opened=False) as connection:
        await connection.send(encode(FrameKind.SESSION, 0, 1))
        assert await failure(connection) == "protocol"
    assert node.runner.waiting == 0


async def test_half_closed_client_gets_its_session(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await connection.send(encode(FrameKind.SESSION, 0, 1))
        connection.client.half_close()
        assert (await connection.frame()).kind == FrameKind.SESSION
        assert await connection.ended()


async def test_without_a_majority_retries_are_answered_and_the_rest_refused(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await open_session(connection)
        await connection.send(numbered(1, 1))
        first_reply = await reply(connection)
        for agent in node.agents[1:]:
            agent.stop()
        await node.until_status("refusing")
        await connection.send(numbered(2, 1) + numbered(3, 2))
        assert await reply(connection) == first_reply
        assert await failure(connection) == "not-executed"


async def test_retry_joins_a_write_whose_vote_had_no_majority(nodes: Nodes) -> None:
    node = await nodes.make()
    async with raw(node) as connection:
        await open_session(connection)
        for agent in node.agents[1:]:
            agent.mode = "says nothing"
        await connection.send(numbered(1, 1))
        await until(lambda: node.agents[1].orders == 1)
        for agent in node.agents[1:]:
            agent.cut()
            agent.restart()
        assert await failure(connection) == "outcome-unknown"
        async with asyncio.timeout(10):
            await node.until_status("ready")
            await connection.send(numbered(2, 1))
            assert (await reply(connection))[1] == b"1"
            await connection.send(numbered(3, 2))
            assert (await reply(connection))[1] == b"2"
