"""A voter's side of a link to an incarnation in memory: sends frames and decodes the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import zip_longest

from guests.agent.capture import InlineCapture, MakeCapture
from guests.agent.incarnation import Incarnation
from guests.protocol import wire
from guests.protocol.message import encode_request
from guests.protocol.wire import Decoder, Frame, FrameKind, encode
from guests.service import Service
from guests.services.kv import KeyValue

__all__ = ["EMPTY", "Voter", "get", "kv_state", "put_request"]

EMPTY = bytes(8)


class Voter:
    """The voter's end of a link."""

    def __init__(
        self,
        service: type[Service] = KeyValue,
        make_capture: MakeCapture = InlineCapture,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.incarnation = Incarnation(service, 3, "build-1", make_capture, clock)
        self.decoder = Decoder()
        self.epoch = 0
        self.seq = 0
        self.history = EMPTY

    def send(self, data: bytes) -> list[Frame]:
        answers = b"".join(self.incarnation.receive(data))
        return self.decoder.feed(answers)

    def hello(self, epoch: int = 77, index: int = 1) -> wire.Welcome:
        self.epoch = epoch
        hello = wire.PROTOCOL.to_bytes(2) + bytes([index])
        (frame,) = self.send(encode(FrameKind.HELLO, epoch, 0, hello))
        assert (frame.kind, frame.epoch) == (FrameKind.WELCOME, epoch)
        return wire.decode_welcome(frame.payload)

    def order_frame(self, request: bytes, *, read_only: bool = False) -> bytes:
        self.seq += 1
        after = self.history if read_only else b"h%07d" % self.seq
        payload = wire.encode_order(1, self.history, b"h%07d" % self.seq, b"me", request)
        self.history = after
        flags = wire.FLAG_READ_ONLY if read_only else 0
        return encode(FrameKind.ORDER, self.epoch, self.seq, payload, flags)

    def orders_frame(self, *requests: bytes, flags: Sequence[int] = ()) -> bytes:
        """Return an ORDERS frame with these requests, and these flags (default: none)."""
        first, prev = self.seq + 1, self.history
        items: list[wire.OrderItem] = []
        for request, flag in zip_longest(requests, flags, fillvalue=0):
            assert isinstance(request, bytes)
            self.seq += 1
            items.append((self.seq - first, b"h%07d" % self.seq, flag, b"me", request))
            if not flag & wire.FLAG_READ_ONLY:
                self.history = items[-1][1]
        return encode(FrameKind.ORDERS, self.epoch, first, wire.encode_orders(1, prev, items))

    def order(self, request: bytes, *, read_only: bool = False) -> Frame:
        (frame,) = self.send(self.order_frame(request, read_only=read_only))
        return frame

    def put(self, key: str, value: bytes = b"v") -> Frame:
        return self.order(encode_request("PUT", f"/kv/{key}", [], value))

    def mark(self, keeper: int) -> bytes:
        self.seq += 1
        (frame,) = self.send(encode(FrameKind.MARKER, self.epoch, self.seq, bytes([keeper])))
        assert (frame.kind, frame.seq) == (FrameKind.DIGEST, self.seq)
        return frame.payload

    def fetch(self, seq: int, offset: int = 0) -> Frame:
        (frame,) = self.send(encode(FrameKind.FETCH, self.epoch, seq, offset.to_bytes(8)))
        return frame

    def restore(self, state: bytes, *, seq: int = 50, size: int | None = None) -> list[Frame]:
        point = wire.CheckpointPayload(b"restored", len(state) if size is None else size, bytes(32))
        data = [encode(FrameKind.RESTORE, self.epoch, seq, wire.encode_checkpoint(point))]
        data += [
            encode(FrameKind.STATE, self.epoch, seq, state[at : at + 100])
            for at in range(0, len(state), 100)
        ]
        return self.send(b"".join(data))


def put_request(key: str, value: bytes) -> bytes:
    return encode_request("PUT", f"/kv/{key}", [], value)


def get(key: str) -> bytes:
    return encode_request("GET", f"/kv/{key}", [], b"")


def kv_state(**entries: bytes) -> tuple[bytes, bytes]:
    """Return a state with these entries, and its digest."""
    voter = Voter()
    voter.hello()
    for key, value in entries.items():
        voter.put(key, value)
    voter.mark(keeper=1)
    return voter.fetch(voter.seq).payload, voter.mark(keeper=0)
