"""The order oracle accepts right histories, and reports each kind of wrong reply."""

from __future__ import annotations

from itertools import count

from faultinject.history.oracle import OrderOracle, PendingRequest
from guests.answer import answer
from guests.protocol.message import encode_request
from guests.service import Context, load


class History:
    """A service as clients see it through a voter: each call gets the next place."""

    def __init__(self) -> None:
        self.service = load("kv")()
        self.places = count(1)
        self.oracle = OrderOracle()

    def apply(self, request: bytes) -> tuple[int, bytes]:
        seq = next(self.places)
        return seq, answer(self.service, request, Context(seq, 0, bytes(8), "test", False))

    def begin(self, request: bytes) -> PendingRequest:
        return self.oracle.begin(request, read_only=request.startswith(b"GET"))

    def make(self, request: bytes) -> bytes:
        ticket = self.begin(request)
        seq, reply = self.apply(request)
        self.oracle.end(ticket, seq, reply)
        return reply

    @property
    def verdict(self) -> tuple[int, int, int]:
        return self.oracle.correct, self.oracle.wrong, self.oracle.misplaced


def add(key: str = "n") -> bytes:
    return encode_request("POST", f"/kv/{key}?increment=1", [], b"")


def put(value: bytes, key: str = "k") -> bytes:
    return encode_request("PUT", f"/kv/{key}", [], value)


def get(key: str) -> bytes:
    return encode_request("GET", f"/kv/{key}", [], b"")


def test_right_history_is_correct() -> None:
    history = History()
    for _ in range(5):
        history.make(add())
        history.make(put(b"blue"))
        history.make(get("n"))
    assert history.verdict == (15, 0, 0)


def test_replies_may_arrive_out_of_order() -> None:
    history = History()
    tickets = [history.begin(add()) for _ in range(8)]
    replies = [history.apply(add()) for _ in tickets]
    for ticket, (seq, reply) in reversed(list(zip(tickets, replies, strict=True))):
        history.oracle.end(ticket, seq, reply)
    assert history.verdict == (8, 0, 0)


def test_reply_is_judged_only_when_no_earlier_place_can_be_taken() -> None:
    history = History()
    early = history.begin(add())
    seq, reply = history.apply(add())
    history.make(add())
    assert history.verdict == (0, 0, 0)
    history.oracle.end(early, seq, reply)
    assert history.verdict == (2, 0, 0)


def test_lost_write_is_a_wrong_reply() -> None:
    history = History()
    history.make(add())
    history.service = load("kv")()  # the acknowledged write is gone
    history.make(get("n"))
    assert history.oracle.wrong == 1
    assert "place 2" in history.oracle.complaints[0]
    assert "404" in history.oracle.complaints[0]


def test_write_applied_twice_is_a_wrong_reply() -> None:
    history = History()
    ticket = history.begin(add())
    seq, reply = history.apply(add())
    answer(history.service, add(), Context(seq, 0, bytes(8), "test", False))
    history.oracle.end(ticket, seq, reply)
    history.make(add())
    assert history.verdict == (1, 1, 0)


def test_reply_is_misplaced_when_its_place_was_passed_before_it_began() -> None:
    history = History()
    history.make(add("a"))
    stale = history.apply(get("a"))
    history.make(add("a"))
    history.oracle.end(history.begin(get("a")), *stale)  # begun after the second was answered
    assert history.oracle.misplaced == 1


def test_second_reply_at_one_place_is_misplaced() -> None:
    history = History()
    first, second = history.begin(get("a")), history.begin(get("b"))
    seq, reply = history.apply(get("a"))
    history.oracle.end(first, seq, reply)
    history.oracle.end(second, seq, history.apply(get("b"))[1])
    assert history.oracle.misplaced == 1


def test_executed_write_without_a_reply_is_found_by_later_replies() -> None:
    history = History()
    history.make(put(b"one"))
    lost = history.begin(put(b"two"))
    history.apply(put(b"two"))
    history.oracle.lose(lost)
    history.make(get("other"))
    history.make(get("k"))
    history.make(put(b"three"))
    assert history.verdict == (4, 0, 0)
    assert (history.oracle.unknown, history.oracle.found) == (0, 1)


def test_write_without_a_reply_may_be_executed_long_afterwards() -> None:
    history = History()
    history.oracle.lose(history.begin(add("x")))
    for _ in range(4):
        history.make(put(b"v"))
    history.apply(add("x"))
    history.make(put(b"w"))
    assert history.verdict == (5, 0, 0)
    assert history.oracle.found == 1


def test_several_writes_without_a_reply_are_found_in_their_order() -> None:
    history = History()
    requests = [put(b"a"), add("n"), put(b"b")]
    for ticket in [history.begin(request) for request in requests]:
        history.oracle.lose(ticket)
    for request in reversed(requests):
        history.apply(request)
    history.make(get("k"))
    history.make(add("n"))
    assert history.oracle.wrong == 0
    assert history.make(get("k")).endswith(b"a")
    assert history.oracle.wrong == 0


def test_write_without_a_reply_that_was_not_executed_changes_nothing() -> None:
    history = History()
    history.make(add())
    history.oracle.lose(history.begin(add()))
    history.make(add())
    assert history.verdict == (2, 0, 0)
    assert (history.oracle.unknown, history.oracle.found) == (1, 0)


def test_unknown_write_does_not_excuse_another_wrong_reply() -> None:
    history = History()
    history.oracle.lose(history.begin(add("x")))
    history.oracle.end(history.begin(get("k")), 1, b"HTTP/1.1 200 OK\r\n\r\nnever written")
    assert history.oracle.wrong == 1
    assert history.oracle.unknown == 1


def test_refused_request_delays_no_judgement() -> None:
    history = History()
    refused = history.begin(add())
    history.make(add())
    history.oracle.refuse(refused)
    history.make(add())
    assert history.verdict == (2, 0, 0)
    assert history.oracle.unknown == 0


def test_executed_gets_requests_in_order_and_proved_writes_before_their_proof() -> None:
    history = History()
    executed: list[tuple[int, bytes, bool]] = []
    places: list[int] = []
    history.oracle = OrderOracle(released=places.append, executed=lambda *one: executed.append(one))
    history.make(put(b"one"))
    lost = history.begin(put(b"two"))
    history.apply(put(b"two"))
    history.oracle.lose(lost)
    history.make(get("k"))
    assert executed == [(1, put(b"one"), False), (3, put(b"two"), False), (3, get("k"), True)]
    assert places == [1, 3]


def test_known_ends_where_a_request_in_progress_may_get_a_place() -> None:
    history = History()
    history.make(add())
    early = history.begin(add())
    history.make(add())
    assert history.oracle.known == 1
    history.oracle.refuse(early)
    assert history.oracle.known == 2
