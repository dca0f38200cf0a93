"""What all front ends have in common: listening sockets, client connections, and their bounds.

A connection is bounded in two ways.  In time: it is in phases (``Phase``), each with a limit
(``voter.frontend.bounds``).  In memory: ``held`` counts the bytes of incomplete requests and
``unsent`` the bytes of replies that clients do not read, over all connections of a front end.

A connection that the voter ends *lingers*: the voter shuts down its sending side and discards what
still arrives.  Closing at once, with bytes of the client unread, makes the kernel send a reset,
and that can destroy the last reply before the client has read it.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

from voter.frontend.bounds import HELD_LIMIT, LINGER, STEP, UNSENT_LIMIT, Bounds
from voter.sockets import BACKLOG

__all__ = ["FrontEndConnection", "FrontEnd", "Phase"]


class Phase(StrEnum):
    """What the voter waits for on a connection.  A connection may be in several phases."""

    IDLE = "idle"  # the next request (HTTP)
    HANDSHAKE = "handshake"  # OPEN (native)
    HEAD = "head"  # the rest of a request line with headers (HTTP)
    BODY = "body"  # the rest of a body (HTTP) or of a frame (native)
    UNREAD = "unread"  # the client must read STEP bytes of its replies
    LINGER = "linger"  # the client must close


class FrontEndConnection(asyncio.Protocol):
    """One client of a front end."""

    def __init__(self, server: FrontEnd) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._paused = False  # the client does not read its replies
        self._eof = False  # the client sends no more
        self._deaf = False  # what the client sends is discarded
        self._held = 0  # our part of bounds.held, in bytes
        self._unsent = 0  # our part of bounds.unsent, in bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed.  What the client has ordered stays in the order."""
        self._transport = None
        self._server.connections.discard(self)
        if not self._server.connections:
            self._server.empty.set()
        for phase in Phase:
            self._server.bounds.leave(self, phase)
        self._count_held(0)
        self._count_unsent(0)

    def pause_writing(self) -> None:
        """asyncio: the client does not read as fast as the voter writes."""
        self._paused = True
        if self._transport is not None:
            self._server.bounds.enter(self, Phase.UNREAD)
            self._count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """asyncio: the client has read enough."""
        self._paused = False
        self._server.bounds.leave(self, Phase.UNREAD)
        self._count_unsent(0)

    def expire(self, phase: Phase) -> None:
        """End a connection that is late; a slow reader that read STEP bytes gets more time."""
        transport = self._transport
        if transport is None:
            return
        left = transport.get_write_buffer_size()
        if phase is Phase.UNREAD and left <= self._unsent - STEP:
            self._count_unsent(left)
            self._server.bounds.enter(self, Phase.UNREAD)
        else:
            transport.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _linger(self) -> None:
        """Send no more and discard what arrives, until the client closes or LINGER is over."""
        self._deaf = True
        for phase in Phase:
            self._server.bounds.leave(self, phase)
        self._count_held(0)
        if self._transport is not None:
            self._server.bounds.enter(self, Phase.LINGER)
            self._transport.write_eof()
            self._transport.resume_reading()

    def _count_held(self, held: int) -> None:
        self._server.bounds.held += held - self._held
        self._held = held

    def _count_unsent(self, unsent: int) -> None:
        self._server.bounds.unsent += unsent - self._unsent
        self._unsent = unsent
        if unsent and self._server.bounds.unsent > UNSENT_LIMIT:
            self.abort()


class FrontEnd(ABC):
    """Serves clients on any number of listening sockets.  ``limits`` of phases are in seconds."""

    def __init__(self, limits: Mapping[Phase, float]) -> None:
        self.connections: set[Any] = set()
        self.empty = asyncio.Event()
        """Set when the last connection is closed."""
        self.held_limit = HELD_LIMIT
        self.bounds: Bounds[FrontEndConnection, Phase] = Bounds(
            {**limits, Phase.LINGER: LINGER}, lambda connection, phase: connection.expire(phase)
        )
        self._servers: list[asyncio.Server] = []

    @abstractmethod
    def connect(self) -> FrontEndConnection:
        """Return the protocol of a new connection."""

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        loop = asyncio.get_running_loop()
        listen = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._servers.append(await listen(self.connect, sock=sock))
        sock.listen(BACKLOG)  # asyncio has set 100, and accepts only that many in one turn

    async def stop(self) -> None:
        """Close the listening sockets and all connections."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.abort()
        self.bounds.stop()
