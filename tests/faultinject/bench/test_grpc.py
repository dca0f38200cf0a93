"""The small gRPC client, before a server of a few lines that says what a test wants."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from faultinject.bench import grpc

HEAD = struct.Struct(">BHBBI")
Handler = Callable[["Server", int, bytes], Awaitable[None]]


class Server:
    """Reads frames; calls ``handle`` with each message that is complete."""

    def __init__(self, handle: Handler) -> None:
        self.handle = handle
        self.seen: list[tuple[int, int, int, bytes]] = []
        self.writer: asyncio.StreamWriter
        self.over = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        try:
            assert await reader.readexactly(len(grpc.PREFACE)) == grpc.PREFACE
            self.send(grpc.SETTINGS, 0, 0, b"")
            while True:
                high, low, kind, flags, stream = HEAD.unpack(await reader.readexactly(9))
                payload = await reader.readexactly(high << 16 | low)
                self.seen.append((kind, flags, stream, payload))
                if kind == grpc.DATA:
                    await self.handle(self, stream, payload[5:])
        except (asyncio.IncompleteReadError, ConnectionError):
            self.over.set()
        finally:
            writer.transport.abort()

    def send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self.writer.write(HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload)

    def answer(self, stream: int, message: bytes) -> None:
        data = b"\0" + len(message).to_bytes(4) + message
        self.send(grpc.HEADERS, grpc.END_HEADERS, stream, b"\x88")
        self.send(grpc.DATA, 0, stream, data[:3])
        self.send(grpc.DATA, 0, stream, data[3:])
        self.send(grpc.HEADERS, grpc.END_HEADERS | grpc.END_STREAM, stream, b"\x88")


async def echo(server: Server, stream: int, message: bytes) -> None:
    server.answer(stream, message)


Connect = Callable[[Handler], Awaitable[tuple[Server, grpc.Connection]]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    open_now: list[tuple[asyncio.Server, Server, grpc.Connection]] = []

    async def start(handle: Handler) -> tuple[Server, grpc.Connection]:
        server = Server(handle)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        connection = await grpc.Connection.open("127.0.0.1", port, "/test/Echo")
        open_now.append((listening, server, connection))
        return server, connection

    yield start
    for listening, server, connection in open_now:
        connection.close()
        await server.over.wait()
        listening.close()
        await listening.wait_closed()


async def test_many_calls_at_once_get_their_own_answers(connect: Connect) -> None:
    server, connection = await connect(echo)
    messages = [b"%d" % number for number in range(100)]
    assert await asyncio.gather(*(connection.call(each) for each in messages)) == messages
    streams = [stream for kind, _, stream, _ in server.seen if kind == grpc.HEADERS]
    assert streams == list(range(1, 200, 2))
    blocks = [payload for kind, _, _, payload in server.seen if kind == grpc.HEADERS]
    assert b"/test/Echo" in blocks[0]
    assert set(blocks[1:]) == {bytes([0x83, 0x86, 0xC1, 0xC0, 0xBF, 0xBE])}


async def test_a_call_that_fails_is_an_error_and_the_next_one_goes_on(connect: Connect) -> None:
    async def fail_first(server: Server, stream: int, message: bytes) -> None:
        if message == b"trailers":
            server.send(grpc.HEADERS, grpc.END_HEADERS | grpc.END_STREAM, stream, b"no")
        elif message == b"reset":
            server.send(grpc.RESET, 0, stream, bytes(4))
        else:
            server.answer(stream, message)

    _, connection = await connect(fail_first)
    for bad in (b"trailers", b"reset"):
        with pytest.raises(grpc.Error, match="a call failed"):
            await connection.call(bad)
    assert await connection.call(b"good") == b"good"


async def test_what_the_window_does_not_let_through_waits(connect: Connect) -> None:
    got = 0

    async def open_late(server: Server, stream: int, message: bytes) -> None:
        nonlocal got
        got += 1
        if got == 4:  # the four fill the window of 65,535 bytes as far as they can
            assert len(server.seen) < 2 * 6 + 4
            server.send(grpc.WINDOW, 0, 0, (1 << 20).to_bytes(4))
        server.answer(stream, b"%d" % len(message))

    _, connection = await connect(open_late)
    calls = [connection.call(bytes(grpc.LARGEST_MESSAGE)) for _ in range(6)]
    assert await asyncio.gather(*calls) == [b"16000"] * 6
    with pytest.raises(ValueError, match="16000 at most"):
        connection.call(bytes(grpc.LARGEST_MESSAGE + 1))


async def test_settings_and_pings_are_acknowledged(connect: Connect) -> None:
    async def ping(server: Server, stream: int, message: bytes) -> None:
        if message == b"first":
            server.send(grpc.PING, 0, 0, b"abcdefgh")
        server.answer(stream, message)

    server, connection = await connect(ping)
    await connection.call(b"first")
    await connection.call(b"second")
    assert (grpc.PING, grpc.ACK, 0, b"abcdefgh") in server.seen
    assert (grpc.SETTINGS, grpc.ACK, 0, b"") in server.seen


@pytest.mark.parametrize("how", ["goes away", "closes"])
async def test_a_connection_that_ends_fails_what_is_under_way(connect: Connect, how: str) -> None:
    async def end(server: Server, stream: int, message: bytes) -> None:
        if how == "closes":
            server.writer.close()
        else:
            server.send(grpc.GOAWAY, 0, 0, bytes(8) + b"enough")

    _, connection = await connect(end)
    with pytest.raises(grpc.Error, match=r"goes away: b'enough'|closed the connection"):
        await connection.call(b"")
    with pytest.raises(grpc.Error):
        connection.call(b"")


def test_protobuf_fields() -> None:
    message = grpc.encode_bytes(1, b"key") + grpc.encode_bytes(2, bytes(300)) + b"\x18\xac\x02"
    assert dict(grpc.fields(message)) == {1: b"key", 2: bytes(300), 3: 300}
    with pytest.raises(ValueError, match="type 5"):
        list(grpc.fields(b"\x0d\0\0\0\0"))
    with pytest.raises(IndexError):
        list(grpc.fields(b"\x18\xac"))
