"""The sequential oracle accepts right replies, also after writes of unknown outcome."""

from __future__ import annotations

from itertools import islice
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from faultinject.history.oracle import MAX_STATES, SequentialOracle
from faultinject.history.workload import WorkloadCall, mixed_calls
from guests.answer import answer
from guests.protocol.message import encode_request
from guests.service import Context, load


def put(key: str, value: bytes) -> bytes:
    return encode_request("PUT", f"/kv/{key}", (), value)


def get(key: str) -> bytes:
    return encode_request("GET", f"/kv/{key}", (), b"")


class Truth:
    """The service, as a guest runs it."""

    def __init__(self) -> None:
        self._service = load("kv")()
        self._seq = 0

    def apply(self, request: bytes, *, read_only: bool = False) -> bytes:
        self._seq += 1
        context = Context(self._seq, 0, bytes(8), "caller", read_only)
        return answer(self._service, request, context)


@given(seed=st.integers(0, 2**32), wrong=st.integers(0, 19))
def test_right_replies_are_accepted_and_a_changed_byte_is_not(seed: int, wrong: int) -> None:
    oracle, truth = SequentialOracle("kv"), Truth()
    for at, call in enumerate(islice(mixed_calls(seed, keys=3), 20)):
        reply = truth.apply(call.request, read_only=call.read_only)
        if at == wrong:
            place = Random(seed).randrange(len(reply))
            changed = reply[:place] + bytes([reply[place] ^ 1]) + reply[place + 1 :]
            assert not SequentialOracle("kv").accepts(call.request, b"", read_only=call.read_only)
            assert changed != reply
            assert not oracle.accepts(call.request, changed, read_only=call.read_only)
        else:
            assert oracle.accepts(call.request, reply, read_only=call.read_only)


@given(seed=st.integers(0, 2**32), lost=st.sets(st.integers(0, 19), max_size=4), data=st.data())
def test_request_without_a_reply_may_have_been_applied_or_not(
    seed: int, lost: set[int], data: st.DataObject
) -> None:
    oracle, truth = SequentialOracle("kv"), Truth()
    for at, call in enumerate(islice(mixed_calls(seed, keys=3), 20)):
        if at in lost:
            oracle.unknown(call.request, read_only=call.read_only)
            if data.draw(st.booleans()):
                truth.apply(call.request, read_only=call.read_only)
        else:
            reply = truth.apply(call.request, read_only=call.read_only)
            assert oracle.accepts(call.request, reply, read_only=call.read_only)


def test_a_write_whose_reply_declares_an_error_may_have_been_executed_or_not() -> None:
    """A 500 leaves the write's effect open; what the service then says of either is right."""
    for executed in (True, False):
        oracle, truth = SequentialOracle("kv"), Truth()
        assert not oracle.accepts(put("a", b"1"), b"HTTP/1.1 500 E\r\n\r\n", read_only=False)
        if executed:
            truth.apply(put("a", b"1"))
        assert oracle.accepts(get("a"), truth.apply(get("a"), read_only=True), read_only=True)
    oracle = SequentialOracle("kv")
    absent = Truth().apply(get("a"), read_only=True)
    assert not oracle.accepts(put("a", b"1"), absent, read_only=False)
    assert not oracle.accepts(get("a"), absent, read_only=True), "a believed 404 is no excuse"


def test_both_states_are_right_after_an_unknown_write_until_one_is_seen() -> None:
    oracle = SequentialOracle("kv")
    without, with_it = Truth(), Truth()
    for truth in (without, with_it):
        truth.apply(put("a", b"1"))
    assert oracle.accepts(put("a", b"1"), Truth().apply(put("a", b"1")), read_only=False)
    oracle.unknown(put("a", b"2"), read_only=False)
    with_it.apply(put("a", b"2"))
    old, new = without.apply(get("a"), read_only=True), with_it.apply(get("a"), read_only=True)
    assert old != new
    assert oracle.accepts(get("a"), new, read_only=True)
    assert not oracle.accepts(get("a"), old, read_only=True), "it was applied: it stays so"


def test_read_without_a_reply_changes_nothing() -> None:
    oracle = SequentialOracle("kv")
    oracle.unknown(get("a"), read_only=True)
    assert oracle.accepts(put("a", b"1"), Truth().apply(put("a", b"1")), read_only=False)


def test_every_reply_is_accepted_when_too_many_states_are_possible() -> None:
    oracle = SequentialOracle("kv")
    for number in range(MAX_STATES):
        oracle.unknown(put(f"k{number}", b"x"), read_only=False)
    assert not oracle.certain
    assert oracle.accepts(get("a"), b"anything", read_only=True)


def test_calls_of_a_workload_are_what_they_are() -> None:
    calls = list(islice(mixed_calls(1), 50))
    assert all(isinstance(call, WorkloadCall) for call in calls)
    assert any(call.read_only for call in calls)
    assert any(not call.read_only for call in calls)
