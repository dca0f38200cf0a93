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
"""Seconds that accepting a connection takes."""


class Listener:
    """A listening socket, owned by the supervisor: connections wait while no voter serves it."""

    def __init__(self, loop: NetworkLoop, path: str) -> None:
        self.path = path
        self.conditions = Conditions(0.00002, 0.0005)
        self._loop = loop
        self._server: tuple[Process, Callable[[], asyncio.Protocol]] | None = None
        self._waiting: deque[Transport] = deque()
        self.on_accept: Callable[[Transport, Process], None] | None = None

    def serve(self, process: Process, factory: Callable[[], asyncio.Protocol]) -> None:
        """Have a process accept connections from now on."""
        self._server = (process, factory)
        process.handlers.append(self.close)
        while self._waiting:
            self._accept(self._waiting.popleft())

    def close(self) -> None:
        """Accept no more connections; the socket stays."""
        self._server = None

    def connect(self, client: Transport, random: Random) -> None:
        """Connect a client, at once, whether it is accepted yet or not."""
        out = Pipe(self._loop, random, self.conditions, _NotAccepted())
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
        client.out.redirect(server, process.context)
        server.join(client.into, client.out)
        if self.on_accept is not None:
            self.on_accept(server, process)

        def made() -> None:
            server.set_protocol(protocol := factory())
            protocol.connection_made(server)
            server.resume_reading()

        self._loop.call_later(ACCEPT_DELAY, made, context=process.context)


class _NotAccepted:
    """The receiving end of a connection that no process has accepted yet."""

    def take(self, data: bytes) -> None:
        raise AssertionError("bytes for a connection that is not accepted")

    def ended(self, error: Exception | None) -> None:
        """Do nothing: the client closed before it was accepted."""


_NO_PROTOCOL = asyncio.Protocol()


class _Server:
    """The server object that a front end gets for its listening socket."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    async def wait_closed(self) -> None:
        """Return at once."""


class NetworkLoop(SimLoop):
    """The loop with its streams and listening sockets."""

    def __init__(self, seed: int, max_steps: int = 1_000_000) -> None:
        super().__init__(max_steps)
        self.listeners: dict[str, Listener] = {}
        self._seed = seed
        self._connections = 0

    def random(self, *name: object) -> Random:
        """Return a new random source, which depends on the seed and this name alone."""
        return Random(f"{self._seed} {name}")

    def listen(self, path: str) -> Socket:
        """Make a listening socket."""
        self.listeners[path] = Listener(self, path)
        return Socket(path)

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, **more: Any) -> Any:
        """Accept connections on a listening socket (``sock``)."""
        sock, process = more["sock"], current_process()
        if process is None:
            raise RuntimeError("only a process can serve")
        listener = self.listeners[sock.name]
        listener.serve(process, protocol_factory)
        return _Server(listener)

    async def create_server(self, protocol_factory: Any, *where: Any, **more: Any) -> Any:
        """Accept connections on a listening socket, as for a unix socket."""
        return await self.create_unix_server(protocol_factory, **more)

    async def create_unix_connection(
        self, protocol_factory: Any, path: Any = None, **more: Any
    ) -> Any:
        """Connect to a listening socket."""
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
        """Call ``connection_made`` of a protocol in the next turn, as asyncio does."""
        waiter = self.create_future()
        self.call_soon(protocol.connection_made, transport)
        self.call_soon(waiter.set_result, None)
        await waiter
