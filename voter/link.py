"""A link: the one ordered stream of frames between the voter and a replica's agent.

Raw asyncio protocol, no queue of its own besides one list of frames that is written once per turn
of the event loop.  Whatever comes in is hostile until proved otherwise: the decoder bounds it,
the epoch dates it, and anything an honest agent would not send ends the link.

A link connects by itself, again and again (with back-off), for as long as it is not stopped;
whether the replica behind it may vote is the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from guests.protocol import wire
from guests.protocol.wire import FETCH_AHEAD, STATE_PIECE, Decoder, FrameKind, encode
from voter.address import Address, Connector
from voter.core import events as ev
from voter.core.limits import Limits
from voter.transfer import IncomingState, TransferRate

__all__ = ["FIRST_RETRY", "LAST_RETRY", "ReplicaLink"]

FIRST_RETRY = 0.02
LAST_RETRY = 1.0
"""Seconds between attempts to connect: doubled from first to last."""
GREETING_RETRY = 0.25
"""Seconds until a HELLO that was not answered is said again."""
GREETING_FIRST, GREETING_LIMIT = 0.5, 5.0
"""Seconds until a connection on which nobody answers the HELLO is given up: doubled from the first
to the limit. The first is short for QEMU's sake: a guest's write that meets the end of the
connection before can leave its port throttled (``virtio-console``: no watch is added to a channel
that is already closed), so that nothing it says comes out until the next connection ends."""
GREETING_PAYLOAD = 1024
"""Until WELCOME no larger frame is believed: a cut one of before must not swallow the WELCOME."""
STALE_LIMIT = 4 << 20
"""Bytes of an earlier epoch that may come out of a channel before WELCOME."""
FOREIGN_LIMIT = 64
"""Frames of another epoch after WELCOME before the replica is taken for broken."""


class ReplicaLink(asyncio.Protocol):
    """The voter's end of one link.

    ``deliver`` takes the events it makes; ``check`` says what is wrong with a WELCOME (None:
    nothing); ``random64`` gives epochs; ``flush_soon`` is told when there is something to write.
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
        self._writable = asyncio.Event()
        self._closed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._greeted = asyncio.Event()
        self._retry = FIRST_RETRY
        # An ``exec:`` replica starts with its connection, and ends with it: it is given its time.
        self._patience = GREETING_LIMIT if address.kind == "exec" else GREETING_FIRST
        self._stale = 0
        self._foreign = 0
        self._hellos = 0
        self._arriving: IncomingState | None = None
        self._late = 0, 0  # the last fetch, and how many answers to it may still come
        self._sending: asyncio.Task[None] | None = None

    # ---------------------------------------------------------- connecting

    async def run(self) -> None:
        """Keep the link connected until cancelled."""
        try:
            while True:
                await self._connect_once()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._retry):
                        await self._hurry.wait()
                self._hurry.clear()
                self._retry = min(self._retry * 2, LAST_RETRY)
        finally:
            self.drop("the voter stops")

    async def _connect_once(self) -> None:
        """Connect, greet, and stay until the connection has ended."""
        self._closed.clear()
        self._greeted.clear()
        try:
            async with asyncio.timeout(GREETING_LIMIT):
                await self._connector(self.address, lambda: self)
        except (OSError, TimeoutError) as error:
            self.drop(f"cannot connect to {self.address.text}: {str(error) or 'timed out'}")
            return
        self.epoch = self._random64()
        hello = encode(
            FrameKind.HELLO, self.epoch, 0, wire.PROTOCOL.to_bytes(2) + bytes([self.index])
        )
        attempts = round(self._patience / GREETING_RETRY)
        self._patience = min(self._patience * 2, GREETING_LIMIT)
        self._hellos = 0
        for attempt in range(attempts):
            self._hellos += 1
            # At times zeros push a frame that was cut before we came out of the agent's decoder.
            self.send(bytes(wire.MAX_PAYLOAD) + hello if attempt % 8 == 1 else hello)
            if await self._wait_any(GREETING_RETRY):
                break
        else:
            self.problem = f"no agent answers on {self.address.text}"
            self.drop(self.problem)
        await self._closed.wait()

    async def _wait_any(self, seconds: float) -> bool:
        """Wait until greeted or closed; tell whether one of them happened in time."""
        waits = [asyncio.ensure_future(e.wait()) for e in (self._greeted, self._closed)]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        return bool(done)

    def hurry(self) -> None:
        """Connect again at once (the supervisor says that the agent is there)."""
        self._retry = FIRST_RETRY
        self._hurry.set()

    def settle_down(self) -> None:
        """The replica votes: the next loss is tried again quickly."""
        self._retry = FIRST_RETRY
        if self.address.kind != "exec":
            self._patience = GREETING_FIRST

    def drop(self, reason: str) -> None:
        """Close the connection at once; ``run`` will connect again."""
        self.problem = reason
        if self._transport is not None:
            self._transport.abort()
            self._detach(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        self._decoder = Decoder(GREETING_PAYLOAD)
        self._stale = self._foreign = 0
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._detach(f"link closed{f': {exc}' if exc else ''}")
        self._closed.set()

    def _detach(self, reason: str) -> None:
        self._transport = None
        self._out.clear()
        self._end_transfers()
        was_up, epoch = self.up, self.epoch
        self.up, self.epoch = False, 0
        if was_up:
            self.problem = reason
            self._deliver(ev.Lost(self.index, epoch, reason))

    def _end_transfers(self) -> None:
        self._end_fetch()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _end_fetch(self) -> None:
        if self._arriving is not None and self._arriving.timer is not None:
            self._arriving.timer.cancel()
        if self._arriving is not None:
            self._late = self._arriving.seq, self._arriving.asked - self._arriving.came
        self._arriving = None

    def _was_asked_ahead(self, seq: int) -> bool:
        """Whether this answers a fetch that is over, for which more pieces had been asked."""
        fetch, answers = self._late
        if seq != fetch or not answers:
            return False
        self._late = fetch, answers - 1
        return True

    # ------------------------------------------------------------- sending

    def send(self, frame: bytes) -> None:
        """Write a frame with the others of this turn of the loop."""
        if self._transport is not None:
            if not self._out:
                self._flush_soon(self)
            self._out.append(frame)

    def send_order(self, seq: int, flags: int, payload: bytes, payload_crc: int) -> None:
        """Send an ordered request; its payload and CRC are shared by all links."""
        self.send(wire.encode_head(FrameKind.ORDER, self.epoch, seq, payload, payload_crc, flags))

    def flush(self) -> None:
        """Write what has come together."""
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

    def fetch(self, seq: int) -> None:
        """Ask for the state kept at marker ``seq``; it comes back as one Fetched event."""
        self._end_fetch()
        self._arriving = IncomingState(seq, self._limits.transfer_rate)
        self._ask()

    def _ask(self) -> None:
        """Ask for pieces of the state that is on its way, some ahead, at the rate for transfers."""
        arriving = self._arriving
        if arriving is None:
            return
        arriving.timer = None
        while arriving.asked - arriving.came < FETCH_AHEAD:
            offset = (arriving.asked * STATE_PIECE).to_bytes(8)
            arriving.asked += 1
            self.send(encode(FrameKind.FETCH, self.epoch, arriving.seq, offset))
            pause = arriving.pace.pause(STATE_PIECE)
            if pause:
                arriving.timer = asyncio.get_running_loop().call_later(pause, self._ask)
                return

    def restore(self, effect: ev.Restore) -> None:
        """Send a checkpoint, in pieces, no faster than the replica takes them and than the rate
        for transfers.
        """
        self._end_transfers()
        self._sending = asyncio.ensure_future(self._send_state(effect))

    async def _send_state(self, effect: ev.Restore) -> None:
        state, epoch = effect.state, self.epoch
        point = wire.CheckpointPayload(effect.history, len(state), effect.digest.ljust(32, b"\0"))
        self.send(encode(FrameKind.RESTORE, epoch, effect.seq, wire.encode_checkpoint(point)))
        pace = TransferRate(self._limits.transfer_rate)
        for at in range(0, len(state), STATE_PIECE):
            await self._writable.wait()
            piece = bytes(state[at : at + STATE_PIECE])
            flags = wire.FLAG_LAST if at + len(piece) == len(state) else 0
            self.send(encode(FrameKind.STATE, epoch, effect.seq, piece, flags))
            # Also where there is no need to wait: the others' votes come through in between.
            await asyncio.sleep(pace.pause(len(piece)))

    def pause_writing(self) -> None:
        """asyncio: the agent does not read as fast as we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """asyncio: there is room again."""
        self._writable.set()

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
                self._restarted()
            elif frame.kind == FrameKind.WELCOME and frame.epoch == self.epoch:
                self._welcome(frame)
                skipped = self._decoder.skipped
            elif self.up:
                self._foreign += 1
                if self._foreign > FOREIGN_LIMIT:
                    self._accuse("sends frames of another epoch")
        if self.up and self._decoder.skipped > skipped:
            self._accuse("sends garbage")
        elif not self.up:
            self._stale += len(data)
            if self._stale > STALE_LIMIT:
                self.drop("sends without end and never answers the HELLO")

    def _take(self, frame: wire.Frame) -> None:
        kind, index, epoch = frame.kind, self.index, frame.epoch
        if kind == FrameKind.REPLY:
            self._deliver(ev.Answered(index, epoch, frame.seq, frame.payload))
        elif kind == FrameKind.DIGEST:
            self._deliver(ev.Digested(index, epoch, frame.seq, frame.payload))
        elif kind == FrameKind.PONG:
            self._deliver(ev.Heard(index, epoch))
        elif kind == FrameKind.RESTORED:
            self._deliver(ev.Restored(index, epoch, frame.seq, frame.payload))
        elif kind == FrameKind.REFUSED:
            reason = frame.payload[:200].decode("utf-8", "replace")
            if self._arriving is not None and frame.seq == self._arriving.seq:
                self._arriving.came += 1
                self._end_fetch()
                self._deliver(ev.FetchFailed(index, epoch, frame.seq, reason))
            elif not self._was_asked_ahead(frame.seq):
                self._deliver(ev.RefusedOrder(index, epoch, frame.seq, reason))
        elif (
            kind == FrameKind.STATE
            and (arriving := self._arriving) is not None
            and arriving.asked > arriving.came
            and arriving.seq == frame.seq
        ):
            self._take_piece(frame, arriving)
        elif kind == FrameKind.STATE and self._was_asked_ahead(frame.seq):
            pass  # of a fetch that was given up
        elif kind == FrameKind.WELCOME:
            self._welcome(frame)
        else:
            self._accuse(f"sends a frame of kind {kind} that nobody asked for")

    def _take_piece(self, frame: wire.Frame, arriving: IncomingState) -> None:
        arriving.came += 1
        arriving.state += frame.payload
        arriving.hashed.update(frame.payload)
        last, size = bool(frame.flags & wire.FLAG_LAST), len(arriving.state)
        limit = self._limits.state_bytes
        if size > limit or not (last or frame.payload):
            self._end_fetch()
            why = f"the state is over the limit of {limit} bytes, or has no end"
            self._deliver(ev.FetchFailed(self.index, frame.epoch, frame.seq, why))
        elif last:
            self._end_fetch()
            digest = arriving.hashed.digest()
            self._deliver(ev.Fetched(self.index, frame.epoch, frame.seq, arriving.state, digest))
        else:
            self._deliver(ev.Piece(self.index, frame.epoch, frame.seq, size))
            if arriving.timer is None:
                self._ask()

    def _welcome(self, frame: wire.Frame) -> None:
        self._hellos -= 1
        if self.up:
            if self._hellos < 0:
                self._accuse("answers a HELLO that was not sent")
            return
        try:
            welcome = wire.decode_welcome(frame.payload)
        except wire.WireError as error:
            self.drop(str(error))
            return
        problem = self._check(self.index, welcome)
        if problem is not None:
            self.drop(problem)
            return
        self._decoder.max_payload = wire.MAX_PAYLOAD
        self.welcome, self.up, self.problem = welcome, True, ""
        self._greeted.set()
        self._deliver(
            ev.Greeted(
                self.index,
                self.epoch,
                welcome.incarnation,
                welcome.fresh,
                welcome.last_seq,
                welcome.history,
                welcome.replies_from,
            )
        )

    def _restarted(self) -> None:
        """A new incarnation of the service says that it is here: greet it on a new connection.

        After the usual pause, so that one that dies again and again does not keep us busy.
        """
        if self.up:
            self.drop("the service was started anew")

    def _accuse(self, reason: str) -> None:
        if self.up:
            self._deliver(ev.Misbehaved(self.index, self.epoch, reason))
