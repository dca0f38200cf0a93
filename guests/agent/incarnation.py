"""An incarnation: one start of the service behind a link, as a state machine over bytes.

``receive`` takes bytes from the link and yields the bytes to send.  HELLO opens an epoch; frames of
other epochs are ignored.  ORDER carries one request together with the hash of the history before
it.  A replica whose history is another refuses it: it applies nothing out of order.  ORDERS carries
several requests, which are applied as if each had come alone, and answered together.  The replies
to writes are cached, so that a voter that lost them can send its requests again.

MARKER captures the state (see ``capture``).  The digest, and the state if this replica is asked to
keep it, are sent by ``poll`` as they become ready; requests are applied meanwhile.  RESTORE and the
STATE frames after it replace the service by one that is built from the transferred state.

Nothing here does input or output, except a capture that forks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from guests.agent.capture import Capture, CaptureError, InlineCapture, MakeCapture
from guests.answer import answer
from guests.protocol import wire
from guests.protocol.message import Reply, encode_reply
from guests.protocol.wire import (
    EMPTY_HISTORY,
    FETCH_AHEAD,
    FLAG_READ_ONLY,
    FLAG_VOID,
    REPLIES_SIZE,
    REPLIES_TIME,
    STATE_PIECE,
    Decoder,
    FrameKind,
    encode,
)
from guests.service import Context, Service

__all__ = ["Incarnation"]

VOIDED = encode_reply(Reply(500, "this request ended the service, and was voided\n"))
WRITE_SIZE = 1 << 18
"""Bytes of answers that are joined to one write: one read may ask for more than memory holds."""
REPLIES, REPLY_BYTES = 8192, 8 << 20
"""Most replies to writes that are cached, and most bytes of them (one reply more at most)."""
NO_EPOCH = -1
"""No frame has this epoch: before the first HELLO all frames are ignored."""


class _Refusal(Exception):
    """A request cannot be applied here; the text is the reason."""


class _ReplyCache:
    """The last replies to writes, for a voter that lost them.

    There is no gap: it holds all replies from ``first`` on (0: it holds none).  Of a write it keeps
    the history after it, whether it was voided, and the reply.  Once the newer half is full, the
    older one is dropped as a whole: one at a time would cost as much as adding it.
    """

    def __init__(self) -> None:
        self._older: dict[int, tuple[bytes, bool, bytes]] = {}
        self._newer: dict[int, tuple[bytes, bool, bytes]] = {}
        self._bytes = 0  # of the replies in the newer half
        self._most, self._most_bytes = REPLIES // 2, REPLY_BYTES // 2

    @property
    def first(self) -> int:
        return next(iter(self._older or self._newer), 0)

    def add(self, seq: int, history: bytes, void: bool, reply: bytes) -> None:
        self._newer[seq] = (history, void, reply)
        self._bytes += len(reply)
        if len(self._newer) >= self._most or self._bytes >= self._most_bytes:
            self._older, self._newer, self._bytes = self._newer, {}, 0

    def find(self, seq: int, history: bytes, void: bool) -> bytes | None:
        """Return the reply to exactly this write, or None."""
        done = self._newer.get(seq) or self._older.get(seq)
        return done[2] if done is not None and done[:2] == (history, void) else None


class Incarnation:
    """One start of the service behind a link.

    ``number`` counts the starts since boot.  ``make_capture`` captures the state at a marker.
    ``clock`` returns seconds: answers of a long batch are yielded every REPLIES_TIME seconds.
    """

    def __init__(
        self,
        service_class: type[Service],
        number: int,
        build: str,
        make_capture: MakeCapture = InlineCapture,
        clock: Callable[[], float] = time.monotonic,
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
        self._replies = _ReplyCache()
        self._clock = clock
        self._waited = -1.0  # since when a batch has waited for answers; -1: there is none
        self._make_capture = make_capture
        self._capture: Capture | None = None
        self._capture_seq = 0  # number of its marker
        self._digest_sent = False
        self._sent = 0  # pieces of its state
        self._requested = 0  # pieces that the voter has asked for and that were not sent yet
        self._completed_seq = 0  # the last marker whose state was sent completely
        self._restoring: tuple[int, wire.CheckpointPayload] | None = None
        self._pieces: list[bytes] = []
        self._received = 0

    def announce(self) -> bytes:
        """Return the frame that asks a listening voter for a HELLO."""
        return encode(FrameKind.HERE, 0, self._number)

    def disconnect(self) -> None:
        """Forget a partial frame and the capture: the host end of the link was closed."""
        self._decoder.clear()
        self.end_capture()

    def end_capture(self) -> None:
        """End the capture, if there is one: nobody waits for it any more."""
        if self._capture is not None:
            self._capture.close()
        self._capture, self._digest_sent, self._requested, self._sent = None, False, 0, 0

    @property
    def capture_fd(self) -> int:
        """The descriptor that is readable when ``poll`` may return bytes; -1: none."""
        capture = self._capture
        if capture is None or (self._digest_sent and not self._requested):
            return -1
        return capture.fileno()

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Take bytes from the link, act on the frames that they complete, yield the answers.

        No input raises: a payload that its kind does not allow is refused.  Only the service's own
        ``SystemExit`` and the like pass, and end the incarnation.
        """
        out: list[bytes] = []
        size = 0
        for frame in self._decoder.feed(data):
            if frame.kind == FrameKind.HELLO:
                answers: Iterable[bytes] = (self._welcome(frame),)
            elif frame.epoch != self._epoch:
                continue  # sent before the guest was reverted to a snapshot
            elif frame.kind == FrameKind.ORDER:
                answers = (self._apply_order(frame),)
            elif frame.kind == FrameKind.ORDERS:
                answers = self._apply_orders(frame)
            else:
                answers = (self._handle(frame),)
            for reply in answers:
                out.append(reply)
                size += len(reply)
                if size > WRITE_SIZE or self._is_late():
                    yield b"".join(out)
                    out, size = [], 0
                    self._waited = -1.0 if self._waited < 0 else self._clock()
        self._waited = -1.0
        out.append(self.poll())
        if any(out):
            yield b"".join(out)

    def _is_late(self) -> bool:
        """Return whether a batch has waited for so long that the voter must get some answers."""
        return self._waited >= 0 and self._clock() - self._waited > REPLIES_TIME

    def _handle(self, frame: wire.Frame) -> bytes:
        """Act on a frame that is neither HELLO nor carries requests."""
        kind = frame.kind
        if kind == FrameKind.PING:
            return encode(FrameKind.PONG, self._epoch, frame.seq)
        if kind == FrameKind.MARKER:
            self._start_capture(frame)
            return b""
        if kind == FrameKind.FETCH:
            return self._fetch(frame)
        if kind == FrameKind.RESTORE:
            self._end_restore()
            self.end_capture()
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

    def _welcome(self, frame: wire.Frame) -> bytes:
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
        self.end_capture()
        return encode(FrameKind.WELCOME, self._epoch, frame.seq, wire.encode_welcome(welcome))

    def _apply_order(self, frame: wire.Frame) -> bytes:
        try:
            time_ns, prev, history, caller, request = wire.decode_order(frame.payload)
            flags = frame.flags
            reply = self._apply(frame.seq, flags, time_ns, prev, history, caller, request)
        except (wire.WireError, _Refusal) as error:
            return self._refuse(frame.seq, str(error))
        return encode(FrameKind.REPLY, self._epoch, frame.seq, reply)

    def _apply_orders(self, frame: wire.Frame) -> Iterator[bytes]:
        """Apply the requests of a batch one by one; yield the frames that answer them.

        One REPLIES frame answers all, unless it would be too large or too late: then it is sent
        with the replies that there are, and the next frame has the rest.  After the first request
        that is refused, the others are not looked at: they follow it in the history.
        """
        try:
            time_ns, prev, items = wire.decode_orders(frame.payload)
        except wire.WireError as error:
            yield self._refuse(frame.seq, str(error))
            return
        if frame.seq + items[-1][0] >= 1 << 64:
            yield self._refuse(frame.seq, "the last request's number has more than 64 bits")
            return
        if self._waited < 0:
            self._waited = self._clock()
        replies: list[bytes] = []
        first = frame.seq
        size = 0
        for offset, history, flags, caller, request in items:
            seq = frame.seq + offset
            try:
                reply = self._apply(seq, flags, time_ns, prev, history, caller, request)
            except _Refusal as refusal:  # another name than above: mypyc gives a name one type
                if replies:
                    yield self._encode_replies(first, replies)
                yield self._refuse(seq, str(refusal))
                return
            if not flags & FLAG_READ_ONLY:
                prev = history
            if replies and size + len(reply) > REPLIES_SIZE:
                yield self._encode_replies(first, replies)
                replies = []
            if not replies:
                first, size = seq, 0
            replies.append(reply)
            size += len(reply)
            if self._is_late():
                yield self._encode_replies(first, replies)
                replies = []
        if replies:
            yield self._encode_replies(first, replies)

    def _encode_replies(self, first: int, replies: list[bytes]) -> bytes:
        return encode(FrameKind.REPLIES, self._epoch, first, wire.encode_replies(replies))

    def _apply(
        self,
        seq: int,
        flags: int,
        time_ns: int,
        prev: bytes,
        history: bytes,
        caller: bytes,
        request: bytes,
    ) -> bytes:
        """Apply a request, unless it was applied; return its reply.  Raises _Refusal."""
        read_only = bool(flags & FLAG_READ_ONLY)
        void = bool(flags & FLAG_VOID)
        if not read_only and seq <= self._last_seq and self._restoring is None:
            known = self._replies.find(seq, history, void)
            if known is None:
                raise _Refusal("already applied, and its reply is no longer cached")
            return known
        if prev != self._history or self._restoring is not None:
            raise _Refusal("the history before it is not the one held here")
        self._fresh = False
        if void:
            reply = VOIDED
        else:
            try:  # a direct call in the compiled form, unlike that with "replace"
                name = caller.decode("utf-8")
            except UnicodeDecodeError:
                name = caller.decode("utf-8", "replace")
            context = Context(seq, time_ns, history, name, read_only)
            reply = answer(self._service, request, context)
        if not read_only:
            self._last_seq = seq
            self._history = history
            self._replies.add(seq, history, void, reply)
        return reply

    def _refuse(self, seq: int, reason: str) -> bytes:
        return encode(FrameKind.REFUSED, self._epoch, seq, reason.encode())

    def _start_capture(self, frame: wire.Frame) -> None:
        """Capture the state now, with its bytes if this replica is the one asked to keep them."""
        self.end_capture()
        self._completed_seq = 0  # a new voter without a journal may use the same numbers again
        self._capture = self._make_capture(self._service, frame.payload[:1] == bytes([self._index]))
        self._capture_seq = frame.seq

    def poll(self) -> bytes:
        """Return the next frame with the digest or the state, if it is ready and asked for."""
        capture, seq = self._capture, self._capture_seq
        if capture is None or (self._digest_sent and not self._requested):
            return b""
        try:
            if not self._digest_sent:
                digest = capture.digest()
                if digest is None:
                    return b""
                self._digest_sent = True
                return encode(FrameKind.DIGEST, self._epoch, seq, digest)
            taken = capture.next_piece()
        except CaptureError as error:
            self.end_capture()
            return self._refuse(seq, str(error))
        if taken is None:
            return b""
        piece, last = taken
        self._requested -= 1
        self._sent += 1
        if last:
            self.end_capture()
            self._completed_seq = seq
        flags = wire.FLAG_LAST if last else 0
        return encode(FrameKind.STATE, self._epoch, seq, piece, flags)

    def _fetch(self, frame: wire.Frame) -> bytes:
        """Send the next piece of the state: pieces are sent in order, each once.

        The voter asks for some ahead, so it may also ask for pieces after the last one.
        """
        if frame.seq == self._completed_seq:
            return b""
        if self._capture is None or self._capture_seq != frame.seq or not self._digest_sent:
            return self._refuse(frame.seq, "no state is kept for this marker")
        following = (self._sent + self._requested) * STATE_PIECE
        if frame.payload != following.to_bytes(8) or self._requested >= FETCH_AHEAD:
            return self._refuse(frame.seq, f"the next piece begins at {following}")
        self._requested += 1
        return self.poll()

    def _end_restore(self) -> None:
        self._restoring, self._pieces, self._received = None, [], 0

    def _finish_restore(self) -> bytes:
        """Rebuild the service once the announced size has arrived; return its digest."""
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
        except Exception as error:  # noqa: BLE001 - the voter gets it, and does not use this replica
            return self._refuse(seq, f"restore failed: {type(error).__name__}: {error}"[:500])
        self._service = service
        self._replies = _ReplyCache()
        self._fresh = False
        self._last_seq, self._history = seq, checkpoint.history
        return encode(FrameKind.RESTORED, self._epoch, seq, digest)
