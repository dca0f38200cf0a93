"""NV, the base case: a client that speaks to one guest's agent itself, past the voter.

What would be a plain node's own server is here the agent's link: requests are answered by one
replica, nobody compares, and what that replica says is what the client gets.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from guests.protocol import wire
from guests.protocol.wire import Decoder, FrameKind, encode, encode_order
from voter.address import Address, connect

__all__ = ["DirectLink", "LinkBroken"]

GREETING = 0.5
"""Seconds for an answer to HELLO on the first connection; twice as long on each that follows (why
there may have to be more than one: see ``voter.link.GREETING_FIRST``)."""
EMPTY_HISTORY = bytes(8)


class LinkBroken(Exception):
    """The guest does not speak any more, or not as an agent does; ``code``: which."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class DirectLink(asyncio.Protocol):
    """A connection to one agent, whose service has just been made anew.  Make it with ``open``."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._decoder = Decoder()
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clean: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._seq = 0
        self._history = EMPTY_HISTORY
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, address: Address, epoch: int, *, patience: float) -> DirectLink:
        """Connect, greet, have the service begin anew.  ``epoch``: 64 random bits.

        Raises TimeoutError after ``patience`` seconds, OSError if nobody listens.
        """
        wait = GREETING
        async with asyncio.timeout(patience):
            while True:
                link = cls(epoch)
                await connect(address, link._itself)
                try:
                    if await link._begin(wait):
                        return link
                    link.close()
                except BaseException:
                    link.close()
                    raise
                wait *= 2

    def _itself(self) -> DirectLink:
        return self

    async def _begin(self, wait: float) -> bool:
        """Greet and have the service begin anew; tell if nobody answers within ``wait`` seconds."""
        self._say(FrameKind.HELLO, 0, wire.PROTOCOL.to_bytes(2) + b"\0")
        await asyncio.wait([self._greeted], timeout=wait)
        if not self._greeted.done():
            return False
        point = wire.CheckpointPayload(EMPTY_HISTORY, 0, bytes(32))
        self._say(FrameKind.RESTORE, 0, wire.encode_checkpoint(point))
        await asyncio.shield(self._clean)
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the guest's QEMU closed it."""
        self._break("guest-lost", "the link has ended")

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the agent (or from what has become of it)."""
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
            self._say(FrameKind.ORDER, self._seq, order, flags)
        return future

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _say(self, kind: int, seq: int, payload: bytes, flags: int = 0) -> None:
        if self._transport is not None:
            self._transport.write(encode(kind, self._epoch, seq, payload, flags))

    def _break(self, code: str, why: str) -> None:
        futures: list[asyncio.Future[Any]] = [self._greeted, self._clean, *self._waiting.values()]
        for future in futures:
            if not future.done():
                future.set_exception(LinkBroken(code, why))
                future.exception()  # looked at: nobody need wait for it
        self._waiting.clear()
