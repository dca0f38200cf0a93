"""A native connection that sends exactly the bytes it is given, valid or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guests.protocol import wire
from guests.protocol.wire import Decoder, Frame, FrameKind, encode
from tests.voter.http_client import HttpClient
from tests.voter.node import Node
from voter.native_protocol import decode_failure

__all__ = ["OPEN", "Raw", "raw"]

OPEN = encode(FrameKind.OPEN, 0, 0, wire.PROTOCOL.to_bytes(2))


class Raw:
    """One connection."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.client.send(data)

    async def frame(self) -> Frame:
        """The next frame from the voter."""
        async with asyncio.timeout(10):
            while not self._frames:
                data = await self.client.reader.read(1 << 16)
                assert data, "the voter closed the connection and sent nothing"
                self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def failure(self) -> tuple[str, str]:
        """The next frame must be a FAILURE: its code and words."""
        frame = await self.frame()
        assert frame.kind == FrameKind.FAILURE
        return decode_failure(frame.payload)

    async def ended(self) -> bool:
        """Wait for the end of the connection; return whether nothing came before it."""
        return await self.client.ended() == b"" and not self._frames


@asynccontextmanager
async def raw(node: Node, *, opened: bool = True, tcp: bool = False) -> AsyncIterator[Raw]:
    """Connect."""
    client = await (
        HttpClient.open(node.native_port) if tcp else HttpClient.open_unix(node.native_path)
    )
    async with client:
        connection = Raw(client)
        if opened:
            await connection.send(OPEN)
            assert (await connection.frame()).kind == FrameKind.OPENED
        yield connection
