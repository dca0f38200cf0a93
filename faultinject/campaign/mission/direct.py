"""NV, the plain design: a client that is connected to one guest's agent, without the voter.

A plain node would have its own server; here the agent's link takes its place.  One replica answers
the requests, nobody compares its replies, and the client gets what the replica returns.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from guests.protocol import wire
from guests.protocol.wire import Decoder, FrameKind, encode, encode_order
from voter.address import Address, connect

__all__ = ["DirectLink", "LinkBroken"]

GREETING = 0.5
"""Seconds for an answer to HELLO on the first connection, doubled on each further one.  Why more
than one may be needed: see ``voter.link.GREETING_FIRST``."""


class LinkBroken(Exception):
    """The link ended (``code`` guest-lost), or carried what no agent sends (bad-frame)."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class DirectLink(asyncio.Protocol):
    """A connection to one agent, whose service starts empty.  Use ``open``."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._decoder = Decoder()
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clean: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._seq = 0
        self._history = wire.EMPTY_HISTORY
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, address: Address, epoch: int, *, patience: float) -> DirectLink:
        """Connect, greet, and reset the service.  ``epoch``: 64 random bits.

        Raises TimeoutError after ``patience`` seconds, OSError if no agent listens.
        """
        wait = GREETING
        async with asyncio.timeout(patience):
            while True:
                link = cls(epoch)
                try:
                    if await link._begin(address, wait):
                        return link
                    link.close()
                except BaseException:
                    link.close()
                    raise
                wait *= 2

    async def _begin(self, address: Address, wait: float) -> bool:
        """Connect, greet and reset the service; return False if nobody answers in ``wait`` s."""
        await connect(address, lambda: self)
        self._send(FrameKind.HELLO, 0, wire.PROTOCOL.to_bytes(2) + b"\0")
        await asyncio.wait([self._greeted], timeout=wait)
        if not self._greeted.done():
            return False
        point = wire.CheckpointPayload(wire.EMPTY_HISTORY, 0, bytes(32))
        self._send(FrameKind.RESTORE, 0, wire.encode_checkpoint(point))
        await asyncio.shield(self._clean)
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the guest's QEMU closed it."""
        self._break("guest-lost", "the link has ended")

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the agent."""
        for frame in self._decoder.feed(data):
            if frame.epoch != self._epoch:
                continue
            if frame.kind == FrameKind.WELCOME and not self._greeted.done():
                self._greeted.set_result(None)
            elif frame.kind == FrameKind.RESTORED and not self._clean.done():
                self._clean.set_result(None)
            elif frame.kind == FrameKind.REPLY and frame.seq in self._waiting:
                self._waiting.pop(frame.seq).set_result(frame.payload)
            elif frame.kind == FrameKind.REFUSED:
                self._break("bad-frame", f"refused: {frame.payload[:100]!r}")

    def start(self, request: bytes, *, caller: bytes, read_only: bool) -> asyncio.Future[bytes]:
        """Send one request; the future gives its reply, or raises LinkBroken."""
        self._seq += 1
        flags = wire.FLAG_READ_ONLY if read_only else 0
        history = self._history if read_only else self._seq.to_bytes(8)
        order = encode_order(0, self._history, history, caller, request)
        self._history = history
        future = self._waiting[self._seq] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._break("guest-lost", "the link has ended")
        else:
            self._send(FrameKind.ORDER, self._seq, order, flags)
        return future

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, kind: int, seq: int, payload: bytes, flags: int = 0) -> None:
        if self._transport is not None:
            self._transport.write(encode(kind, self._epoch, seq, payload, flags))

    def _break(self, code: str, why: str) -> None:
        futures: list[asyncio.Future[Any]] = [self._greeted, self._clean, *self._waiting.values()]
        for future in futures:
            if not future.done():
                future.set_exception(LinkBroken(code, why))
                future.exception()  # retrieved, so that asyncio does not warn
        self._waiting.clear()
