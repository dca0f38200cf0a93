"""A link: the one ordered stream of frames between the voter and a replica's agent.

Theory of operation.  ``run`` connects again and again, with back-off, until it is cancelled.  It
pauses while the link is disabled, which is the link of a retired replica.  A connection begins with
a handshake:

1. The voter draws a random *epoch* and sends HELLO with it.  Until an answer comes it repeats the
   HELLO, for the port of a guest may have no reader yet.  Sometimes it sends zeros first: if the
   agent's decoder still holds the start of a frame that an earlier connection cut off, the zeros
   complete that frame, and the agent finds the HELLO behind it.
2. The agent answers WELCOME in that epoch, with its service, its history and its last sequence
   number.  Whatever else arrives before it is of an earlier connection, and is dropped up to
   STALE_LIMIT bytes.
3. ``check`` accepts or rejects the WELCOME.  If it accepts, the link is up: the engine gets
   ``Greeted``, and frames of this epoch become events.

Everything that comes in is untrusted.  The decoder bounds its size; the epoch identifies the
connection that it belongs to.  Anything that a correct agent would not send becomes
``ProtocolViolation``, on which the engine closes the link.  Whether the replica may vote is the
engine's decision, not the link's.

Frames that are sent in one turn of the event loop are written together at its end (``flush``).
State transfers (``voter.transfer``) share the stream with requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast
from zlib import crc32

from guests.protocol import wire
from guests.protocol.wire import STATE_PIECE, Decoder, FrameKind, encode
from voter.address import Address, Connector
from voter.core import events as ev
from voter.core.entries import Record
from voter.core.limits import Limits
from voter.transfer import IncomingState, TransferRate

__all__ = ["FIRST_RETRY", "LAST_RETRY", "ReplicaLink", "encode_orders"]

FIRST_RETRY = 0.02
LAST_RETRY = 1.0
"""Seconds between attempts to connect: doubled from first to last."""
GREETING_RETRY = 0.25
"""Seconds until an unanswered HELLO is repeated."""
GREETING_FIRST, GREETING_LIMIT = 0.15, 5.0
"""Seconds until a connection without an answer to HELLO is closed: doubled from first to limit, or
to ``limits.hang`` if that is more.

The first is short because of QEMU.  If a guest writes while the previous connection ends, its port
can stay throttled (``virtio-console`` adds no watch to a closed channel).  Then nothing that the
guest writes arrives until the next connection ends.
"""
GREETING_PAYLOAD = 1024
"""Largest payload before WELCOME, in bytes: a frame that was cut must not swallow the WELCOME."""
STALE_LIMIT = 4 << 20
"""Bytes of earlier epochs that may arrive before WELCOME; above that the link is closed."""
FOREIGN_LIMIT = 64
"""Frames of another epoch after WELCOME; one more violates the protocol."""

_SIMPLE: dict[int, type[ev.Answered | ev.AnsweredAll | ev.Digested | ev.Restored]] = {
    FrameKind.REPLY: ev.Answered,
    FrameKind.REPLIES: ev.AnsweredAll,
    FrameKind.DIGEST: ev.Digested,
    FrameKind.RESTORED: ev.Restored,
}


Orders = tuple[int, int, int, bytes, int]
"""A frame of ordered requests without its epoch: kind, seq, flags, payload, CRC of the payload."""


def encode_orders(records: list[Record]) -> Orders:
    """Return the frame of one request, or of the requests of a batch."""
    first = records[0]
    seq, time_ns, prev = first.seq, first.time_ns, first.prev
    if len(records) == 1:
        payload = wire.encode_order(time_ns, prev, first.history, first.caller, first.request)
        return FrameKind.ORDER, seq, _flags(first), payload, crc32(payload)
    items = [(r.seq - seq, r.history, _flags(r), r.caller, r.request) for r in records]
    payload = wire.encode_orders(time_ns, prev, items)
    return FrameKind.ORDERS, seq, 0, payload, crc32(payload)


def _flags(record: Record) -> int:
    return wire.FLAG_READ_ONLY * record.read_only | wire.FLAG_VOID * record.void


class ReplicaLink(asyncio.Protocol):
    """The voter's end of one link.

    ``deliver`` takes the events it makes; ``check`` returns what is wrong with a WELCOME (None:
    nothing); ``random64`` gives epochs; ``flush_soon`` schedules a call of ``flush``.
    """

    def __init__(
        self,
        index: int,
        address: Address,
        *,
        connector: Connector,
        deliver: Callable[[ev.Event], None],
        check: Callable[[int, wire.Welcome], str | None],
        random64: Callable[[], int],
        flush_soon: Callable[[ReplicaLink], None],
        limits: Limits,
    ) -> None:
        self.index = index
        self.address = address
        self.epoch = 0
        """Epoch of the handshake under way or done; 0 without one."""
        self.up = False
        """Whether the handshake is done and the engine knows it."""
        self.problem = "not connected yet"
        self.welcome: wire.Welcome | None = None
        self._connector = connector
        self._deliver = deliver
        self._check = check
        self._random64 = random64
        self._flush_soon = flush_soon
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._out: list[bytes] = []
        self.held: list[bytes] = []
        """Orders that are sent with the next push or other frame."""
        self._writable = asyncio.Event()
        self._closed = asyncio.Event()
        self._reconnect = asyncio.Event()
        self._enabled = asyncio.Event()
        self._enabled.set()
        self._greeted = asyncio.Event()
        self._retry = FIRST_RETRY
        # An ``exec:`` replica starts with its connection and ends with it: it needs its time.
        self._patience = GREETING_LIMIT if address.kind == "exec" else GREETING_FIRST
        self._stale = 0
        self._foreign = 0
        self._hellos = 0
        self._fetching: IncomingState | None = None
        self._late = 0, 0  # the last fetch that ended, and how many answers to it may still come
        self._restoring: asyncio.Task[None] | None = None

    # ---------------------------------------------------------- connecting

    async def run(self) -> None:
        """Keep the link connected until cancelled."""
        try:
            while True:
                await self._enabled.wait()
                await self._connect_once()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._retry):
                        await self._reconnect.wait()
                self._reconnect.clear()
                self._retry = min(self._retry * 2, LAST_RETRY)
        finally:
            self.close("the voter stops")

    async def _connect_once(self) -> None:
        """Connect, greet, and stay until the connection has ended."""
        self._closed.clear()
        self._greeted.clear()
        try:
            async with asyncio.timeout(GREETING_LIMIT):
                await self._connector(self.address, lambda: self)
        except (OSError, TimeoutError) as error:
            self.close(f"cannot connect to {self.address.text}: {str(error) or 'timed out'}")
            return
        self.epoch = self._random64()
        greeting = wire.PROTOCOL.to_bytes(2) + bytes([self.index])
        hello = encode(FrameKind.HELLO, self.epoch, 0, greeting)
        attempts = max(1, round(self._patience / GREETING_RETRY))
        wait = min(self._patience, GREETING_RETRY)
        self._patience = min(self._patience * 2, max(GREETING_LIMIT, self._limits.hang))
        self._hellos = 0
        for attempt in range(attempts):
            self._hellos += 1
            self.send(bytes(wire.MAX_PAYLOAD) + hello if attempt % 8 == 1 else hello)
            if await self._wait_any(wait):
                break
        else:
            self.problem = f"no agent answers on {self.address.text}"
            self.close(self.problem)
        await self._closed.wait()

    async def _wait_any(self, seconds: float) -> bool:
        """Wait until greeted or closed; return whether that happened in time."""
        waits = [asyncio.ensure_future(e.wait()) for e in (self._greeted, self._closed)]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        return bool(done)

    def reconnect_now(self) -> None:
        """End the pause before the next attempt (the supervisor knows that the agent is there)."""
        self._retry = FIRST_RETRY
        self._reconnect.set()

    def enable(self, enabled: bool) -> None:
        """Let the link connect; or close it and keep it closed, for its replica is retired."""
        if enabled:
            self._enabled.set()
            self.reconnect_now()
        else:
            self._enabled.clear()
            self.close("retired")

    def reset_backoff(self) -> None:
        """Begin with short pauses at the next loss, for the replica votes."""
        self._retry = FIRST_RETRY
        if self.address.kind != "exec":
            self._patience = GREETING_FIRST

    def close(self, reason: str) -> None:
        """Close the connection at once; ``run`` will connect again."""
        self.problem = reason
        if self._transport is not None:
            self._transport.abort()
            self._detach(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        self._decoder = Decoder(GREETING_PAYLOAD)
        self._stale = self._foreign = 0
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._detach(f"link closed{f': {exc}' if exc else ''}")
        self._closed.set()

    def _detach(self, reason: str) -> None:
        """Forget the connection, and report its loss if the engine knew it."""
        self._transport = None
        self._out.clear()
        self.held.clear()
        self._end_transfers()
        was_up, epoch = self.up, self.epoch
        self.up, self.epoch = False, 0
        if was_up:
            self.problem = reason
            self._deliver(ev.Lost(self.index, epoch, reason))

    # ------------------------------------------------------------- sending

    def send(self, frame: bytes) -> None:
        """Write a frame with the others of this turn of the loop."""
        if self._transport is not None:
            if not self._out:
                self._flush_soon(self)
            if self.held:
                self._out += self.held
                self.held.clear()
            self._out.append(frame)

    def send_orders(self, orders: Orders, *, hold: bool = False) -> None:
        """Send ordered requests; payload and CRC are shared by all links.

        ``hold``: send them with the next push, or before the next frame that is not held.
        """
        kind, seq, flags, payload, crc = orders
        frame = wire.encode_head(kind, self.epoch, seq, payload, crc, flags)
        if not hold:
            self.send(frame)
        elif self._transport is not None:
            self.held.append(frame)

    def push(self) -> None:
        """Send what is held."""
        if self.held:
            self.send(b"")

    def flush(self) -> None:
        """Write the frames of this turn."""
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def mark(self, seq: int, keeper: int | None) -> None:
        """Send a checkpoint marker."""
        index = wire.NO_KEEPER if keeper is None else keeper
        self.send(encode(FrameKind.MARKER, self.epoch, seq, bytes([index])))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.send(encode(FrameKind.PING, self.epoch, 0))

    def pause_writing(self) -> None:
        """asyncio: the agent does not read as fast as the voter writes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """asyncio: the agent has read enough."""
        self._writable.set()

    # ----------------------------------------------------------- transfers

    def fetch(self, seq: int) -> None:
        """Ask for the state kept at marker ``seq``; it comes back as one Fetched event."""
        self._end_fetch()
        self._fetching = IncomingState(seq, self._limits.transfer_rate, self._ask)

    def _ask(self, seq: int, offset: int) -> None:
        self.send(encode(FrameKind.FETCH, self.epoch, seq, offset.to_bytes(8)))

    def restore(self, effect: ev.Restore) -> None:
        """Send a checkpoint in pieces, at most at the rate for transfers and as the agent reads."""
        self._end_transfers()
        self._restoring = asyncio.ensure_future(self._send_state(effect))

    async def _send_state(self, effect: ev.Restore) -> None:
        state, epoch = effect.state, self.epoch
        point = wire.CheckpointPayload(effect.history, len(state), effect.digest.ljust(32, b"\0"))
        self.send(encode(FrameKind.RESTORE, epoch, effect.seq, wire.encode_checkpoint(point)))
        rate = TransferRate(self._limits.transfer_rate)
        for at in range(0, len(state), STATE_PIECE):
            await self._writable.wait()
            piece = bytes(state[at : at + STATE_PIECE])
            flags = wire.FLAG_LAST if at + len(piece) == len(state) else 0
            self.send(encode(FrameKind.STATE, epoch, effect.seq, piece, flags))
            # Also with nothing to wait for: requests and votes get their turn between pieces.
            await asyncio.sleep(rate.pause(len(piece)))

    def _end_transfers(self) -> None:
        self._end_fetch()
        if self._restoring is not None:
            self._restoring.cancel()
            self._restoring = None

    def _end_fetch(self) -> None:
        fetching, self._fetching = self._fetching, None
        if fetching is not None:
            if fetching.timer is not None:
                fetching.timer.cancel()
            self._late = fetching.seq, fetching.unanswered

    def _is_late_answer(self, seq: int) -> bool:
        """Return whether this answers a fetch that is over, and count it."""
        fetch, answers = self._late
        if seq != fetch or not answers:
            return False
        self._late = fetch, answers - 1
        return True

    # ----------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the agent."""
        skipped = self._decoder.skipped
        for frame in self._decoder.feed(data):
            if self._transport is None:
                return
            if frame.epoch == self.epoch and self.up:
                self._take(frame)
            elif frame.kind == FrameKind.HERE:
                # A new incarnation of the service: greet it on a new connection, after the usual
                # pause, so that one that fails again and again does not keep the voter busy.
                if self.up:
                    self.close("the service was restarted")
            elif frame.kind == FrameKind.WELCOME and frame.epoch == self.epoch:
                self._welcome(frame)
                skipped = self._decoder.skipped
            elif self.up:
                self._foreign += 1
                if self._foreign > FOREIGN_LIMIT:
                    self._report_violation("sends frames of another epoch")
        if self.up and self._decoder.skipped > skipped:
            self._report_violation("sends garbage")
        elif not self.up:
            self._stale += len(data)
            if self._stale > STALE_LIMIT:
                self.close("sends without end and never answers the HELLO")

    def _take(self, frame: wire.Frame) -> None:
        """Turn a frame of this epoch into an event."""
        kind, index, epoch, seq = frame.kind, self.index, frame.epoch, frame.seq
        fetching = self._fetching
        fetched = fetching is not None and fetching.seq == seq
        if kind in _SIMPLE:
            self._deliver(_SIMPLE[kind](index, epoch, seq, frame.payload))
        elif kind == FrameKind.PONG:
            self._deliver(ev.Heard(index, epoch))
        elif kind == FrameKind.REFUSED:
            reason = frame.payload[:200].decode("utf-8", "replace")
            if fetching is not None and fetched:
                fetching.unanswered -= 1
                self._end_fetch()
                self._deliver(ev.FetchFailed(index, epoch, seq, reason))
            elif not self._is_late_answer(seq):
                self._deliver(ev.RefusedOrder(index, epoch, seq, reason))
        elif kind == FrameKind.STATE and fetching is not None and fetched and fetching.unanswered:
            self._take_piece(frame, fetching)
        elif kind == FrameKind.STATE and self._is_late_answer(seq):
            pass
        elif kind == FrameKind.WELCOME:
            self._welcome(frame)
        else:
            self._report_violation(f"sends an unexpected frame of kind {kind}")

    def _take_piece(self, frame: wire.Frame, fetching: IncomingState) -> None:
        fetching.add(frame.payload)
        index, epoch, seq = self.index, frame.epoch, frame.seq
        last, size = bool(frame.flags & wire.FLAG_LAST), len(fetching.state)
        limit = self._limits.state_bytes
        if size > limit or not (last or frame.payload):
            self._end_fetch()
            why = f"the state is over the limit of {limit} bytes, or has no end"
            self._deliver(ev.FetchFailed(index, epoch, seq, why))
        elif last:
            self._end_fetch()
            digest = fetching.hash.digest()
            self._deliver(ev.Fetched(index, epoch, seq, fetching.state, digest))
        else:
            self._deliver(ev.Piece(index, epoch, seq, size))
            if fetching.timer is None:
                fetching.request()

    def _welcome(self, frame: wire.Frame) -> None:
        """Finish the handshake; a slow agent may answer every HELLO that was sent."""
        self._hellos -= 1
        if self.up:
            if self._hellos < 0:
                self._report_violation("answers a HELLO that was not sent")
            return
        try:
            welcome = wire.decode_welcome(frame.payload)
        except wire.WireError as error:
            self.close(str(error))
            return
        problem = self._check(self.index, welcome)
        if problem is not None:
            self.close(problem)
            return
        self._decoder.max_payload = wire.MAX_PAYLOAD
        self.welcome, self.up, self.problem = welcome, True, ""
        self._greeted.set()
        held = welcome.last_seq, welcome.history, welcome.replies_from
        self._deliver(ev.Greeted(self.index, self.epoch, welcome.incarnation, welcome.fresh, *held))

    def _report_violation(self, reason: str) -> None:
        if self.up:
            self._deliver(ev.ProtocolViolation(self.index, self.epoch, reason))
