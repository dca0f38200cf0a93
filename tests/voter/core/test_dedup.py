"""Deduplication: no request is executed twice, whatever is forgotten, and all is bounded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voter.core.dedup import KEPT_BYTES, NEW, SECOND, DedupTable, Finding, key_scope, session_scope
from voter.core.entries import Kept, Once
from voter.core.limits import Limits

A, B = (bytes([letter]) * 16 for letter in b"AB")
ME = b"uid:0"
HOUR = 3600 * SECOND


def native(number: int, done: int = 0, session: bytes = A, request: bytes = b"request") -> Once:
    return Once(session_scope(session), number.to_bytes(8), request, done)


def key(text: bytes, caller: bytes = ME, request: bytes = b"request") -> Once:
    return Once(key_scope(caller), text, request)


def make(**limits: Any) -> DedupTable:
    table = DedupTable(Limits(**limits))
    table.open(A, ME, 0)
    return table


def execute(table: DedupTable, once: Once, seq: int, reply: bytes = b"reply", at: int = 0) -> None:
    """Order a request as the engine does, and settle it."""
    assert table.lookup(once, ME, at) == NEW
    table.record(once, ME, seq, at)
    table.settle(once, reply)


# ------------------------------------------------------------- one by one


@pytest.mark.parametrize("once", [native(1), key(b"k")])
def test_request_is_new_then_pending_then_done(once: Once) -> None:
    table = make()
    assert table.lookup(once, ME, 0) == NEW
    table.record(once, ME, 7, 0)
    found = table.lookup(once, ME, 0)
    assert (found.finding, found.seq) == (Finding.PENDING, 7)
    table.settle(once, b"reply")
    table.settle(once, b"another")  # of a replay, or late
    table.record(once, ME, 7, 0)
    found = table.lookup(once, ME, 0)
    assert (found.finding, found.seq, found.reply) == (Finding.DONE, 7, b"reply")


def test_keys_and_sessions_belong_to_their_caller() -> None:
    table = make()
    execute(table, key(b"k"), 1)
    assert table.lookup(key(b"k", b"http:other"), b"http:other", 0) == NEW
    assert table.lookup(native(1), b"uid:1", 0).finding is Finding.EXPIRED
    assert table.lookup(native(1, session=B), ME, 0).finding is Finding.EXPIRED


def test_session_window_bounds_the_requests_kept() -> None:
    table = make(session_window=4)
    for number in range(1, 5):
        execute(table, native(number), number)
    assert table.lookup(native(0), ME, 0).finding is Finding.EXPIRED
    assert "more than 4 after 0" in table.lookup(native(5), ME, 0).detail
    assert table.lookup(native(5, done=2), ME, 0) == NEW
    assert table.lookup(native(2), ME, 0).finding is Finding.DONE, "a lookup changes nothing"
    execute(table, native(6, done=2), 6)
    assert [table.lookup(native(n), ME, 0).finding for n in (1, 2)] == [Finding.EXPIRED] * 2
    assert [table.lookup(native(n), ME, 0).finding for n in (3, 4)] == [Finding.DONE] * 2
    assert table.lookup(native(5), ME, 0) == NEW, "numbers may come in any order"
    assert table.size == 3 * (KEPT_BYTES + 5)
    table.record(native(2**40, done=2**40 - 1), ME, 9, 0)
    assert table.size == KEPT_BYTES


def test_client_may_confirm_a_pending_request() -> None:
    table = make()
    table.record(native(1), ME, 1, 0)
    table.record(native(2, done=1), ME, 2, 0)
    table.settle(native(1), b"reply")
    assert table.lookup(native(1), ME, 0).finding is Finding.EXPIRED
    table.settle(native(2), b"reply")
    table.open(B, ME, 2 * HOUR)
    assert table.sessions == 1, "no request is pending for ever"


def test_least_recently_used_session_without_pending_requests_is_evicted() -> None:
    table = make(sessions=3)
    table.record(native(1), ME, 1, 0)
    names = [bytes([n]) * 16 for n in range(4)]
    for name in names[:2]:
        table.open(name, ME, 0)
    table.lookup(native(1, session=names[0]), ME, 0)
    table.open(names[2], ME, 0)
    assert table.lookup(native(1, session=names[1]), ME, 0).finding is Finding.EXPIRED
    assert table.lookup(native(1, session=names[0]), ME, 0) == NEW
    assert table.lookup(native(1), ME, 0).finding is Finding.PENDING
    table.settle(native(1), b"reply")
    for name in names[1:]:
        table.open(name, ME, 0)
    assert table.sessions == 3
    assert table.lookup(native(1), ME, 0).finding is Finding.EXPIRED
    table.settle(native(1), b"reply")


def test_idle_sessions_and_old_keys_expire_by_agreed_time() -> None:
    table = make(session_idle=3600.0, key_retention=7200.0)
    execute(table, native(1), 1)
    execute(table, key(b"k"), 2)
    table.record(key(b"waits"), ME, 3, 0)
    assert table.lookup(native(1), ME, HOUR - 1).finding is Finding.DONE
    assert table.lookup(native(1), ME, 2 * HOUR - 1).finding is Finding.EXPIRED
    assert table.lookup(key(b"k"), ME, 2 * HOUR - 1).finding is Finding.DONE
    assert table.lookup(key(b"k"), ME, 2 * HOUR) == NEW
    assert table.lookup(key(b"waits"), ME, 9 * HOUR).finding is Finding.PENDING
    execute(table, key(b"k"), 9, at=9 * HOUR)
    assert table.lookup(key(b"k"), ME, 9 * HOUR).seq == 9
    table.settle(key(b"waits"), b"reply")
    table.lookup(key(b"k"), ME, 9 * HOUR)
    assert table.keys == 1


def test_idle_session_is_kept_while_a_request_is_pending() -> None:
    table = make(session_idle=3600.0)
    table.record(native(1), ME, 1, 0)
    table.open(B, ME, 2 * HOUR)
    table.settle(native(1), b"reply")
    assert table.lookup(native(1), ME, 3 * HOUR - 1).finding is Finding.DONE
    assert table.lookup(native(1), ME, 4 * HOUR).finding is Finding.EXPIRED


def test_keys_expire_in_order_of_time_after_a_restart() -> None:
    table = DedupTable(Limits(key_retention=3600.0))
    for at, (text, caller) in enumerate([(b"1", b"a"), (b"2", b"b"), (b"3", b"a")]):
        table.record(key(text, caller), caller, at + 1, at * HOUR // 2)
        table.settle(key(text, caller), b"reply")
    again = DedupTable(Limits(key_retention=3600.0))
    again.load(table.export())
    assert again.lookup(key(b"2", b"b"), b"b", 3 * HOUR // 2) == NEW
    assert again.lookup(key(b"3", b"a"), b"a", 3 * HOUR // 2).finding is Finding.DONE


def test_keys_beyond_the_limit_are_refused_and_none_is_dropped() -> None:
    table = make(keys=8)
    for number in range(2):
        execute(table, key(b"%d" % number), number + 1)
    assert table.lookup(key(b"2"), ME, 0).finding is Finding.CROWDED, "a quarter for each caller"
    for caller in (b"b", b"c", b"d"):
        for number in range(2):
            table.record(key(b"%d" % number, caller), caller, 9, HOUR)
    assert table.lookup(key(b"0", b"e"), b"e", 0).finding is Finding.CROWDED
    assert table.lookup(key(b"0"), ME, HOUR).finding is Finding.DONE
    assert table.lookup(key(b"2"), ME, 24 * HOUR) == NEW, "its own keys have expired"
    assert table.lookup(key(b"0", b"e"), b"e", 24 * HOUR) == NEW


def test_replies_over_the_limit_evict_sessions_and_then_are_not_kept() -> None:
    table = make(table_bytes=8 * 1000)
    table.open(B, ME, 0)
    execute(table, native(1), 1, bytes(700))
    execute(table, native(1, session=B), 2, bytes(3000))
    execute(table, key(b"k"), 3, bytes(3750))
    assert table.lookup(native(1), ME, 0).finding is Finding.EXPIRED, "least recently used"
    assert table.lookup(native(1, session=B), ME, 0).finding is Finding.DONE
    assert table.lookup(key(b"l", b"other"), b"other", 0) == NEW
    table.record(native(2, session=B), ME, 4, 0)
    table.settle(native(2, session=B), bytes(2000))
    found = table.lookup(native(2, session=B), ME, 0)
    assert found.finding is Finding.EXPIRED
    assert "too long" in found.detail
    assert table.size <= 8000
    execute(table, key(b"m", b"other"), 5, bytes(1000))
    assert table.lookup(native(1, session=B), ME, 0).finding is Finding.EXPIRED
    assert table.lookup(key(b"n", b"third"), b"third", 0).finding is Finding.CROWDED, (
        "half is for keys"
    )
    again = DedupTable(Limits(table_bytes=8000))
    again.load(table.export())
    assert again.lookup(key(b"k"), ME, 0).finding is Finding.DONE


# -------------------------------------------------- anything, in any order


SMALL = Limits(
    sessions=2, session_window=4, keys=8, table_bytes=3000, session_idle=20.0, key_retention=30.0
)
LARGE = Limits(session_window=4, session_idle=1e6, key_retention=30.0)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(0, 3)),
        st.tuples(
            st.just("native"), st.integers(0, 3), st.integers(1, 8), st.integers(0, 6),
            st.integers(0, 1),
        ),
        st.tuples(st.just("key"), st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)),
        st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from([0, 10, 700])),
        st.tuples(st.just("wait"), st.sampled_from([1, 12, 40])),
        st.tuples(st.just("restart"), st.integers(0, 20)),
    ),
    max_size=80,
)  # fmt: skip


def by_scope(table: DedupTable, over: int) -> dict[bytes, tuple[int, list[Kept]]]:
    """What is kept, except settled keys that may have expired by ``over``."""
    found = {}
    for base in table.export():
        is_key = base.scope[:1] == b"k"
        kept = [k for k in base.kept if not (is_key and k.time_ns <= over and k.reply is not None)]
        if kept or not is_key:
            found[base.scope] = base.done, sorted(kept, key=lambda kept: kept.key)
    return found


class Model:
    """A model that forgets nothing, and drives the table as the engine does."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.table = DedupTable(limits)
        self.now = 0
        self.seq = 0
        self.opened: set[int] = set()
        self.floors: dict[bytes, int] = {}
        self.known: dict[tuple[bytes, bytes], tuple[bytes, int, int]] = {}  # print, seq, time
        self.replies: dict[int, bytes] = {}
        self.waiting: list[tuple[Once, int]] = []
        self.most_waiting = 0
        self.journal: list[Callable[[DedupTable], None]] = []

    def do(self, entry: Callable[[DedupTable], None]) -> None:
        """Apply an entry of the journal to the table."""
        self.journal.append(entry)
        entry(self.table)

    def restart(self, again: int, *, exact: bool) -> None:
        """Resume from a checkpoint; replay ``again`` entries that it contains already."""
        before, self.table = self.table, DedupTable(self.limits)
        self.table.load(before.export())
        assert self.table.export() == before.export()
        assert self.table.size == before.size
        for entry in self.journal[max(0, len(self.journal) - again) :] if exact else ():
            entry(self.table)
        over = self.now - int(self.limits.key_retention * SECOND)
        assert by_scope(self.table, over) == by_scope(before, over)

    def ask(self, once: Once, *, exact: bool) -> None:
        found = self.table.lookup(once, ME, self.now)
        name = (once.scope, once.key)
        known = self.known.get(name)
        if known is not None and once.scope[:1] == b"k" and self.replies.get(known[1]) is not None:
            over = known[2] + int(self.limits.key_retention * SECOND) <= self.now
            if over and found == NEW:
                known = None  # it may be, and need not be, forgotten
        if found == NEW:
            assert known is None, "executed twice"
            if once.scope[:1] == b"s":
                assert once.scope[1] in self.opened
                assert int.from_bytes(once.key) > self.floors.get(once.scope, 0)
            self.seq += 1
            self.known[name] = (once.fingerprint, self.seq, self.now)
            self.floors[once.scope] = max(self.floors.get(once.scope, 0), once.done)
            seq, now = self.seq, self.now
            self.do(lambda table: table.record(once, ME, seq, now))
            self.waiting.append((once, self.seq))
        elif found.finding is Finding.DONE:
            assert known is not None
            assert known[:2] == (once.fingerprint, found.seq)
            assert self.replies[found.seq] == found.reply
        elif found.finding is Finding.PENDING:
            assert known is not None
            assert known[:2] == (once.fingerprint, found.seq)
            assert found.seq not in self.replies
        elif found.finding is Finding.REUSED:
            assert known is not None
            assert known[0] != once.fingerprint
        if exact:
            self.expect(once, found.finding)

    def expect(self, once: Once, finding: Finding) -> None:
        """Check the finding exactly, where there is room for everything."""
        if once.scope[:1] == b"s":
            floor = max(self.floors.get(once.scope, 0), once.done)
            number = int.from_bytes(once.key)
            inside = once.scope[1] in self.opened and floor < number <= floor + 4
            assert (finding is Finding.EXPIRED) is not inside
        assert finding is not Finding.CROWDED

    def check_bounds(self) -> None:
        limits, table = self.limits, self.table
        bases = table.export()
        assert table.size == sum(
            KEPT_BYTES + len(kept.reply or b"") for base in bases for kept in base.kept
        )
        waiting = len(self.waiting)
        self.most_waiting = max(self.most_waiting, waiting)
        assert table.size <= limits.table_bytes + waiting * KEPT_BYTES
        assert table.sessions <= max(limits.sessions, self.most_waiting + 1)
        assert table.keys <= limits.keys
        for base in bases:
            most = limits.session_window if base.scope[:1] == b"s" else limits.keys // 4
            assert 0 <= len(base.kept) <= most
        assert all(base.kept for base in bases if base.scope[:1] == b"k")


@settings(max_examples=400, deadline=None)
@given(STEPS, st.booleans())
def test_no_request_is_executed_twice(steps: list[tuple[Any, ...]], roomy: bool) -> None:
    model = Model(LARGE if roomy else SMALL)
    for step in steps:
        match step:
            case "open", number if number not in model.opened:
                model.opened.add(number)
                name, now = bytes([number]) * 16, model.now
                model.do(partial(DedupTable.open, session=name, caller=ME, now_ns=now))
            case "native", session, number, done, request:
                name = bytes([session]) * 16
                model.ask(native(number, done, name, b"%d" % request), exact=roomy)
            case "key", caller, number, request:
                once = key(b"%d" % number, b"%d" % caller, b"%d" % request)
                model.ask(once, exact=roomy)
            case "settle", which, size:
                if model.waiting:
                    once, seq = model.waiting.pop(which % len(model.waiting))
                    model.replies[seq] = bytes(size)
                    model.do(partial(DedupTable.settle, once=once, reply=bytes(size), seq=seq))
            case "wait", seconds:
                model.now += seconds * SECOND
            case "restart", again:
                model.restart(again, exact=roomy)
        model.check_bounds()


def test_search_for_a_session_to_evict_is_short_when_many_have_pending_requests() -> None:
    """Sessions with pending requests are passed over once, not by each request."""
    table = DedupTable(Limits(sessions=2000))
    for seq in range(1, 2001):
        table.open(seq.to_bytes(16), ME, 0)
        if seq <= 1000:
            table.record(native(1, session=seq.to_bytes(16)), ME, seq, 0)
    calls = 0

    def count_calls(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count_calls)
    for number in range(1000):
        table.open((1 << 64 | number).to_bytes(16), ME, 0)
    sys.setprofile(None)
    assert calls < 50 * 1000, "a thousand are passed over once: a few calls for each request"
    assert table.sessions == 2000
