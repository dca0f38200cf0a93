"""The simulated network: the loop with its streams, and listening sockets that outlive a voter."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from faultinject.simulation.loop import Process, SimLoop, current_process
from faultinject.simulation.streams import Conditions, Pipe, Socket, Transport

__all__ = ["Listener", "NetworkLoop"]

ACCEPT_DELAY = 0.0002
"""Seconds from a listening socket that has a server to an accepted connection."""


class Listener:
    """A listening socket, held by the supervisor: connections wait while no voter serves it."""

    def __init__(self, loop: NetworkLoop, path: str) -> None:
        self.path = path
        self.conditions = Conditions(0.00002, 0.0005)
        self._loop = loop
        self._server: tuple[Process, Callable[[], asyncio.Protocol]] | None = None
        self._waiting: deque[Transport] = deque()
        self.on_accept: Callable[[Transport, Process], None] | None = None

    def serve(self, process: Process, factory: Callable[[], asyncio.Protocol]) -> None:
        """A process accepts connections from now on."""
        self._server = (process, factory)
        process.handlers.append(self.close)
        while self._waiting:
            self._accept(self._waiting.popleft())

    def close(self) -> None:
        """Nobody accepts any more; the socket stays."""
        self._server = None

    def connect(self, client: Transport, random: Random) -> None:
        """A client connects: at once, whether it is accepted yet or not."""
        out = Pipe(self._loop, random, self.conditions, _Nobody())
        out.pause(True)  # until it is accepted
        client.join(out, Pipe(self._loop, random, self.conditions, client, client.context))
        if self._server is None:
            self._waiting.append(client)
        else:
            self._accept(client)

    def _accept(self, client: Transport) -> None:
        if self._server is None or client.is_closing():
            return
        process, factory = self._server
        server = Transport(self._loop, process, _NO_PROTOCOL, Socket(self.path, uid=1000))
        client.out.lead(server, process.context)
        server.join(client.into, client.out)
        if self.on_accept is not None:
            self.on_accept(server, process)

        def made() -> None:
            server.set_protocol(protocol := factory())
            protocol.connection_made(server)
            server.resume_reading()

        self._loop.call_later(ACCEPT_DELAY, made, context=process.context)


class _Nobody:
    """The end of a pipe that nobody has accepted yet."""

    def take(self, data: bytes) -> None:
        raise AssertionError("bytes for a connection that is not accepted")

    def ended(self, error: Exception | None) -> None:
        """Closed before it was accepted."""


_NO_PROTOCOL = asyncio.Protocol()


class _Server:
    """What a front end gets for its listening socket."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def close(self) -> None:
        """asyncio: accept no more."""
        self._listener.close()

    async def wait_closed(self) -> None:
        """asyncio: it is closed."""


class NetworkLoop(SimLoop):
    """The loop with its streams."""

    def __init__(self, seed: int, most: int = 1_000_000) -> None:
        super().__init__(most)
        self.listeners: dict[str, Listener] = {}
        self._seed = seed
        self._connections = 0

    def random(self, *name: object) -> Random:
        """A random source of its own for whatever is named."""
        return Random(f"{self._seed} {name}")

    def listen(self, path: str) -> Socket:
        """Make a listening socket."""
        self.listeners[path] = Listener(self, path)
        return Socket(path)

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, **more: Any) -> Any:
        """asyncio: accept connections on a listening socket (``sock``)."""
        sock, process = more["sock"], current_process()
        if process is None:
            raise RuntimeError("only a process can serve")
        listener = self.listeners[sock.name]
        listener.serve(process, protocol_factory)
        return _Server(listener)

    async def create_server(self, protocol_factory: Any, *where: Any, **more: Any) -> Any:
        """asyncio: the same as for a unix socket."""
        return await self.create_unix_server(protocol_factory, **more)

    async def create_unix_connection(
        self, protocol_factory: Any, path: Any = None, **more: Any
    ) -> Any:
        """asyncio: connect to a listening socket."""
        listener, process = self.listeners.get(path), current_process()
        if process is None:
            raise RuntimeError("only a process can connect")
        process.enter_call()
        if listener is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        self._connections += 1
        protocol = protocol_factory()
        transport = Transport(self, process, protocol, Socket(""))
        listener.connect(transport, self.random("stream", process.name, self._connections))
        await self.made(protocol, transport)
        return transport, protocol

    async def made(self, protocol: asyncio.Protocol, transport: Transport) -> None:
        """Tell a protocol in the next turn that it has its transport, as asyncio does."""
        waiter = self.create_future()
        self.call_soon(protocol.connection_made, transport)
        self.call_soon(waiter.set_result, None)
        await waiter
