"""Replicas that run inside the test's own event loop, with faults that a test selects.

The honest part is the real agent's ``Incarnation`` with the real key-value store; what goes wrong
goes wrong between it and the socket, re-checksummed, as a lying guest would do it.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import cast

from guests.agent.incarnation import Incarnation
from guests.protocol import wire
from guests.protocol.wire import Decoder, Frame, FrameKind, encode
from guests.services.kv import KeyValue

__all__ = ["MODES", "Agent"]

MODES = (
    "lies",  # another reply than the others
    "says nothing",  # takes everything, answers nothing
    "reads nothing",
    "floods with garbage",
    "floods with replies",  # to requests nobody sent
    "floods with pongs",  # that were not requested
    "answers twice",
    "answers what nobody asked",
    "answers garbage",
    "announces a huge frame",
    "answers with a digest",
    "cuts the link",
)
PIECE = 1 << 16


class Agent:
    """One replica behind a unix socket; ``mode`` is "honest", "waits" or one of MODES.

    In the mode "waits" it delays its answers until ``release_answers``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mode = "honest"
        self.protocol = wire.PROTOCOL
        self.orders = 0
        """Requests that came in, of all connections."""
        self.connections: set[_Connection] = set()
        self.service: type[KeyValue] = KeyValue
        """What the next incarnation runs."""
        self.incarnation = Incarnation(KeyValue, 1, "test")
        self._number = 1
        self._server: asyncio.Server | None = None

    @property
    def link(self) -> str:
        """Its address, as a voter's configuration names it."""
        return f"unix:{self.path}"

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), str(self.path))

    def stop(self) -> None:
        """Stop listening, and cut all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink()
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for connection in tuple(self.connections):
            connection.close()

    def release_answers(self) -> None:
        """Send the delayed answers, and be honest from now on."""
        self.mode = "honest"
        for connection in self.connections:
            connection.release_answers()

    def restart(self) -> None:
        """Begin a fresh and honest incarnation, as after a restore of the guest."""
        self.mode = "honest"
        self._number += 1
        self.incarnation = Incarnation(self.service, self._number, "test")
        self.cut()


def _count_orders(frame: Frame) -> int:
    """Return how many requests a frame from the voter carries."""
    if frame.kind == FrameKind.ORDERS:
        return len(wire.decode_orders(frame.payload)[2])
    return int(frame.kind == FrameKind.ORDER)


class _Connection(asyncio.Protocol):
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._transport: asyncio.Transport | None = None
        self._orders = Decoder()
        self._flooding = False
        self._held: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._agent.connections.add(self)
        self._transport.write(self._agent.incarnation.announce())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._agent.connections.discard(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def release_answers(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._held))
        self._held.clear()

    def data_received(self, data: bytes) -> None:
        agent, transport = self._agent, self._transport
        if transport is None:
            return
        frames = self._orders.feed(data)
        ordered = sum(map(_count_orders, frames))
        agent.orders += ordered
        if ordered and agent.mode == "reads nothing":
            transport.pause_reading()
            return
        if ordered and agent.mode == "cuts the link":
            transport.abort()
            return
        try:
            answers = b"".join(agent.incarnation.receive(data))
        except SystemExit:  # a real agent's parent starts the next incarnation
            agent.restart()
            return
        for frame in Decoder().feed(answers):
            self._answer(frame)

    def _answer(self, frame: Frame) -> None:
        agent, transport = self._agent, self._transport
        if transport is None or transport.is_closing():
            return
        kind, _, epoch, seq, payload = frame
        if kind == FrameKind.WELCOME and agent.protocol != wire.PROTOCOL:
            payload = agent.protocol.to_bytes(2) + payload[2:]
        data = encode(kind, epoch, seq, payload, frame.flags)
        mode = agent.mode
        if mode == "says nothing":
            return
        if mode == "waits":
            self._held.append(data)
            return
        if kind in (FrameKind.REPLY, FrameKind.REPLIES) and mode != "honest":
            self._spoil(mode, frame, data)
        else:
            transport.write(data)

    def _spoil(self, mode: str, frame: Frame, data: bytes) -> None:
        transport = self._transport
        assert transport is not None
        kind, _, epoch, seq, payload = frame
        if mode == "lies":
            if kind == FrameKind.REPLIES:  # in the last one of them
                *others, last = wire.decode_replies(payload)
                payload = wire.encode_replies([*others, last + b"!"])
            else:
                payload += b"!"
            transport.write(encode(kind, epoch, seq, payload))
        elif mode == "answers twice":
            transport.write(data + data)
        elif mode == "answers what nobody asked":
            transport.write(data + encode(kind, epoch, seq + 1000, payload))
        elif mode == "answers garbage":
            transport.write(random.Random(seq).randbytes(1000))
        elif mode == "announces a huge frame":
            # Begin as a whole frame of the largest size, and never end it.
            transport.write(encode(kind, epoch, seq, bytes(wire.MAX_PAYLOAD))[:1000])
        elif mode == "answers with a digest":
            transport.write(encode(FrameKind.DIGEST, epoch, seq, payload))
        elif mode.startswith("floods") and not self._flooding:
            self._flooding = True
            pieces = {
                "floods with garbage": random.Random(seq).randbytes(PIECE),
                "floods with replies": encode(kind, epoch, seq + 5, payload) * 500,
                "floods with pongs": encode(FrameKind.PONG, epoch, seq) * 1000,
            }
            self._flood(pieces[mode])

    def _flood(self, piece: bytes) -> None:
        """Write as much as the voter reads, without end."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if transport.get_write_buffer_size() < PIECE:
                transport.write(piece)
            asyncio.get_running_loop().call_soon(self._flood, piece)
