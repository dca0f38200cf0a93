"""What all front ends have in common: listening sockets, client connections, and their bounds.

A connection is bounded in three ways.  In time: it is in phases (``Phase``), each with a limit
(``voter.frontend.bounds``).  In memory: ``held`` counts the bytes of incomplete requests and
``unsent`` the bytes of replies that clients do not read, over all connections of a front end.  In
work: ``advance`` takes a small, bounded step, whatever the client has sent.  A connection with more
to do waits in the front end's queue (``FrontEnd.schedule``), which gets TURN seconds of each turn
of the loop.  Meanwhile the voter reads no more than READ_AHEAD from that client.

A connection that the voter ends *lingers*: the voter shuts down its sending side and discards what
still arrives.  Closing at once, with bytes of the client unread, makes the kernel send a reset,
and that can destroy the last reply before the client has read it.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from voter.frontend.bounds import BODY_STEP, HELD_LIMIT, LINGER, STEP, UNSENT_LIMIT, Bounds
from voter.sockets import BACKLOG, origin_of

if TYPE_CHECKING:
    from voter.access import Access
    from voter.frontend.handshake import Handshakes

__all__ = ["ACCEPTED", "READ_AHEAD", "FrontEnd", "FrontEndConnection", "Phase", "caller_in"]

READ_AHEAD = 64 << 10
"""Bytes of requests that wait; above that the voter stops reading from the client."""
ACCEPTED = 8
"""Connections that are accepted in one turn of the loop: each costs about 0.2 ms."""
TURN = 0.001
"""Seconds of a turn of the loop for connections that have more to do; at least one advances."""


class Phase(StrEnum):
    """What the voter waits for on a connection.  A connection may be in several phases."""

    IDLE = "idle"  # the next request (HTTP)
    HANDSHAKE = "handshake"  # OPEN (native)
    HEAD = "head"  # the rest of a request line with headers (HTTP)
    BODY = "body"  # the rest of a body (HTTP) or of a frame (native)
    UNREAD = "unread"  # the client must read STEP bytes of its replies
    LINGER = "linger"  # the client must close


class FrontEndConnection(asyncio.Protocol, ABC):
    """One client of a front end."""

    def __init__(self, server: FrontEnd) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._paused = False  # the client does not read its replies
        self._eof = False  # the client sends no more
        self._deaf = False  # what the client sends is discarded
        self._held = 0  # our part of bounds.held, in bytes
        self._unsent = 0  # our part of bounds.unsent, in bytes
        self._extended = 0  # times that the deadline of the body was extended
        self._tls = False
        self._origin = ""  # for the limit on connections, if there is one
        self.access: Access | None = None
        """Who may send requests; None: who has connected."""
        self.scheduled = False
        """Whether it waits in the front end's queue for its next step."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        server = self._server
        self._transport = cast(asyncio.Transport, transport)
        server.connections.add(self)
        if server.access is not None or server.most_from_one is not None:
            sock = transport.get_extra_info("socket")
            self._tls = transport.get_extra_info("sslcontext") is not None
            if server.access is not None and sock.family != socket.AF_UNIX:
                self.access = server.access if server.access.requires_token else None
            if server.most_from_one is not None:
                self._origin = origin_of(sock)
                server.origins[self._origin] = server.origins.get(self._origin, 0) + 1

    @property
    def crowded(self) -> str:
        """Why the connection is one too many from its address; empty if it is not."""
        most = self._server.most_from_one
        if most is None or self._server.origins[self._origin] <= most:
            return ""
        return f"{most} connections from {self._origin} are open already: close one first"

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed.  What the client has ordered stays in the order."""
        self._transport = None
        self._server.connections.discard(self)
        if self._origin:
            self._server.origins[self._origin] -= 1
            if not self._server.origins[self._origin]:
                del self._server.origins[self._origin]
            self._origin = ""
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

    @abstractmethod
    def advance(self) -> None:
        """Take the next step of what the client has sent: about a millisecond's work at most."""

    def expire(self, phase: Phase) -> None:
        """End a connection that is late, unless the client makes progress.

        A slow reader must have read STEP bytes since the last time, a slow sender must have sent
        BODY_STEP bytes for each time.
        """
        transport = self._transport
        if transport is None:
            return
        left = transport.get_write_buffer_size()
        if phase is Phase.UNREAD and left <= self._unsent - STEP:
            self._count_unsent(left)
            self._server.bounds.enter(self, phase)
        elif phase is Phase.BODY and self._held >= BODY_STEP * (self._extended + 1):
            self._extended += 1
            self._server.bounds.enter(self, phase)
        else:
            self._late(phase)

    def _late(self, phase: Phase) -> None:
        """End a connection that is late."""
        self.abort()

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
        if self._transport is not None and (self._eof or self._tls):
            self._transport.close()  # TLS waits for the client's own end, for LINGER at most
        elif self._transport is not None:
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


def caller_in(certificate: Mapping[str, Any]) -> bytes:
    """Return the caller that a client's certificate names: ``cert:`` and its common name."""
    from voter.tls import name_in  # noqa: PLC0415 - loaded only with TLS

    return f"cert:{name_in(certificate)}".encode()


class FrontEnd(ABC):
    """Serves clients on any number of listening sockets.  ``limits`` of phases are in seconds."""

    def __init__(
        self,
        limits: Mapping[Phase, float],
        access: Access | None = None,
        most_from_one: int | None = None,
    ) -> None:
        """``most_from_one``: connections from one address; None: no limit."""
        self.access = access
        self.most_from_one = most_from_one
        self.origins: dict[str, int] = {}
        """Connections by address, if they are limited."""
        self._handshakes: Handshakes | None = None
        self._limits = limits
        self.connections: set[Any] = set()
        self.empty = asyncio.Event()
        """Set when the last connection is closed."""
        self.held_limit = HELD_LIMIT
        self.bounds: Bounds[FrontEndConnection, Phase] = Bounds(
            {**limits, Phase.LINGER: LINGER}, lambda connection, phase: connection.expire(phase)
        )
        self._servers: list[asyncio.Server] = []
        self._queue: deque[FrontEndConnection] = deque()  # their next step waits
        self._working = False  # _work runs in the next turn of the loop

    @abstractmethod
    def connect(self) -> FrontEndConnection:
        """Return the protocol of a new connection."""

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        loop = asyncio.get_running_loop()
        listen = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        connect: Callable[[], asyncio.Protocol] = self.connect
        if self.access is not None and self.access.context and sock.family != socket.AF_UNIX:
            from voter.frontend.handshake import Handshake, Handshakes  # noqa: PLC0415

            limit = self._limits[Phase.HEAD if Phase.HEAD in self._limits else Phase.HANDSHAKE]
            handshakes = self._handshakes = Handshakes(self.connect, self.access, limit)

            def connect() -> asyncio.Protocol:
                return Handshake(handshakes)

        # asyncio accepts ``backlog`` connections in one turn; the kernel's queue is longer.
        self._servers.append(await listen(connect, sock=sock, backlog=ACCEPTED))
        sock.listen(BACKLOG)

    def schedule(self, connection: FrontEndConnection) -> None:
        """Let a connection take its next step in a later turn of the loop, first come first."""
        if not connection.scheduled:
            connection.scheduled = True
            self._queue.append(connection)
            if not self._working:
                self._working = True
                asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        """Let connections in the queue take a step each, until TURN is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + TURN
        try:
            for _ in range(len(self._queue)):
                connection = self._queue.popleft()
                connection.scheduled = False
                connection.advance()
                if loop.time() >= until:
                    break
        finally:
            self._working = bool(self._queue)
            if self._working:
                loop.call_soon(self._work)

    async def stop(self) -> None:
        """Close the listening sockets and all connections."""
        for server in self._servers:
            server.close()
        if self._handshakes is not None:
            self._handshakes.stop()
        for connection in tuple(self.connections):
            connection.abort()
        self.bounds.stop()
