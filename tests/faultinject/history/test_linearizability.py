"""The linearizability checker on histories whose answer is known."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from faultinject.history.linearizability import (
    HistoryCall,
    ModelState,
    in_real_time,
    linearizable,
    register,
)


def put(
    started: float, ended: float, value: bytes, status: int = 204, tag: str = "?"
) -> HistoryCall:
    """Make a PUT with a reply."""
    return HistoryCall(started, ended, "put", value, reply=(status, b"", tag))


def get(started: float, ended: float, value: bytes | None, tag: str = "?") -> HistoryCall:
    """Make a GET with a reply."""
    reply = (404, b"no such key\n", "?") if value is None else (200, value, tag)
    return HistoryCall(started, ended, "get", reply=reply)


def lost(started: float, kind: str, value: bytes = b"") -> HistoryCall:
    """Make a call with an unknown outcome."""
    return HistoryCall(started, float("inf"), kind, value)


def check(*calls: HistoryCall) -> bool:
    """Check a history in which the key is absent at first."""
    found = linearizable(calls, register, None)
    assert found is not None
    return found


def test_search_is_undecided_after_its_most_states() -> None:
    calls = [lost(0, "put", b"%d" % number) for number in range(24)]
    calls.append(get(1, 2, b"never written"))
    assert linearizable(calls, register, None, most=1000) is None


def test_sequential_history_is_linearizable() -> None:
    assert check(put(0, 1, b"a", 201), get(2, 3, b"a"), put(4, 5, b"b"), get(6, 7, b"b"))


def test_stale_read_is_not_linearizable() -> None:
    assert not check(put(0, 1, b"a", 201), put(2, 3, b"b"), get(4, 5, b"a"))


def test_read_during_a_write_may_return_either_value() -> None:
    for seen in (b"a", b"b"):
        assert check(put(0, 1, b"a", 201), put(2, 9, b"b"), get(3, 4, seen))


def test_read_after_a_newer_read_may_not_return_the_older_value() -> None:
    first = put(0, 1, b"a", 201), put(2, 9, b"b")
    assert check(*first, get(3, 4, b"a"), get(5, 6, b"b"))
    assert not check(*first, get(3, 4, b"b"), get(5, 6, b"a"))


def test_write_of_unknown_outcome_takes_effect_at_any_later_time_or_never() -> None:
    first = put(0, 1, b"a", 201), lost(2, "put", b"b")
    assert check(*first, get(3, 4, b"a"), get(5, 6, b"b"))
    assert check(*first, get(3, 4, b"a"), get(5, 6, b"a"))
    assert not check(*first, get(3, 4, b"b"), get(5, 6, b"a"))
    assert not check(put(0, 1, b"a", 201), get(1.1, 1.5, b"b"), lost(2, "put", b"b"))


def test_lost_acknowledged_write_is_not_linearizable() -> None:
    assert not check(put(0, 1, b"a", 201), get(2, 3, None))


def test_increment_counts_once() -> None:
    def add(started: float, ended: float, total: bytes) -> HistoryCall:
        return HistoryCall(started, ended, "increment", reply=(200, total, "?"))

    assert check(add(0, 5, b"2"), add(1, 6, b"1"), get(7, 8, b"2"))
    assert not check(add(0, 5, b"1"), add(1, 6, b"1"))
    assert not check(add(0, 1, b"1"), get(2, 3, b"2"))
    assert check(add(0, 1, b"1"), lost(0, "increment"), get(2, 3, b"2"))
    assert not check(add(0, 1, b"1"), lost(0, "increment"), get(2, 3, b"3"))


def test_swap_depends_on_the_entity_tag() -> None:
    def swap(started: float, condition: str, status: int, tag: str = "?") -> HistoryCall:
        return HistoryCall(started, started + 1, "swap", b"new", condition, (status, b"", tag))

    first = put(0, 1, b"a", 201, '"1"')
    assert check(first, swap(2, '"1"', 204, '"2"'), get(4, 5, b"new", '"2"'))
    assert not check(first, swap(2, '"1"', 412))
    assert check(first, swap(2, '"7"', 412))
    assert not check(first, swap(2, '"7"', 204, '"2"'))
    assert not check(first, swap(2, '"1"', 204, '"2"'), swap(4, '"1"', 204, '"3"'))


def test_create_needs_an_absent_key() -> None:
    gone = HistoryCall(2, 3, "delete", reply=(204, b"", "?"))
    create = HistoryCall(4, 5, "create", b"b", reply=(201, b"", "?"))
    assert check(put(0, 1, b"a", 201), gone, create, get(6, 7, b"b"))
    assert not check(put(0, 1, b"a", 201), create)
    assert check(put(0, 1, b"a", 201), lost(2, "delete"), create)


CALLS = st.builds(
    lambda start, length, kind, value: (
        put(start, start + length, value) if kind else get(start, start + length, value)
    ),
    st.integers(0, 6),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([b"a", b"b"]),
)


def by_hand(calls: list[HistoryCall]) -> bool:
    """Check a history by trying all orders."""
    for order in permutations(calls):
        at: ModelState = (b"a", "?")
        for number, call in enumerate(order):
            after = register(at, call)
            if not after or any(later.ended < call.started for later in order[number + 1 :]):
                break
            at = after[0]
        else:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, max_size=5))
def test_linearizable_agrees_with_trying_all_orders(calls: list[HistoryCall]) -> None:
    assert linearizable(calls, register, (b"a", "?")) == by_hand(calls)


def test_in_real_time_returns_two_places_in_the_wrong_order() -> None:
    assert in_real_time([(0, 1, 1), (0, 5, 3), (2, 3, 2), (6, 7, 4)]) is None
    assert in_real_time([(0, 1, 2), (2, 3, 1)]) == (2, 1)
    assert in_real_time([(0, 2, 2), (2, 3, 1)]) is None
    assert in_real_time([(0, 1, 7), (2, 3, 8), (4, 5, 6)]) == (8, 6)
