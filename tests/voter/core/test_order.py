"""The order: sequence numbers, agreed time, history, the log and its checkpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.protocol.wire import EMPTY_HISTORY
from voter.core.order import TAG_SIZE, Checkpoint, OrderLog, tag


def make_log(writes: int = 0) -> OrderLog:
    log = OrderLog(b"secret")
    for number in range(writes):
        log.order(b"w%d" % number, b"me", False, 0)
    return log


def test_order_numbers_all_requests_and_logs_writes_only() -> None:
    log = make_log()
    first, _ = log.order(b"12345", b"me", False, 5)
    read, entry = log.order(b"b", b"", True, 5)
    assert (first.seq, read.seq, log.seq) == (1, 2, 2)
    assert entry is None
    assert (len(log), log.bytes) == (1, 5 + 2 + 400)


def test_agreed_time_never_goes_backwards() -> None:
    log = make_log()
    times = [log.order(b"", b"", False, wall)[0].time_ns for wall in (5, 3, 9, 0, -4, 10)]
    assert times == [5, 5, 9, 9, 9, 10]


def test_history_chains_writes_and_leaves_reads_out() -> None:
    log = make_log()
    one, _ = log.order(b"a", b"", False, 0)
    read, _ = log.order(b"b", b"", True, 0)
    two, _ = log.order(b"c", b"", False, 0)
    assert one.prev == EMPTY_HISTORY
    assert read.prev == two.prev == one.history
    assert log.history == two.history
    assert len({one.history, read.history, two.history}) == 3
    assert len(one.history) == 8


@given(st.data())
def test_history_depends_on_request_caller_and_time(data: st.DataObject) -> None:
    parts = st.tuples(st.binary(max_size=6), st.binary(max_size=6), st.integers(0, 9))
    one, other = data.draw(parts), data.draw(parts)
    histories = []
    for request, caller, wall in (one, other):
        log = make_log(1)
        histories.append(log.order(request, caller, False, wall)[0].history)
    assert (histories[0] == histories[1]) == (one == other)


def test_history_depends_on_the_secret() -> None:
    one = OrderLog(b"one").order(b"a", b"", False, 0)[0]
    assert one.history != OrderLog(b"two").order(b"a", b"", False, 0)[0].history


def test_log_finds_writes_by_sequence_number() -> None:
    log = make_log()
    for number in range(10):
        log.order(b"", b"", number % 2 == 1, 0)  # writes are at 1, 3, 5, 7, 9
    assert [entry.record.seq for entry in log.after(3, 2)] == [5, 7]
    assert [entry.record.seq for entry in log.after(4, 9)] == [5, 7, 9]
    assert log.after(9, 9) == []
    found = log.find(5)
    assert found is not None
    assert found.record.seq == 5
    assert log.find(6) is None
    assert log.find(11) is None
    assert log.last_write == 9


def test_log_continues_states_that_it_holds_only() -> None:
    log = make_log(3)
    second = log.after(1, 1)[0].record
    assert log.continues(0, EMPTY_HISTORY)
    assert log.continues(second.seq, second.history)
    assert not log.continues(0, b"another!")
    assert not log.continues(second.seq, b"another!")
    assert not log.continues(second.seq + 1, second.history)
    assert not log.continues(4, log.history), "a replica ahead of the log"


def test_truncate_replaces_the_writes_before_the_checkpoint() -> None:
    log = make_log(4)
    at = log.after(1, 1)[0].record
    log.truncate(Checkpoint(at.seq, at.history, b"digest", b"state"))
    assert [entry.record.seq for entry in log.after(0, 9)] == [3, 4]
    assert log.bytes == sum(entry.size for entry in log.after(0, 9))
    assert log.continues(at.seq, at.history)
    assert not log.continues(0, EMPTY_HISTORY)
    assert not log.continues(1, make_log(1).history)
    log.truncate(Checkpoint(9, log.history, b"digest", b"state"))
    assert (len(log), log.bytes, log.last_write) == (0, 0, 9)


def test_log_continues_a_replica_between_last_write_and_marker() -> None:
    """A marker comes after the last write, and has the same history."""
    log = make_log(2)
    last = log.after(1, 1)[0].record
    log.truncate(Checkpoint(last.seq + 1, last.history, b"digest", b"state"))
    assert log.continues(last.seq, last.history)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_tags_are_equal_only_for_equal_replies(one: bytes, other: bytes) -> None:
    assert (tag(one) == tag(other)) == (one == other)
    assert (len(tag(one)) == TAG_SIZE) == (len(one) >= TAG_SIZE)


@pytest.mark.parametrize("size", [TAG_SIZE - 1, TAG_SIZE, TAG_SIZE + 1, 1000])
def test_tag_of_a_reply_differs_from_the_tag_of_its_hash(size: int) -> None:
    """A lying replica that knows the correct reply must not vote for it with its hash."""
    reply = b"x" * size
    if size >= TAG_SIZE:
        assert tag(tag(reply)) != tag(reply)
    else:
        assert tag(reply) is reply
