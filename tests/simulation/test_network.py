"""Simulated streams deliver bytes in order, delayed and split, and report closed ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from faultinject.simulation.loop import Process
from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.streams import KERNEL_BUFFER, Conditions, Transport


class Peer(asyncio.Protocol):
    """A protocol that keeps what it receives."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.events: list[str] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def eof_received(self) -> bool:
        self.events.append("end")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


class Net:
    """A server process and a client process."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = NetworkLoop(seed)
        self.sock = self.loop.listen("s")
        self.servers: list[Peer] = []
        self.server, self.client = Process("server"), Process("client")

    def serve(self) -> None:
        """Accept connections in the server process."""

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


@pytest.fixture
def net() -> Iterator[Net]:
    """Make a network, and dispose of its loop in the end."""
    made = Net()
    yield made
    made.loop.dispose()


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


def test_link_delivers_delayed_bytes_at_once_when_it_is_fast_again(net: Net) -> None:
    """Seeds 77001221 and others: otherwise it is slow during the next fault."""
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


def test_connection_waits_until_it_is_served(net: Net) -> None:
    peer = net.connect()
    peer.transport.write(b"hello")
    net.wait()
    assert peer.pieces == []
    net.serve()
    net.wait()
    assert net.servers[0].pieces == [b"hello"]


def test_killed_server_ends_its_connections_and_not_its_socket(net: Net) -> None:
    net.serve()
    peer = net.connect()
    net.wait()
    net.server.kill()
    net.wait()
    assert peer.events == ["end", "lost"]
    assert net.servers[0].events == []
    net.server = Process("server 2")
    net.serve()
    net.connect().transport.write(b"x")
    net.wait()
    assert net.servers[1].pieces == [b"x"]


def test_close_sends_the_written_bytes_first(net: Net) -> None:
    net.serve()
    peer = net.connect()
    peer.transport.write(b"last bytes")
    peer.transport.close()
    net.wait()
    assert net.servers[0].pieces == [b"last bytes"]
    assert net.servers[0].events == ["end", "lost"]
    assert peer.events == ["lost"]


def test_writer_is_paused_above_the_high_water_mark(net: Net) -> None:
    net.serve()
    peer = net.connect()
    net.wait()
    net.servers[0].transport.pause_reading()
    peer.transport.write(bytes(100_000))
    assert peer.events == ["pause"]
    assert peer.transport.get_write_buffer_size() == 100_000 - KERNEL_BUFFER
    net.wait()
    assert net.servers[0].pieces == []
    net.servers[0].transport.resume_reading()
    net.wait()
    assert sum(map(len, net.servers[0].pieces)) == 100_000
    assert peer.events == ["pause", "resume"]


def test_connect_raises_when_there_is_no_socket(net: Net) -> None:
    made: Any = net.loop.create_unix_connection(Peer, "elsewhere")
    with pytest.raises(FileNotFoundError):
        net.loop.run_until_complete(net.loop.spawn(net.client, made))


def test_write_is_cut_in_half_when_the_process_dies_in_it(net: Net) -> None:
    net.serve()
    peer = net.connect()
    net.client.calls_left = 1

    async def write() -> None:
        peer.transport.write(b"12345678")

    net.loop.spawn(net.client, write())
    net.wait()
    assert not net.client.alive
    assert net.servers[0].pieces == [b"1234"]
    assert net.servers[0].events == ["end", "lost"]
