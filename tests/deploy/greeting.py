"""Check whether a guest's agent answers, as a voter does."""

from __future__ import annotations

import asyncio
import secrets

from deploy.machine.guest import Guest
from guests.protocol import wire

__all__ = ["answers"]


async def answers(guest: Guest, seconds: float = 10.0) -> bool:
    """Return whether the agent answers a HELLO within so many seconds.

    It answers every HELLO, whereas the epoch of another frame may be stale.  Its other frames prove
    nothing: it does not notice a link that is closed and opened again fast.
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
