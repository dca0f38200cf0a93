"""One incarnation of the service behind a link, in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.agent.capture import CaptureError, InlineCapture
from guests.agent.incarnation import WRITE_SIZE
from guests.protocol import wire
from guests.protocol.message import Reply, Request, encode_request
from guests.protocol.wire import FETCH_AHEAD, STATE_PIECE, Decoder, Frame, FrameKind, encode
from guests.service import Context, Service, state_digest
from guests.services.kv import KeyValue
from tests.guests.voter_side import EMPTY, Voter, get, kv_state, put_request


@pytest.fixture
def voter() -> Voter:
    """Return a voter after the handshake."""
    it = Voter()
    it.hello()
    return it


# -------------------------------------------------------------- handshake


def test_welcome_identifies_the_replica() -> None:
    welcome = Voter().hello()
    assert welcome == wire.Welcome(wire.PROTOCOL, 3, True, 0, EMPTY, 0, 1, "kv", "build-1")


def test_welcome_reports_the_last_write_after_requests(voter: Voter) -> None:
    voter.put("a")
    voter.order(get("a"), read_only=True)
    welcome = voter.hello(78)
    assert (welcome.fresh, welcome.last_seq, welcome.history) == (False, 1, b"h0000001")


def test_frames_are_ignored_before_the_first_hello() -> None:
    voter = Voter()
    for epoch in (0, 1):
        voter.epoch = epoch
        assert voter.send(voter.order_frame(get("a"))) == []
        assert voter.send(encode(FrameKind.PING, epoch, 0)) == []
        assert voter.restore(b"") == []
    assert voter.hello().fresh


def test_frames_of_another_epoch_are_ignored() -> None:
    voter = Voter()
    voter.hello(77)
    late = voter.order_frame(get("a"))
    voter.hello(78)
    assert voter.send(late) == []
    voter.seq, voter.history = 0, EMPTY
    assert voter.put("a").kind == FrameKind.REPLY


def test_repeated_hello_keeps_the_epoch_usable(voter: Voter) -> None:
    """The voter repeats a HELLO that was not answered in time; its orders follow."""
    voter.hello()
    assert voter.put("a").kind == FrameKind.REPLY
    assert voter.put("b").kind == FrameKind.REPLY


def test_short_hello_is_answered_with_the_protocol_version() -> None:
    voter = Voter()
    (frame,) = voter.send(encode(FrameKind.HELLO, 5, 0))
    assert wire.decode_welcome(frame.payload).protocol == wire.PROTOCOL


# --------------------------------------------------------------- ordering


def test_requests_are_applied_and_answered_in_order(voter: Voter) -> None:
    data = b"".join(
        voter.order_frame(encode_request("PUT", "/kv/n", [], b"%d" % n)) for n in range(50)
    )
    data += voter.order_frame(get("n"), read_only=True)
    frames = voter.send(data)
    assert [frame.seq for frame in frames] == list(range(1, 52))
    assert Reply.decode(frames[-1].payload).body == b"49"


@pytest.mark.parametrize("read_only", [False, True])
def test_request_is_refused_when_its_history_is_another(voter: Voter, read_only: bool) -> None:
    voter.put("a")
    right, voter.history = voter.history, b"another!"
    frame = voter.order(get("a"), read_only=read_only)
    assert (frame.kind, frame.seq) == (FrameKind.REFUSED, 2)
    voter.history = right
    assert voter.put("b").kind == FrameKind.REPLY, "nothing has changed"


# ---------------------------------------------------------- cached replies


def increment(voter: Voter) -> bytes:
    return voter.order_frame(encode_request("POST", "/kv/n?increment", [], b""))


def again(frame: bytes, *, epoch: int = 78, flags: int | None = None) -> bytes:
    """Return the same ORDER, as a voter sends it that lost the reply."""
    (order,) = Decoder().feed(frame)
    return encode(order.kind, epoch, order.seq, order.payload, order.flags | (flags or 0))


def test_repeated_write_is_answered_from_the_cache_and_not_applied(voter: Voter) -> None:
    orders = [increment(voter) for _ in range(5)]
    first = voter.send(b"".join(orders))
    assert [Reply.decode(frame.payload).body for frame in first] == [b"1", b"2", b"3", b"4", b"5"]
    assert voter.hello(78).replies_from == 1
    repeated = voter.send(b"".join(again(order) for order in orders[2:]))
    assert [(f.kind, f.seq, f.payload) for f in repeated] == [
        (f.kind, f.seq, f.payload) for f in first[2:]
    ]
    (more,) = voter.send(increment(voter))
    assert Reply.decode(more.payload).body == b"6", "the state has not changed"


def test_write_is_refused_when_another_was_applied_there(voter: Voter) -> None:
    """Another sequence number, another history, or voided since: not the write that was applied."""
    first, second = increment(voter), increment(voter)
    voter.send(first + second)
    voter.hello(78)
    other = wire.encode_order(1, EMPTY, b"another!", b"me", b"x")
    for frame in (
        again(first, flags=wire.FLAG_VOID),
        encode(FrameKind.ORDER, 78, 1, other),
        encode(FrameKind.ORDER, 78, 0, other),
    ):
        (refused,) = voter.send(frame)
        assert refused.kind == FrameKind.REFUSED
    assert voter.hello(79).last_seq == 2


def test_repeated_voided_write_stays_voided(voter: Voter) -> None:
    order = wire.encode_order(1, EMPTY, b"skipped!", b"", put_request("a", b"1"))
    (first,) = voter.send(encode(FrameKind.ORDER, 77, 1, order, wire.FLAG_VOID))
    voter.hello(78)
    (repeated,) = voter.send(encode(FrameKind.ORDER, 78, 1, order, wire.FLAG_VOID))
    assert repeated.payload == first.payload
    (refused,) = voter.send(encode(FrameKind.ORDER, 78, 1, order))
    assert refused.kind == FrameKind.REFUSED


def test_reply_cache_is_empty_after_a_restore(voter: Voter) -> None:
    state, _ = kv_state(a=b"1")
    old = increment(voter)
    voter.send(old)
    voter.restore(state)
    assert voter.hello(78).replies_from == 0
    (refused,) = voter.send(again(old))
    assert refused.kind == FrameKind.REFUSED
    voter.seq, voter.history = 60, b"restored"
    voter.put("b")
    assert voter.hello(79).replies_from == 61


@pytest.mark.parametrize("size", [10, 100_000])
def test_reply_cache_drops_the_oldest_beyond_its_limits(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Long(Service):
        name = "long"

        def apply(self, request: Request, context: Context) -> Reply:
            return Reply(200, bytes(size))

    monkeypatch.setattr("guests.agent.incarnation.REPLIES", 50)
    monkeypatch.setattr("guests.agent.incarnation.REPLY_BYTES", 1_000_000)
    voter = Voter(Long)
    voter.hello()
    orders = [voter.order_frame(get("x")) for _ in range(212)]
    voter.send(b"".join(orders))
    kept = 213 - voter.hello(78).replies_from
    most = 50 if size == 10 else 10
    assert most // 2 <= kept <= most
    assert len(voter.send(b"".join(again(order) for order in orders[-kept:]))) == kept
    (refused,) = voter.send(again(orders[-kept - 1]))
    assert refused.kind == FrameKind.REFUSED


def test_voided_request_is_skipped_and_counts_in_the_history(voter: Voter) -> None:
    voter.put("a", b"1")
    skipped = wire.encode_order(1, voter.history, b"skipped!", b"", put_request("a", b"2"))
    (frame,) = voter.send(encode(FrameKind.ORDER, 77, 2, skipped, wire.FLAG_VOID))
    assert (frame.kind, Reply.decode(frame.payload).status) == (FrameKind.REPLY, 500)
    voter.seq, voter.history = 2, b"skipped!"
    assert Reply.decode(voter.order(get("a")).payload).body == b"1"
    assert voter.hello(78).last_seq == 3


def test_context_comes_from_the_order() -> None:
    seen: list[Context] = []

    class Recorder(Service):
        name = "recorder"

        def apply(self, request: Request, context: Context) -> Reply:
            seen.append(context)
            return Reply(200, b"%d" % context.random.randrange(10**9))

    replies = []
    for _ in range(2):
        voter = Voter(Recorder)
        voter.hello()
        payload = wire.encode_order(12_000_000_000, EMPTY, b"history1", "jörg".encode(), get("a"))
        (frame,) = voter.send(encode(FrameKind.ORDER, 77, 9, payload, wire.FLAG_READ_ONLY))
        replies.append(frame.payload)
    context = seen[0]
    assert (context.seq, context.time, context.caller, context.read_only) == (9, 12.0, "jörg", True)
    assert replies[0] == replies[1], "the random source is seeded by the history"


def test_large_replies_are_yielded_one_by_one(voter: Voter) -> None:
    """One read of the link may ask for more replies than fit into the guest's memory."""
    voter.put("big", bytes(1 << 20))
    data = b"".join(voter.order_frame(get("big"), read_only=True) for _ in range(20))
    pieces = list(voter.incarnation.receive(data))
    assert len(pieces) == 20
    assert max(map(len, pieces)) < (1 << 20) + WRITE_SIZE
    assert sum(len(voter.decoder.feed(piece)) for piece in pieces) == 20


# ------------------------------------------------------------------ batches


class Script(Service):
    """Replies with the body; a path ``/end`` ends the process, ``/fail`` raises, ``/large`` is."""

    name = "script"

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def apply(self, request: Request, context: Context) -> Reply:
        if request.path == "/end":
            raise SystemExit(3)
        if request.path == "/fail":
            raise RuntimeError
        if not context.read_only:
            self.bodies.append(request.body)
        if request.path == "/large":
            return Reply(200, bytes(int(request.body)))
        return Reply(200, b"%d %s" % (len(self.bodies), request.body))


def script(path: str = "/", body: bytes = b"x") -> bytes:
    return encode_request("POST", path, [], body)


def bodies(frame: Frame) -> list[bytes]:
    """Return the bodies of the replies in a REPLIES frame."""
    assert frame.kind == FrameKind.REPLIES
    return [Reply.decode(reply).body for reply in wire.decode_replies(frame.payload)]


def test_batch_is_answered_like_single_requests(voter: Voter) -> None:
    """Reply by reply the same bytes, and the same state after it."""
    requests = [put_request("a", b"1"), get("a"), b"no request", get("b"), put_request("b", b"2")]
    flags = [0, wire.FLAG_READ_ONLY, 0, wire.FLAG_READ_ONLY, wire.FLAG_VOID]
    (answer,) = voter.send(voter.orders_frame(*requests, flags=flags))
    assert (answer.kind, answer.epoch, answer.seq) == (FrameKind.REPLIES, 77, 1)
    other = Voter()
    other.hello()
    singles = []
    for request, flag in zip(requests, flags, strict=True):
        other.seq += 1
        payload = wire.encode_order(1, other.history, b"h%07d" % other.seq, b"me", request)
        singles += other.send(encode(FrameKind.ORDER, 77, other.seq, payload, flag))
        if not flag & wire.FLAG_READ_ONLY:
            other.history = b"h%07d" % other.seq
    assert [frame.kind for frame in singles] == [FrameKind.REPLY] * 5
    assert wire.decode_replies(answer.payload) == [frame.payload for frame in singles]
    assert voter.hello(78) == other.hello(78)
    assert voter.mark(1) == other.mark(1)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_batch_may_arrive_in_pieces(voter: Voter, size: int) -> None:
    data = voter.orders_frame(*(put_request("a", b"%d" % n) for n in range(64)))
    frames = []
    for at in range(0, len(data), size):
        frames += voter.send(data[at : at + size])
    assert [len(wire.decode_replies(frame.payload)) for frame in frames] == [64]


def test_batch_that_is_cut_off_applies_nothing(voter: Voter) -> None:
    data = voter.orders_frame(put_request("a", b"1"), put_request("a", b"2"))
    assert voter.send(data[:-1]) == []
    voter.incarnation.disconnect()
    assert voter.hello(78).fresh


def test_batch_with_a_wrong_payload_is_refused_as_a_whole(voter: Voter) -> None:
    (whole,) = Decoder().feed(voter.orders_frame(put_request("a", b"1"), put_request("a", b"2")))
    for payload in (whole.payload[:-1], whole.payload + b"x", b"", bytes(18)):
        (refused,) = voter.send(encode(FrameKind.ORDERS, 77, 1, payload))
        assert (refused.kind, refused.seq) == (FrameKind.REFUSED, 1)
    (refused,) = voter.send(encode(FrameKind.ORDERS, 77, (1 << 64) - 1, whole.payload))
    assert refused.kind == FrameKind.REFUSED, "the second number has 65 bits"
    assert voter.hello(78).fresh


def test_repeated_batch_is_answered_from_the_cache_and_the_rest_is_applied() -> None:
    """A voter sends it again that lost the replies, or of which only a part arrived."""
    voter = Voter(Script)
    voter.hello()
    requests = [script(body=b"a"), script("/fail", b"b"), script(body=b"c"), script(body=b"d")]
    first = voter.send(voter.orders_frame(*requests[:2]))
    voter.seq, voter.history = 0, EMPTY
    (answer,) = voter.send(voter.orders_frame(*requests))
    assert wire.decode_replies(answer.payload)[:2] == wire.decode_replies(first[0].payload)
    assert bodies(answer)[2:] == [b"2 c", b"3 d"]
    voter.seq, voter.history = 0, EMPTY
    assert voter.send(voter.orders_frame(*requests)) == [answer]
    voter.seq, voter.history = 2, b"h0000002"
    assert bodies(voter.send(voter.orders_frame(*requests[2:]))[0]) == [b"2 c", b"3 d"]
    voter.seq, voter.history = 3, b"h0000003"
    assert Reply.decode(voter.order(requests[3]).payload).body == b"3 d", "also singly"


def test_batch_ends_at_the_first_request_that_is_refused(voter: Voter) -> None:
    voter.send(voter.orders_frame(put_request("a", b"1"), put_request("a", b"2")))
    voter.seq, voter.history = 0, EMPTY
    flags = [0, wire.FLAG_VOID, 0]
    answers = voter.send(voter.orders_frame(*[put_request("a", b"1")] * 3, flags=flags))
    assert [(frame.kind, frame.seq) for frame in answers] == [
        (FrameKind.REPLIES, 1),
        (FrameKind.REFUSED, 2),
    ]
    assert len(wire.decode_replies(answers[0].payload)) == 1
    assert voter.hello(78).last_seq == 2, "the third was not applied"


@pytest.mark.parametrize("flag", [0, wire.FLAG_READ_ONLY, wire.FLAG_VOID])
def test_batch_is_refused_when_its_history_is_another(voter: Voter, flag: int) -> None:
    voter.put("a")
    voter.history = b"another!"
    (refused,) = voter.send(voter.orders_frame(get("a"), get("a"), flags=[flag]))
    assert (refused.kind, refused.seq) == (FrameKind.REFUSED, 2)
    assert voter.hello(78).last_seq == 1


def test_batch_is_refused_while_a_state_is_awaited(voter: Voter) -> None:
    voter.put("a")
    assert voter.restore(b"", size=10) == []
    (refused,) = voter.send(voter.orders_frame(get("a"), put_request("a", b"2")))
    assert (refused.kind, refused.seq) == (FrameKind.REFUSED, 2)
    voter.seq, voter.history = 0, EMPTY
    (refused,) = voter.send(voter.orders_frame(put_request("a", b"v"), get("a")))
    assert (refused.kind, refused.seq) == (FrameKind.REFUSED, 1)


def test_batch_of_another_epoch_is_ignored(voter: Voter) -> None:
    late = voter.orders_frame(get("a"), get("a"))
    voter.hello(78)
    assert voter.send(late) == []
    assert voter.hello(79).fresh


def test_request_that_ends_the_service_in_a_batch_ends_the_incarnation() -> None:
    voter = Voter(Script)
    voter.hello()
    with pytest.raises(SystemExit):
        voter.send(voter.orders_frame(script(), script("/end"), script()))


def test_large_replies_to_a_batch_are_sent_in_several_frames() -> None:
    """Cut before the reply that would be too much: also the largest reply fits into a frame."""
    voter = Voter(Script)
    voter.hello()
    sizes = [40_000, 20_000, 10_000, 1 << 20, 5, 1 << 20, 65_000, 6]
    answers = voter.send(voter.orders_frame(*(script("/large", b"%d" % size) for size in sizes)))
    assert [frame.seq for frame in answers] == [1, 3, 4, 5, 6, 7]
    assert [[len(body) for body in bodies(frame)] for frame in answers] == [
        [40_000, 20_000], [10_000], [1 << 20], [5], [1 << 20], [65_000, 6]
    ]  # fmt: skip


def test_replies_to_a_slow_batch_are_yielded_before_it_ends() -> None:
    """Otherwise the voter would take a guest for hung that works."""
    now = [0.0]

    class Slow(Service):
        name = "slow"

        def apply(self, request: Request, context: Context) -> Reply:
            now[0] += float(request.body)
            return Reply(200, b"%.2f" % now[0])

    voter = Voter(Slow, clock=lambda: now[0])
    voter.hello()
    orders = voter.orders_frame(*(script(body=b"0.04") for _ in range(8)))
    ends = []
    for piece in voter.incarnation.receive(orders + voter.order_frame(script(body=b"0.01"))):
        ends.append(now[0])
        frames = voter.decoder.feed(piece)
        if len(ends) < 3:
            assert len(frames) == 1
            assert len(bodies(frames[0])) == 3
        else:
            assert [frame.kind for frame in frames] == [FrameKind.REPLIES, FrameKind.REPLY]
    assert ends == pytest.approx([0.12, 0.24, 0.33])


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_any_batch_is_answered_or_refused(payload: bytes, seq: int) -> None:
    voter = Voter()
    voter.hello()
    (frame,) = voter.send(encode(FrameKind.ORDERS, 77, seq, payload))
    assert frame.kind in (FrameKind.REFUSED, FrameKind.REPLIES)


# ------------------------------------------------------ markers and states


def test_marker_returns_the_digest_and_only_the_keeper_keeps_the_state() -> None:
    voter = Voter()
    voter.hello(index=1)
    voter.put("a", b"x" * 200_000)
    assert voter.mark(keeper=2) == voter.mark(keeper=wire.NO_KEEPER)
    assert voter.fetch(voter.seq).kind == FrameKind.REFUSED
    digest = voter.mark(keeper=1)
    seq = voter.seq
    voter.put("a", b"later")
    state, offset = b"", 0
    while True:
        frame = voter.fetch(seq, offset)
        assert (frame.kind, frame.seq) == (FrameKind.STATE, seq)
        assert len(frame.payload) <= STATE_PIECE
        state += frame.payload
        offset += len(frame.payload)
        if frame.flags & wire.FLAG_LAST:
            break
    assert len(state) > 200_000
    assert state_digest(iter((state,))) == digest, "the state at the marker, not the present one"
    late = encode(FrameKind.FETCH, voter.epoch, seq, offset.to_bytes(8))
    assert voter.send(late) == [], "requested ahead, before the voter knew the last piece"
    assert voter.incarnation.capture_fd == -1


def test_next_voter_may_use_the_same_marker_number() -> None:
    voter = Voter()
    for epoch in (77, 78):
        voter.epoch, voter.seq = epoch, 8
        voter.hello(epoch)
        voter.mark(keeper=1)
        assert voter.fetch(9).flags & wire.FLAG_LAST


def test_pieces_are_sent_in_order_and_once(voter: Voter) -> None:
    voter.put("a", bytes(200_000))
    voter.mark(keeper=1)
    seq = voter.seq
    for offset in (10**12, 1, STATE_PIECE):
        assert voter.fetch(seq, offset).kind == FrameKind.REFUSED
    assert voter.fetch(seq, 0).kind == FrameKind.STATE
    assert voter.fetch(seq, 0).kind == FrameKind.REFUSED
    assert voter.fetch(seq, 2 * STATE_PIECE).kind == FrameKind.REFUSED
    assert voter.fetch(seq, STATE_PIECE).kind == FrameKind.STATE


def test_empty_state_is_one_piece() -> None:
    class Stateless(Service):
        name = "stateless"

        def apply(self, request: Request, context: Context) -> Reply:
            return Reply(200, b"")

    voter = Voter(Stateless)
    voter.hello()
    voter.mark(keeper=1)
    frame = voter.fetch(voter.seq)
    assert (frame.kind, frame.payload, frame.flags) == (FrameKind.STATE, b"", wire.FLAG_LAST)


def test_restored_replica_continues_from_the_restored_state(voter: Voter) -> None:
    state, digest = kv_state(a=b"1", b=b"2" * 500)
    voter.put("other")
    (frame,) = voter.restore(state)
    assert (frame.kind, frame.seq, frame.payload) == (FrameKind.RESTORED, 50, digest)
    voter.seq, voter.history = 50, b"restored"
    assert Reply.decode(voter.order(get("b")).payload).body == b"2" * 500
    assert Reply.decode(voter.order(get("other")).payload).status == 404
    welcome = voter.hello(78)
    assert (welcome.last_seq, welcome.history, welcome.fresh) == (52, b"h0000052", False)


def test_empty_state_is_restored_without_pieces(voter: Voter) -> None:
    voter.put("a")
    (frame,) = voter.restore(b"", seq=0)
    assert frame.payload == KeyValue().digest()
    assert voter.hello(78).last_seq == 0


@pytest.mark.parametrize("state", [b"garbage", b"TVKV\x00\x01", bytes(500)])
def test_invalid_state_is_refused_and_changes_nothing(voter: Voter, state: bytes) -> None:
    voter.put("a")
    (frame,) = voter.restore(state)
    assert (frame.kind, frame.seq) == (FrameKind.REFUSED, 50)
    assert b"restore failed" in frame.payload
    assert voter.put("b").kind == FrameKind.REPLY


def test_requests_are_refused_while_a_state_arrives(voter: Voter) -> None:
    state, _ = kv_state(a=b"1")
    assert voter.restore(state[:-1], size=len(state)) == []
    assert voter.put("a").kind == FrameKind.REFUSED
    (frame,) = voter.send(encode(FrameKind.STATE, 77, 50, state[-1:]))
    assert frame.kind == FrameKind.RESTORED


def test_handshake_aborts_a_restore(voter: Voter) -> None:
    state, _ = kv_state(a=b"1")
    voter.restore(state[:-1], size=len(state))
    voter.hello(78)
    assert voter.send(encode(FrameKind.STATE, 78, 50, state[-1:])) == []
    assert voter.put("a").kind == FrameKind.REPLY


class Broken(Service):
    """A service whose snapshot fails."""

    name = "broken"

    def apply(self, request: Request, context: Context) -> Reply:
        return Reply(200, b"ok")

    def snapshot(self) -> Iterator[bytes]:
        raise RuntimeError(f"at {id(self)}")

    def restore(self, state: bytes) -> None:
        raise RuntimeError("never")


def test_service_whose_snapshot_fails_continues_and_agrees() -> None:
    digests = set()
    for _ in range(2):
        voter = Voter(Broken)
        voter.hello()
        digests |= {voter.mark(keeper=0), voter.mark(keeper=1)}
        assert voter.fetch(voter.seq).kind == FrameKind.REFUSED
        assert voter.order(get("a")).kind == FrameKind.REPLY
        assert voter.restore(b"x")[0].kind == FrameKind.REFUSED
        assert voter.restore(b"")[0].kind == FrameKind.REFUSED
    assert digests == {b"no digest: RuntimeError"}


# ---------------------------------------------------------- captures that take time


class LateCapture(InlineCapture):
    """A capture that is ready when the test sets ``ready``."""

    made: list[LateCapture]

    def __init__(self, service: Service, keep: bool) -> None:
        super().__init__(service, keep)
        self.ready = self.broken = self.closed = False
        self.made.append(self)

    def fileno(self) -> int:
        return 99

    def _wait(self) -> bool:
        if self.broken:
            raise CaptureError("broken")
        return not self.ready

    def digest(self) -> bytes | None:
        return None if self._wait() else super().digest()

    def next_piece(self) -> tuple[bytes, bool] | None:
        return None if self._wait() else super().next_piece()

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def late() -> Voter:
    """A voter whose replica (index 1) makes late captures, with a state of two pieces."""
    LateCapture.made = []
    voter = Voter(make_capture=LateCapture)
    voter.hello(index=1)
    voter.put("a", b"x" * (STATE_PIECE + 1000))
    return voter


def start_capture(voter: Voter) -> LateCapture:
    """Send a marker that keeps the state."""
    voter.seq += 1
    assert voter.send(encode(FrameKind.MARKER, voter.epoch, voter.seq, b"\1")) == []
    return LateCapture.made[-1]


def polled(voter: Voter) -> list[Frame]:
    return voter.decoder.feed(voter.incarnation.poll())


def test_replies_overtake_a_digest_that_takes_time(late: Voter) -> None:
    before = late.incarnation._service.digest()
    capture, seq = start_capture(late), late.seq
    assert late.incarnation.capture_fd == 99
    assert late.put("a", b"later").kind == FrameKind.REPLY
    assert polled(late) == []
    capture.ready = True
    (digest,) = polled(late)
    assert (digest.kind, digest.seq, digest.payload) == (FrameKind.DIGEST, seq, before)
    assert late.incarnation.capture_fd == -1, "nothing to send until the state is fetched"
    assert polled(late) == []
    capture.ready = False
    assert late.send(encode(FrameKind.FETCH, 77, seq, bytes(8))) == []
    assert late.incarnation.capture_fd == 99
    assert late.put("b").kind == FrameKind.REPLY
    capture.ready = True
    (piece,) = polled(late)
    assert (piece.kind, len(piece.payload), piece.flags) == (FrameKind.STATE, STATE_PIECE, 0)
    rest = late.fetch(seq, STATE_PIECE)
    assert rest.flags == wire.FLAG_LAST
    assert state_digest(iter((piece.payload, rest.payload))) == before
    assert capture.closed
    assert late.incarnation.capture_fd == -1


@pytest.mark.parametrize("when", ["digest", "state"])
def test_marker_is_refused_when_its_capture_fails(late: Voter, when: str) -> None:
    capture, seq = start_capture(late), late.seq
    if when == "state":
        capture.ready = True
        polled(late)
        capture.ready = False
        late.send(encode(FrameKind.FETCH, 77, seq, bytes(8)))
    capture.broken = True
    (refused,) = polled(late)
    assert (refused.kind, refused.seq, refused.payload) == (FrameKind.REFUSED, seq, b"broken")
    assert capture.closed
    assert late.put("b").kind == FrameKind.REPLY


@pytest.mark.parametrize("why", ["marker", "hello", "restore", "disconnect", "end"])
def test_capture_ends_when_something_replaces_it(late: Voter, why: str) -> None:
    capture, seq = start_capture(late), late.seq
    if why == "marker":
        assert not start_capture(late).closed
    elif why == "hello":
        late.hello(78)
    elif why == "restore":
        late.restore(b"")
    elif why == "disconnect":
        late.incarnation.disconnect()
    else:
        late.incarnation.end_capture()
    assert capture.closed
    capture.ready = True
    assert polled(late) == []
    assert late.fetch(seq).kind == FrameKind.REFUSED


def test_fetch_is_refused_before_the_digest_and_too_far_ahead(late: Voter) -> None:
    capture, seq = start_capture(late), late.seq
    assert late.fetch(seq).kind == FrameKind.REFUSED
    capture.ready = True
    polled(late)
    capture.ready = False
    for ahead in range(FETCH_AHEAD):
        assert late.send(encode(FrameKind.FETCH, 77, seq, (ahead * STATE_PIECE).to_bytes(8))) == []
    assert late.fetch(seq, FETCH_AHEAD * STATE_PIECE).kind == FrameKind.REFUSED
    capture.ready = True
    assert len(polled(late)) == 1


# ------------------------------------------------------------------- fuzz


@pytest.mark.parametrize("kind", range(64))
def test_malformed_payload_never_raises(kind: int) -> None:
    for payload in (b"", b"x", bytes(25), b"\xff" * 26, b"\xff" * 48, bytes(300)):
        voter = Voter()
        voter.hello()
        voter.send(encode(kind, 77, 9, payload))
        voter.hello(78)
        voter.seq, voter.history = 9, voter.incarnation._history
        assert voter.put("a").kind == FrameKind.REPLY


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes_never_raise(pieces: list[bytes]) -> None:
    voter = Voter()
    voter.hello()
    voter.put("a")
    for piece in pieces:
        voter.send(piece)
    voter.send(bytes(wire.MAX_PAYLOAD))
    assert voter.hello(78).last_seq == 1


def test_partial_frame_is_forgotten_when_the_connection_ends(voter: Voter) -> None:
    voter.send(encode(FrameKind.PING, 77, 5, bytes(100))[:-1])
    voter.incarnation.disconnect()
    assert voter.hello(78)
