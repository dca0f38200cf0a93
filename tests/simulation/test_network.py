"""Simulated streams: bytes arrive in order, late, in other pieces; ends see each other go."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from faultinject.simulation.loop import Process
from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.streams import KERNEL_BUFFER, Conditions, Transport


class Peer(asyncio.Protocol):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.said: list[str] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def eof_received(self) -> bool:
        self.said.append("end")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.said.append("lost")

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


class Net:
    """A server's process and a client's."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = NetworkLoop(seed)
        self.sock = self.loop.listen("s")
        self.servers: list[Peer] = []
        self.server, self.client = Process("server"), Process("client")

    def serve(self) -> None:
        """Have the server's process accept connections."""

        def factory() -> Peer:
            self.servers.append(peer := Peer())
            return peer

        made: Any = self.loop.create_unix_server(factory, sock=self.sock)
        self.loop.spawn(self.server, made)

    def connect(self) -> Peer:
        """Connect the client."""
        made: Any = self.loop.create_unix_connection(Peer, "s")
        return cast(Peer, self.loop.run_until_complete(self.loop.spawn(self.client, made))[1])

    def wait(self, seconds: float = 1.0) -> None:
        """Let time pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))


def test_bytes_arrive_in_order_and_in_pieces() -> None:
    counts = set()
    for seed in range(5):
        net = Net(seed)
        net.loop.listeners["s"].conditions = Conditions(0.001, 0.01, 0.7)
        net.serve()
        peer = net.connect()
        data = bytes(range(256))
        peer.transport.write(data[:100])
        peer.transport.write(data[100:])
        net.wait()
        assert b"".join(net.servers[0].pieces) == data
        counts.add(len(net.servers[0].pieces))
        net.loop.dispose()
    assert len(counts) > 1


def test_a_link_that_is_slow_no_more_delivers_what_was_under_way_at_once() -> None:
    """Seeds 77001221 and others: else it is slow after the fault, beside the next fault."""
    net = Net()
    net.serve()
    peer = net.connect()
    net.wait()
    net.loop.listeners["s"].conditions.stall = 30.0
    peer.transport.write(b"late")
    net.wait()
    assert net.servers[0].pieces == []
    net.loop.listeners["s"].conditions.stall = 0.0
    cast(Transport, peer.transport).out.wake()
    net.wait()
    assert net.servers[0].pieces == [b"late"]
    net.loop.dispose()


def test_a_connection_waits_until_somebody_serves() -> None:
    net = Net()
    peer = net.connect()
    peer.transport.write(b"hello")
    net.wait()
    assert peer.pieces == []
    net.serve()
    net.wait()
    assert net.servers[0].pieces == [b"hello"]
    net.loop.dispose()


def test_a_killed_server_ends_its_connections_and_not_its_socket() -> None:
    net = Net()
    net.serve()
    peer = net.connect()
    net.wait()
    net.server.kill()
    net.wait()
    assert peer.said == ["end", "lost"]
    assert net.servers[0].said == []
    net.server = Process("server 2")
    net.serve()
    net.connect().transport.write(b"x")
    net.wait()
    assert net.servers[1].pieces == [b"x"]
    net.loop.dispose()


def test_closing_sends_what_was_written_first() -> None:
    net = Net()
    net.serve()
    peer = net.connect()
    peer.transport.write(b"last words")
    peer.transport.close()
    net.wait()
    assert net.servers[0].pieces == [b"last words"]
    assert net.servers[0].said == ["end", "lost"]
    assert peer.said == ["lost"]
    net.loop.dispose()


def test_who_writes_too_much_is_told_to_wait() -> None:
    net = Net()
    net.serve()
    peer = net.connect()
    net.wait()
    net.servers[0].transport.pause_reading()
    peer.transport.write(bytes(100_000))
    assert peer.said == ["pause"]
    assert peer.transport.get_write_buffer_size() == 100_000 - KERNEL_BUFFER
    net.wait()
    assert net.servers[0].pieces == []
    net.servers[0].transport.resume_reading()
    net.wait()
    assert sum(map(len, net.servers[0].pieces)) == 100_000
    assert peer.said == ["pause", "resume"]
    net.loop.dispose()


def test_there_must_be_a_socket() -> None:
    net = Net()
    made: Any = net.loop.create_unix_connection(Peer, "elsewhere")
    with pytest.raises(FileNotFoundError):
        net.loop.run_until_complete(net.loop.spawn(net.client, made))
    net.loop.dispose()


def test_half_of_the_last_write_goes_out() -> None:
    net = Net()
    net.serve()
    peer = net.connect()
    net.client.calls_left = 1

    async def write() -> None:
        peer.transport.write(b"12345678")

    net.loop.spawn(net.client, write())
    net.wait()
    assert not net.client.alive
    assert net.servers[0].pieces == [b"1234"]
    assert net.servers[0].said == ["end", "lost"]
    net.loop.dispose()
