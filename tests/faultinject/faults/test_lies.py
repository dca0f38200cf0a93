"""Lies: what they change, what they leave unchanged, and that they are functions of the seed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from faultinject.faults import CATALOGUE, FaultLayer
from faultinject.faults.lies import KINDS, CorruptReply, Delay, Garbage, make
from guests.protocol.wire import (
    Decoder,
    Frame,
    FrameKind,
    decode_replies,
    encode,
    encode_replies,
)

FRAME_LIES = sorted(KINDS.keys() - {"garbage"})

frames = st.lists(
    st.builds(
        Frame,
        kind=st.sampled_from(
            [FrameKind.REPLY, FrameKind.DIGEST, FrameKind.PONG, FrameKind.WELCOME]
        ),
        flags=st.integers(0, 255),
        epoch=st.integers(0, 2**64 - 1),
        seq=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=80),
    ),
    max_size=8,
)


def to_bytes(items: list[Frame]) -> bytes:
    return b"".join(encode(f.kind, f.epoch, f.seq, f.payload, f.flags) for f in items)


def split(data: bytes, places: list[int]) -> list[bytes]:
    points = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(points)]


def test_every_link_fault_is_a_lie() -> None:
    assert {k for k, fault in CATALOGUE.items() if fault.layer is FaultLayer.LINK} == set(KINDS)


def test_unknown_lie_is_an_error_that_lists_the_kinds() -> None:
    with pytest.raises(ValueError, match="corrupt-reply"):
        make("nonsense", b"")


@given(frames, st.lists(st.integers(0, 2**32)), st.binary(max_size=8))
def test_corrupted_reply_differs_in_one_byte_and_has_a_valid_checksum(
    items: list[Frame], places: list[int], seed: bytes
) -> None:
    lie, decoder = CorruptReply(seed), Decoder()
    got = [f for piece in split(to_bytes(items), places) for f in decoder.feed(lie.feed(piece))]
    assert (decoder.damaged, decoder.skipped) == (0, 0)
    assert len(got) == len(items)
    for before, after in zip(items, got, strict=True):
        if before.kind != FrameKind.REPLY:
            assert after == before
            continue
        assert after._replace(payload=b"") == before._replace(payload=b"")
        if before.payload:
            assert len(after.payload) == len(before.payload)
            changed = [a != b for a, b in zip(before.payload, after.payload, strict=True)]
            assert sum(changed) == 1
        else:
            assert len(after.payload) == 1
    assert lie.count == sum(f.kind == FrameKind.REPLY for f in items)


def test_corrupted_http_reply_differs_in_its_body() -> None:
    head, body = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"blue"
    for seq in range(50):
        (frame,) = Decoder().feed(
            CorruptReply(b"s").feed(encode(FrameKind.REPLY, 1, seq, head + body))
        )
        assert frame.payload.startswith(head)
        assert frame.payload != head + body


def test_corrupted_reply_is_a_function_of_seed_and_number() -> None:
    data = encode(FrameKind.REPLY, 1, 7, b"HTTP/1.1 200 OK\r\n\r\nsomething longer")
    assert CorruptReply(b"a").feed(data) == CorruptReply(b"a").feed(data)
    assert len({CorruptReply(bytes([seed])).feed(data) for seed in range(20)}) > 10


@pytest.mark.parametrize("kind", FRAME_LIES)
@given(st.data())
def test_lie_begins_and_ends_at_frame_boundaries(kind: str, data: st.DataObject) -> None:
    """The frames before and after it are whole, for any partition of the stream."""
    items = data.draw(frames)
    stream = to_bytes(items)
    first = data.draw(st.integers(0, len(stream)))
    last = data.draw(st.integers(first, len(stream)))
    lie, decoder = make(kind, b"seed"), Decoder()
    got = decoder.feed(stream[:first])
    got += decoder.feed(lie.feed(stream[first:last]))
    got += decoder.feed(lie.end())
    got += decoder.feed(stream[last:])
    assert (decoder.damaged, decoder.skipped, decoder.held) == (0, 0, 0)
    others = [f for f in items if f.kind != FrameKind.REPLY]
    assert [f for f in got if f.kind != FrameKind.REPLY] == others


def test_stale_replies_repeat_the_first_one() -> None:
    lie = make("stale-reply", b"")
    stream = b"".join(encode(FrameKind.REPLY, 1, seq, b"%d" % seq) for seq in (1, 2, 3))
    got = Decoder().feed(lie.feed(stream))
    assert [(f.seq, f.payload) for f in got] == [(1, b"1"), (2, b"1"), (3, b"1")]
    assert lie.count == 2


def test_replies_are_dropped_or_renumbered() -> None:
    stream = encode(FrameKind.PONG, 1, 0) + encode(FrameKind.REPLY, 1, 5, b"x")
    assert Decoder().feed(make("drop-reply", b"").feed(stream)) == [
        Frame(FrameKind.PONG, 0, 1, 0, b"")
    ]
    assert [f.seq for f in Decoder().feed(make("wrong-seq", b"").feed(stream))] == [0, 6]


def test_flood_replaces_each_reply_by_unrequested_ones() -> None:
    lie = make("flood", b"seed")
    stream = encode(FrameKind.PONG, 1, 0) + encode(FrameKind.REPLY, 1, 5, b"x")
    got = Decoder().feed(lie.feed(stream))
    assert got[0].kind == FrameKind.PONG
    assert lie.count == len(got) - 1 >= 100
    assert all(f.kind == FrameKind.REPLY and f.seq > 1 << 32 for f in got[1:])
    assert got == Decoder().feed(make("flood", b"seed").feed(stream))


def test_delay_changes_no_bytes_and_returns_delays() -> None:
    lie = Delay(b"seed")
    assert lie.feed(b"as it is") == b"as it is"
    late = [lie.late() for _ in range(100)]
    assert all(0.05 <= seconds <= 0.25 for seconds in late)
    assert max(late) - min(late) > 0.1
    assert lie.count == 100
    other = Delay(b"seed")
    assert late == [other.late() for _ in range(100)]


def test_garbage_is_inserted_and_nothing_removed() -> None:
    lie = Garbage(b"seed")
    data = encode(FrameKind.PONG, 1, 0)
    out = lie.feed(data)
    assert len(out) == len(data) + lie.count
    assert 1 <= lie.count <= 64
    assert Garbage(b"seed").feed(data) == out


REPLIES = [b"HTTP/1.1 200 OK\r\n\r\nreply %02d" % number for number in range(64)]


def answers_of(kind: str, seed: bytes, replies: list[bytes]) -> list[tuple[int, bytes]]:
    """Return the numbered replies that arrive if a lie of this kind changes a batch, from 100."""
    lie, decoder = make(kind, seed), Decoder()
    if kind == "stale-reply":
        decoder.feed(lie.feed(encode(FrameKind.REPLY, 5, 99, b"stale")))
    frames_out = decoder.feed(lie.feed(encode(FrameKind.REPLIES, 5, 100, encode_replies(replies))))
    assert (decoder.damaged, decoder.skipped, decoder.held) == (0, 0, 0)
    got: list[tuple[int, bytes]] = []
    for frame in frames_out:
        assert frame.epoch == 5
        if frame.kind == FrameKind.REPLY:
            got.append((frame.seq, frame.payload))
        else:
            assert frame.kind == FrameKind.REPLIES
            got += enumerate(decode_replies(frame.payload), frame.seq)
    assert lie.count > 0
    return got


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("kind", sorted(set(FRAME_LIES) - {"delay"}))
def test_lie_changes_one_reply_of_a_batch(kind: str, count: int) -> None:
    sent = list(enumerate(REPLIES[:count], 100))
    changed = set()
    for seed in range(20):
        got = answers_of(kind, bytes([seed]), REPLIES[:count])
        assert got == answers_of(kind, bytes([seed]), REPLIES[:count]), "not random"
        missing = [each for each in sent if each not in got]
        assert len(missing) == 1
        changed.add(missing[0])
        extra = [each for each in got if each not in sent]
        expected = {"drop-reply": 0, "flood": 256}.get(kind, 1)
        assert len(extra) == expected
    assert len(changed) > count / 10, "which one depends on the seed"


def test_malformed_batch_passes_through_a_lie() -> None:
    data = encode(FrameKind.REPLIES, 5, 100, b"\0\2garbage")
    assert make("corrupt-reply", b"").feed(data) == data


@pytest.mark.parametrize("kind", [k for k in KINDS if CATALOGUE[k].fails])
@given(st.binary(max_size=200), st.integers(1, 2**32), st.binary(min_size=8, max_size=8))
@example(b"", 1, b"\x8a\x89R\xb7\xee\xec\xd6\xbb")  # its noise ends as the piece begins
def test_failing_lie_passes_on_no_correct_reply(
    kind: str, payload: bytes, seq: int, seed: bytes
) -> None:
    """The client gets no reply, a wrong one, or one with another number, even without a voter."""
    frames_out = Decoder().feed(make(kind, seed).feed(encode(FrameKind.REPLY, 1, seq, payload)))
    assert all((frame.seq, frame.payload) != (seq, payload) for frame in frames_out)
