"""The TLS handshake of a client, before a front end has a connection with it.

This is loaded only with a certificate.  A client that never completes its handshake is closed after
the time for a request's head.  A handshake costs the voter about as much as 100 requests, so no
more than RATE are begun in a second, first come first, and at most MOST wait or are under way: one
more ends the oldest, which is more likely to be a client that says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from voter import log
from voter.access import Access
from voter.frontend.bounds import LINGER

__all__ = ["MOST", "RATE", "Handshake", "Handshakes"]

RATE = 200.0
"""Handshakes that are begun in a second: with an RSA key of 2,048 bits they take a third of it."""
MOST = 512
"""Handshakes that wait or are under way."""
LOG_PAUSE = 1.0
"""Seconds between two messages about failed handshakes."""


class Handshakes:
    """All handshakes of one front end."""

    def __init__(
        self, connect: Callable[[], asyncio.Protocol], access: Access, limit: float
    ) -> None:
        """``connect`` makes the protocol of a connection; ``limit`` is in seconds."""
        self.connect = connect
        self.access = access
        self.limit = limit
        self.failed = 0
        self._open: dict[Handshake, None] = {}  # the oldest first
        self._next = 0.0  # when the next may begin
        self._logged = 0.0

    def enter(self, handshake: Handshake) -> float:
        """Count a handshake; return the seconds until it may begin."""
        self._open[handshake] = None
        if len(self._open) > MOST:
            next(iter(self._open)).abort()
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next + 1 / RATE)
        return self._next - now

    def leave(self, handshake: Handshake) -> None:
        """Count it no more."""
        self._open.pop(handshake, None)

    def fail(self, peer: object, error: Exception) -> None:
        """Count a failed handshake, and log it unless one was logged just now."""
        self.failed += 1
        now = asyncio.get_running_loop().time()
        if now >= self._logged + LOG_PAUSE:
            self._logged = now
            log.info(
                "TLS handshake failed",
                peer=peer,
                reason=str(error) or type(error).__name__,
                failed=self.failed,
            )

    def stop(self) -> None:
        """End all handshakes."""
        for handshake in tuple(self._open):
            handshake.abort()


class Handshake(asyncio.Protocol):
    """One client.  After the handshake its transport belongs to a connection of the front end."""

    def __init__(self, handshakes: Handshakes) -> None:
        self._all = handshakes
        self._early = b""  # what arrived before the connection was made
        self._ended = False
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        pause = self._all.enter(self)
        self._task = asyncio.ensure_future(self._run(self._transport, pause))

    def data_received(self, data: bytes) -> None:
        """asyncio: the first bytes after the handshake."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client has gone."""
        self._ended = True

    def abort(self) -> None:
        """Close the connection at once."""
        self._all.leave(self)
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _run(self, transport: asyncio.Transport, pause: float) -> None:
        # In the turn after the connection was made: asyncio begins to read in that one, paused or
        # not, and what it reads before ``start_tls`` would be lost.
        transport.pause_reading()
        peer = transport.get_extra_info("peername")
        try:
            if pause > self._all.limit:
                raise ConnectionAbortedError("too many handshakes wait")
            await asyncio.sleep(pause)
            context = self._all.access.context
            assert context is not None
            encrypted = await asyncio.get_running_loop().start_tls(
                transport, self, context, server_side=True,
                ssl_handshake_timeout=self._all.limit, ssl_shutdown_timeout=LINGER,
            )  # fmt: skip
        except OSError as error:
            self._all.fail(peer, error)
            transport.abort()
            return
        finally:
            self._all.leave(self)
        if self._ended or encrypted is None:
            return
        connection = self._all.connect()
        encrypted.set_protocol(connection)
        connection.connection_made(encrypted)
        if self._early:
            connection.data_received(self._early)
