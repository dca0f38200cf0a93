"""Frames: round trips, and recovery of the next whole frame after any bytes."""

from __future__ import annotations

import contextlib
import time
from zlib import crc32

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guests.protocol import wire
from guests.protocol.wire import HEADER_SIZE, MAGIC, Decoder, Frame, FrameKind, WireError, encode

frames = st.builds(
    Frame,
    kind=st.integers(0, 255),
    flags=st.integers(0, 255),
    epoch=st.integers(0, 2**64 - 1),
    seq=st.integers(0, 2**64 - 1),
    payload=st.binary(max_size=200),
)
noise = st.one_of(
    st.binary(max_size=100),
    st.just(MAGIC),
    st.sampled_from([MAGIC[:1], MAGIC[:2], MAGIC[:3], MAGIC + b"\x02", MAGIC * 20]),
    frames.map(lambda frame: pack(frame)[:-1]),
    frames.map(lambda frame: pack(frame)[1:]),
)


def pack(frame: Frame) -> bytes:
    return encode(frame.kind, frame.epoch, frame.seq, frame.payload, frame.flags)


def header(length: int, payload_crc: int = 0) -> bytes:
    """Return a valid header of a frame whose payload (almost certainly) does not match it."""
    return wire.encode_head(FrameKind.REPLY, 1, 2, b"x" * length, payload_crc)[:HEADER_SIZE]


# ------------------------------------------------------------ round trips


@given(st.lists(frames, max_size=8))
def test_frames_round_trip(sent: list[Frame]) -> None:
    decoder = Decoder()
    assert decoder.feed(b"".join(map(pack, sent))) == sent
    assert (decoder.held, decoder.skipped, decoder.damaged) == (0, 0, 0)


def test_frame_has_these_bytes() -> None:
    """Agents of other builds read these bytes: they must not change within one protocol number."""
    data = encode(FrameKind.ORDER, 0x0102030405060708, 9, b"abc", wire.FLAG_READ_ONLY)
    assert data.hex() == (
        "d7545256" "02" "01" "00000003" "0102030405060708" "0000000000000009" "352441c2"
        + crc32(data[:30]).to_bytes(4).hex()
        + "616263"
    )  # fmt: skip
    assert len(data) == HEADER_SIZE + 3


def test_payload_over_the_limit_is_refused_on_both_sides() -> None:
    largest = bytes(wire.MAX_PAYLOAD)
    assert [frame.payload for frame in Decoder().feed(encode(1, 1, 1, largest))] == [largest]
    with pytest.raises(ValueError, match="over the limit"):
        encode(1, 1, 1, largest + b"x")
    decoder = Decoder(max_payload=10)
    assert decoder.feed(encode(1, 1, 1, bytes(11)) + encode(2, 2, 2, bytes(10)))[0].kind == 2
    decoder.max_payload = 11
    assert decoder.feed(encode(3, 1, 1, bytes(11)))[0].kind == 3


# ------------------------------------------------ pieces, cuts and garbage


@given(st.lists(st.one_of(frames.map(pack), noise), max_size=6), st.data())
def test_partition_of_the_stream_makes_no_difference(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)
    whole = Decoder()
    expected = whole.feed(stream)
    single, pieces = Decoder(), Decoder()
    assert [frame for byte in stream for frame in single.feed(bytes([byte]))] == expected
    got, at = [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream)))
        got += pieces.feed(stream[at : at + size])
        at += size
    assert got == expected
    for decoder in (single, pieces):
        assert (decoder.held, decoder.skipped, decoder.damaged) == (
            whole.held, whole.skipped, whole.damaged
        )  # fmt: skip


@given(st.binary(max_size=500))
def test_every_byte_is_decoded_skipped_or_held(data: bytes) -> None:
    decoder = Decoder()
    found = decoder.feed(data)
    sizes = sum(HEADER_SIZE + len(frame.payload) for frame in found)
    assert sizes + decoder.skipped + decoder.held == len(data)
    assert decoder.held <= HEADER_SIZE + wire.MAX_PAYLOAD


@given(noise, st.lists(frames, min_size=1, max_size=4))
def test_whole_frames_are_found_after_garbage(garbage: bytes, sent: list[Frame]) -> None:
    """At once, or once a possible frame at the end of the garbage is complete."""
    assume(Decoder().feed(garbage) == Decoder().feed(garbage + MAGIC))  # its last byte was D7
    decoder = Decoder(max_payload=256)
    found = decoder.feed(garbage + b"".join(map(pack, sent)))
    found += decoder.feed(bytes(HEADER_SIZE + 256))
    assert found[-len(sent) :] == sent


@given(st.lists(noise, max_size=6).map(b"".join), st.lists(frames, min_size=1, max_size=4))
def test_zeros_complete_any_truncated_frame(garbage: bytes, sent: list[Frame]) -> None:
    """The voter does this at a handshake without an answer."""
    decoder = Decoder(max_payload=256)
    found = decoder.feed(garbage + bytes(HEADER_SIZE + 256) + b"".join(map(pack, sent)))
    assert found[-len(sent) :] == sent


def test_flipped_bit_damages_its_frame_only() -> None:
    one, two, three = (encode(kind, 7, kind, b"payload %d" % kind) for kind in (1, 2, 3))
    for bit in range(len(two) * 8):
        damaged = bytearray(two)
        damaged[bit // 8] ^= 1 << bit % 8
        decoder = Decoder()
        found = decoder.feed(one + bytes(damaged) + three)
        assert [frame.kind for frame in found] == [1, 3], bit
        assert decoder.skipped == len(two)
        assert decoder.damaged == (bit >= HEADER_SIZE * 8)


def test_damaged_length_is_not_trusted() -> None:
    data = bytearray(encode(1, 7, 1, b"abc"))
    data[6:10] = (wire.MAX_PAYLOAD).to_bytes(4)
    decoder = Decoder()
    assert decoder.feed(bytes(data)) == []
    assert decoder.held == 0, "the decoder waits for nothing"


def test_frame_is_found_after_many_damaged_ones() -> None:
    decoder = Decoder()
    found = decoder.feed((header(5) + b"wrong") * 100 + encode(9, 1, 1, b"right"))
    assert [frame.kind for frame in found] == [9]


# ----------------------------------------------------------- no bytes stop it


@pytest.mark.parametrize(
    "evil",
    [
        MAGIC * (1 << 18),
        b"".join(header(min(200_000, wire.MAX_PAYLOAD)) for _ in range(20_000)) + bytes(1 << 20),
        header(wire.MAX_PAYLOAD) * 40_000,
        (header(0, 1)) * 40_000,
        b"\xd7" * (1 << 20),
        bytes(1 << 20),
    ],
    ids=["magics", "nested heads", "huge heads", "empty damaged", "half magics", "zeros"],
)
@pytest.mark.parametrize("piece", [1 << 18, 1448])
def test_work_is_linear_in_the_bytes(evil: bytes, piece: int) -> None:
    """Malicious bytes take about a second per MiB on a busy machine, not minutes."""
    decoder = Decoder()
    start = time.process_time()
    for at in range(0, len(evil), piece):
        decoder.feed(evil[at : at + piece])
        assert decoder.held <= HEADER_SIZE + wire.MAX_PAYLOAD
    assert time.process_time() - start < 3
    found = decoder.feed(bytes(HEADER_SIZE + wire.MAX_PAYLOAD) + encode(9, 1, 1, b"right"))
    assert [frame.kind for frame in found][-1:] == [9]


# --------------------------------------------------------------- payloads


@given(
    st.integers(0, 2**64 - 1),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=8, max_size=8),
    st.binary(max_size=300),
    st.binary(max_size=300),
)
def test_order_round_trip(
    time_ns: int, prev: bytes, history: bytes, caller: bytes, request: bytes
) -> None:
    payload = wire.encode_order(time_ns, prev, history, caller, request)
    assert wire.decode_order(payload) == (time_ns, prev, history, caller, request)


gaps_and_items = st.lists(
    st.tuples(
        st.integers(1, 2**16),
        st.binary(min_size=8, max_size=8),
        st.integers(0, 255),
        st.binary(max_size=40),
        st.binary(max_size=80),
    ),
    min_size=1,
    max_size=wire.MOST_ORDERS,
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, bytes, list[wire.OrderItem]]:
    items: list[wire.OrderItem] = []
    offset = 0
    for gap, history, flags, caller, request in draw(gaps_and_items):
        items.append((offset, history, flags, caller, request))
        offset += gap
    return draw(st.integers(0, 2**64 - 1)), draw(st.binary(min_size=8, max_size=8)), items


@given(batches())
def test_orders_round_trip(batch: tuple[int, bytes, list[wire.OrderItem]]) -> None:
    assert wire.decode_orders(wire.encode_orders(*batch)) == batch


def test_orders_have_these_bytes() -> None:
    payload = wire.encode_orders(
        7, b"historyp", [(0, b"history0", 1, b"me", b"GET"), (3, b"history3", 8, b"", b"PUT!")]
    )
    assert payload == (
        (7).to_bytes(8) + b"historyp" + (2).to_bytes(2)
        + (0).to_bytes(4) + b"history0" + b"\x01" + (2).to_bytes(2) + (3).to_bytes(4)
        + (3).to_bytes(4) + b"history3" + b"\x08" + (0).to_bytes(2) + (4).to_bytes(4)
        + b"meGETPUT!"
    )  # fmt: skip


def test_replies_have_these_bytes() -> None:
    assert wire.encode_replies([b"one", b"", b"three"]) == (
        (3).to_bytes(2) + (3).to_bytes(4) + (0).to_bytes(4) + (5).to_bytes(4) + b"onethree"
    )


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=wire.MOST_ORDERS))
def test_replies_round_trip(replies: list[bytes]) -> None:
    payload = wire.encode_replies(replies)
    assert wire.decode_replies(payload) == replies
    assert wire.count_replies(payload) == len(replies)


@given(batches(), st.integers(), st.binary(min_size=1, max_size=30))
def test_orders_that_are_cut_or_lengthened_are_an_error(
    batch: tuple[int, bytes, list[wire.OrderItem]], cut: int, more: bytes
) -> None:
    payload = wire.encode_orders(*batch)
    for wrong in (payload[: cut % len(payload)], payload + more):
        with pytest.raises(WireError):
            wire.decode_orders(wrong)


@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=wire.MOST_ORDERS),
    st.integers(),
    st.binary(min_size=1, max_size=30),
)
def test_replies_that_are_cut_or_lengthened_are_an_error(
    replies: list[bytes], cut: int, more: bytes
) -> None:
    payload = wire.encode_replies(replies)
    for wrong in (payload[: cut % len(payload)], payload + more):
        with pytest.raises(WireError):
            wire.decode_replies(wrong)


@pytest.mark.parametrize(
    "offsets",
    [[], [1], [0, 0], [0, 2, 1], [5, 6], list(range(wire.MOST_ORDERS + 1))],
    ids=["none", "not-first", "equal", "falling", "late", "too-many"],
)
def test_orders_with_wrong_numbers_are_an_error(offsets: list[int]) -> None:
    payload = wire.encode_orders(1, bytes(8), [(n, bytes(8), 0, b"", b"x") for n in offsets])
    with pytest.raises(WireError, match="ORDERS"):
        wire.decode_orders(payload)


@pytest.mark.parametrize("count", [0, wire.MOST_ORDERS + 1])
def test_replies_of_a_wrong_number_are_an_error(count: int) -> None:
    with pytest.raises(WireError, match="REPLIES"):
        wire.decode_replies(count.to_bytes(2) + bytes(4 * count))


@given(
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_checkpoint_round_trip(history: bytes, size: int, digest: bytes) -> None:
    point = wire.CheckpointPayload(history, size, digest)
    assert wire.decode_checkpoint(wire.encode_checkpoint(point)) == point


@given(
    st.builds(
        wire.Welcome,
        protocol=st.integers(0, 2**16 - 1),
        incarnation=st.integers(0, 2**32 - 1),
        fresh=st.booleans(),
        last_seq=st.integers(0, 2**64 - 1),
        history=st.binary(min_size=8, max_size=8),
        replies_from=st.integers(0, 2**64 - 1),
        state_format=st.integers(0, 2**16 - 1),
        service=st.text(max_size=60),
        build=st.text(max_size=60),
    )
)
def test_welcome_round_trip(welcome: wire.Welcome) -> None:
    assert wire.decode_welcome(wire.encode_welcome(welcome)) == welcome


def test_long_names_in_a_welcome_are_truncated_at_a_character() -> None:
    welcome = wire.Welcome(1, 1, True, 0, bytes(8), 0, 1, "ä" * 300, "x" * 300)
    got = wire.decode_welcome(wire.encode_welcome(welcome))
    assert (got.service, got.build) == ("ä" * 127, "x" * 255)


def test_welcome_of_another_protocol_is_an_error_that_names_it() -> None:
    """Protocol 1 had a shorter WELCOME."""
    with pytest.raises(WireError, match=f"agent speaks protocol 1, the voter {wire.PROTOCOL}"):
        wire.decode_welcome((1).to_bytes(2) + bytes(26))


@given(st.binary(max_size=120))
def test_any_payload_is_decoded_or_refused(payload: bytes) -> None:
    for decode in (
        wire.decode_order, wire.decode_orders, wire.decode_replies, wire.decode_checkpoint,
        wire.decode_welcome,
    ):  # fmt: skip
        with contextlib.suppress(WireError):
            decode(payload)
