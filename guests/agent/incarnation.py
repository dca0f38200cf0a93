"""An incarnation: one life of the service behind a link.  Pure: bytes in, bytes out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from guests.agent.capture import Capture, CaptureError, InlineCapture, MakeCut
from guests.protocol import wire
from guests.protocol.message import Reply, encode_reply
from guests.protocol.wire import FETCH_AHEAD, STATE_PIECE, Decoder, FrameKind, encode
from guests.service import Context, Service, answer

__all__ = ["Incarnation"]

EMPTY_HISTORY = bytes(8)
VOIDED = encode_reply(Reply(500, "this request ended the service, and was voided\n"))
WRITE_SIZE = 1 << 18
"""Bytes of answers collected before they are written: what one read asks for may be far more."""
REPLIES, REPLY_BYTES = 4096, 8 << 20
"""Replies to writes that are kept at most, and their size."""
NO_EPOCH = -1
"""No frame has this epoch: before the first HELLO nothing is taken."""


class _Done(NamedTuple):
    """A write that was applied: the history after it, whether it was skipped, the reply."""

    history: bytes
    void: bool
    reply: bytes


class _Replies:
    """The last replies to writes, for a voter that has lost them: bounded, the oldest go first.

    Without a gap: from ``first`` (0: none are here) on it has all of them.
    """

    def __init__(self) -> None:
        self._done: OrderedDict[int, _Done] = OrderedDict()
        self._bytes = 0

    @property
    def first(self) -> int:
        return next(iter(self._done), 0)

    def add(self, seq: int, done: _Done) -> None:
        self._done[seq] = done
        self._bytes += len(done.reply)
        while len(self._done) > REPLIES or self._bytes > REPLY_BYTES:
            self._bytes -= len(self._done.popitem(last=False)[1].reply)

    def find(self, seq: int, history: bytes, void: bool) -> bytes | None:
        """Return the reply to exactly this write, if it is here."""
        done = self._done.get(seq)
        return done.reply if done is not None and done[:2] == (history, void) else None


class Incarnation:
    """One life of the service behind a link: frames in, frames out.  No I/O of its own.

    ``make_cut`` makes what tells the state at a marker while the service goes on.
    """

    def __init__(
        self,
        service_class: type[Service],
        number: int,
        build: str,
        make_cut: MakeCut = InlineCapture,
    ) -> None:
        self._service_class = service_class
        self._service = service_class()
        self._number = number
        self._build = build
        self._decoder = Decoder()
        self._epoch = NO_EPOCH
        self._index = wire.NO_KEEPER
        self._fresh = True
        self._last_seq = 0
        self._history = EMPTY_HISTORY
        self._replies = _Replies()
        self._make_cut = make_cut
        self._cut: Capture | None = None
        self._cut_at = 0  # the marker
        self._told = False  # its digest
        self._given = 0  # pieces of its state
        self._wanted = 0  # pieces that the voter has asked for and not got
        self._given_all = 0  # the last marker whose state was given to its end
        self._restoring: tuple[int, wire.CheckpointPayload] | None = None
        self._pieces: list[bytes] = []
        self._received = 0

    def here(self) -> bytes:
        """The frame that tells a listening voter that this incarnation waits for a HELLO."""
        return encode(FrameKind.HERE, 0, self._number)

    def hang_up(self) -> None:
        """The host end of the link was closed: what was cut is not continued."""
        self._decoder.clear()
        self.end_cut()

    def end_cut(self) -> None:
        """Whoever had asked for a digest or a state asks no more."""
        if self._cut is not None:
            self._cut.close()
        self._cut, self._told, self._wanted, self._given = None, False, 0, 0

    @property
    def waits_for(self) -> int:
        """The descriptor that is readable when ``poll`` may have something to say; -1: none."""
        cut = self._cut
        return -1 if cut is None or (self._told and not self._wanted) else cut.fileno()

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Take bytes from the link, act on the frames they complete, yield the bytes to answer.

        Nothing that comes over the link raises: a payload that is not what its kind demands is
        refused.  (The service's own ``SystemExit`` and the like do pass, and end the incarnation.)
        """
        out: list[bytes] = []
        size = 0
        for frame in self._decoder.feed(data):
            if frame.kind == FrameKind.HELLO:
                reply = self._greet(frame)
            elif frame.epoch != self._epoch:
                continue  # left in the channel from before a snapshot was restored
            elif frame.kind == FrameKind.ORDER:
                reply = self._apply(frame)
            else:
                reply = self._attend(frame)
            out.append(reply)
            size += len(reply)
            if size > WRITE_SIZE:
                yield b"".join(out)
                out, size = [], 0
        out.append(self.poll())
        if any(out):
            yield b"".join(out)

    def _attend(self, frame: wire.Frame) -> bytes:
        """Act on a frame that is neither HELLO nor ORDER."""
        kind = frame.kind
        if kind == FrameKind.PING:
            return encode(FrameKind.PONG, self._epoch, frame.seq)
        if kind == FrameKind.MARKER:
            self._mark(frame)
            return b""
        if kind == FrameKind.FETCH:
            return self._fetch(frame)
        if kind == FrameKind.RESTORE:
            self._end_restore()
            self.end_cut()
            try:
                self._restoring = (frame.seq, wire.decode_checkpoint(frame.payload))
            except wire.WireError as error:
                return self._refuse(frame.seq, str(error))
            return self._finish_restore()
        if kind == FrameKind.STATE and self._restoring is not None:
            self._pieces.append(frame.payload)
            self._received += len(frame.payload)
            return self._finish_restore()
        return b""

    def _greet(self, frame: wire.Frame) -> bytes:
        self._epoch = frame.epoch
        self._index = frame.payload[2] if len(frame.payload) > 2 else wire.NO_KEEPER
        welcome = wire.Welcome(
            protocol=wire.PROTOCOL,
            incarnation=self._number,
            fresh=self._fresh,
            last_seq=self._last_seq,
            history=self._history,
            replies_from=self._replies.first,
            state_format=self._service.state_format,
            service=self._service.name,
            build=self._build,
        )
        self._end_restore()
        self.end_cut()
        return encode(FrameKind.WELCOME, self._epoch, frame.seq, wire.encode_welcome(welcome))

    def _apply(self, frame: wire.Frame) -> bytes:
        try:
            order = wire.decode_order(frame.payload)
        except wire.WireError as error:
            return self._refuse(frame.seq, str(error))
        read_only = bool(frame.flags & wire.FLAG_READ_ONLY)
        void = bool(frame.flags & wire.FLAG_VOID)
        if not read_only and frame.seq <= self._last_seq and self._restoring is None:
            known = self._replies.find(frame.seq, order.history, void)
            if known is None:
                return self._refuse(frame.seq, "it is over, and no reply to it is held here")
            return encode(FrameKind.REPLY, self._epoch, frame.seq, known)
        if order.prev != self._history or self._restoring is not None:
            return self._refuse(frame.seq, "the history before it is not the one held here")
        context = Context(
            frame.seq,
            order.time_ns,
            order.history,
            order.caller.decode("utf-8", "replace"),
            read_only,
        )
        self._fresh = False
        reply = VOIDED if void else answer(self._service, order.request, context)
        if not read_only:
            self._last_seq = frame.seq
            self._history = order.history
            self._replies.add(frame.seq, _Done(order.history, void, reply))
        return encode(FrameKind.REPLY, self._epoch, frame.seq, reply)

    def _refuse(self, seq: int, reason: str) -> bytes:
        return encode(FrameKind.REFUSED, self._epoch, seq, reason.encode())

    def _mark(self, frame: wire.Frame) -> None:
        """Take the state as it is now; its digest, and the state itself if this replica is the one
        asked to keep it, are told as they get ready.
        """
        self.end_cut()
        self._given_all = 0  # a voter without a journal may number its markers as one before it did
        self._cut = self._make_cut(self._service, frame.payload[:1] == bytes([self._index]))
        self._cut_at = frame.seq

    def poll(self) -> bytes:
        """Return what has got ready of the digest or the state that the voter waits for."""
        cut, seq = self._cut, self._cut_at
        if cut is None or (self._told and not self._wanted):
            return b""
        try:
            if not self._told:
                digest = cut.tell()
                if digest is None:
                    return b""
                self._told = True
                return encode(FrameKind.DIGEST, self._epoch, seq, digest)
            taken = cut.take()
        except CaptureError as error:
            self.end_cut()
            return self._refuse(seq, str(error))
        if taken is None:
            return b""
        piece, last = taken
        self._wanted -= 1
        self._given += 1
        if last:
            self.end_cut()
            self._given_all = seq
        flags = wire.FLAG_LAST if last else 0
        return encode(FrameKind.STATE, self._epoch, seq, piece, flags)

    def _fetch(self, frame: wire.Frame) -> bytes:
        """One more piece of the state is wanted: they are given in order, each once.  A few are
        asked for ahead, so some may be asked for after the last one.
        """
        if frame.seq == self._given_all:
            return b""
        if self._cut is None or self._cut_at != frame.seq or not self._told:
            return self._refuse(frame.seq, "no state is kept of this marker")
        following = (self._given + self._wanted) * STATE_PIECE
        if frame.payload != following.to_bytes(8) or self._wanted >= FETCH_AHEAD:
            return self._refuse(frame.seq, f"the next piece begins at {following}")
        self._wanted += 1
        return self.poll()

    def _end_restore(self) -> None:
        self._restoring, self._pieces, self._received = None, [], 0

    def _finish_restore(self) -> bytes:
        """Once the announced size is here: rebuild the service from it and tell its digest."""
        if self._restoring is None:
            return b""
        seq, checkpoint = self._restoring
        if self._received < checkpoint.size:
            return b""
        state = b"".join(self._pieces)
        self._end_restore()
        try:
            service = self._service_class()
            if state:
                service.restore(state)
            digest = service.digest()
        except Exception as error:  # noqa: BLE001 - told to the voter, who then does not use it
            return self._refuse(seq, f"restore failed: {type(error).__name__}: {error}"[:500])
        self._service = service
        self._replies = _Replies()
        self._fresh = False
        self._last_seq, self._history = seq, checkpoint.history
        return encode(FrameKind.RESTORED, self._epoch, seq, digest)
