"""Whether a guest's agent answers, asked as a voter would ask it."""

from __future__ import annotations

import asyncio
import secrets

from deploy.machine.guest import Guest
from guests.protocol import wire

__all__ = ["answers"]


async def answers(guest: Guest, seconds: float = 10.0) -> bool:
    """Whether the agent answers a HELLO within so many seconds; all else it says is skipped.

    A HELLO is what it always answers: the epoch of any other frame may be a stale one. What it says
    unasked is no sign: of a link that is closed and opened faster than it looks it knows nothing.
    """
    epoch = 1 + secrets.randbelow(1 << 31)
    hello = wire.PROTOCOL.to_bytes(2) + bytes([wire.NO_KEEPER])
    decoder = wire.Decoder()
    reader, writer = await asyncio.open_unix_connection(guest.spec.link_socket)
    try:
        async with asyncio.timeout(seconds):
            writer.write(wire.encode(wire.FrameKind.HELLO, epoch, 0, hello))
            while data := await reader.read(4096):
                for frame in decoder.feed(data):
                    if frame.kind == wire.FrameKind.WELCOME and frame.epoch == epoch:
                        return True
    except TimeoutError:
        return False
    finally:
        writer.close()
    return False
