"""The key-value store by examples that its model (``test_kv_model``) does not cover."""

from __future__ import annotations

import json

import pytest

from guests.service import Context, Reply, Request, state_digest
from guests.services.kv import MAX_KEY, MAX_VALUE, KeyValue
from guests.services.table import ENTRY_COST, MAX_PAGE, PIECE
from tests.errors import raises
from tests.guests.services.calls import ask


@pytest.fixture
def store() -> KeyValue:
    return KeyValue()


def test_value_round_trip(store: KeyValue) -> None:
    value = bytes(range(256))
    reply = ask(store, "PUT", "/kv/a", value)
    assert (reply.status, reply.body, reply.header("etag")) == (201, b"", '"1"')
    reply = ask(store, "GET", "/kv/a")
    assert (reply.status, reply.body, reply.header("etag")) == (200, value, '"1"')
    assert reply.header("content-type") == "application/octet-stream"
    reply = ask(store, "PUT", "/kv/a", b"")
    assert (reply.status, reply.header("etag")) == (204, '"2"')
    assert ask(store, "GET", "/kv/a").body == b""


def test_head_is_answered_as_get(store: KeyValue) -> None:
    """The voter's front end leaves the body out, and so knows its length."""
    ask(store, "PUT", "/kv/a", b"x")
    head, get = ask(store, "HEAD", "/kv/a"), ask(store, "GET", "/kv/a")
    assert (head.status, head.body, head.headers) == (200, get.body, get.headers)
    assert ask(store, "HEAD", "/kv/b").status == 404


@pytest.mark.parametrize(
    "target, key",
    [
        ("/kv/a", b"a"),
        ("/kv/a/b//c", b"a/b//c"),
        ("/kv//", b"/"),
        ("/kv/%2F%00%ff", b"/\x00\xff"),
        ("/kv/%41", b"A"),
        ("/kv/a+b", b"a+b"),
        ("/kv/a%3Fb?", b"a?b"),
        ("/kv/" + "%C3%A9" * 512, "é".encode() * 512),
    ],
)
def test_key_is_the_percent_decoded_rest_of_the_path(
    store: KeyValue, target: str, key: bytes
) -> None:
    assert ask(store, "PUT", target, b"x").status == 201
    assert list(store.table.entries) == [key]
    assert ask(store, "GET", target).status == 200


@pytest.mark.parametrize(
    "method, target, status",
    [
        ("PUT", "/kv/%zz", 400),
        ("PUT", "/kv/%4", 400),
        ("PUT", "/kv/%", 400),
        ("PUT", "/kv/" + "k" * (MAX_KEY + 1), 414),
        ("PUT", "/kv/a?x=1", 400),
        ("GET", "/kv/a?increment=1", 400),
        ("POST", "/kv/a", 400),
        ("POST", "/kv/a?incremnt=1", 400),
        ("POST", "/kv/a?increment=1&increment=2", 400),
        ("POST", "/kv/a?increment=one", 400),
        ("POST", "/kv/a?increment=1.5", 400),
        ("POST", "/kv/a?increment=9223372036854775808", 400),
        ("PUT", "/", 404),
        ("GET", "/kv", 404),
        ("GET", "/KV/a", 404),
        ("GET", "*", 404),
        ("GET", "/kv/?limit=0", 400),
        ("GET", "/kv/?limit=1001", 400),
        ("GET", "/kv/?limit=x", 400),
        ("GET", "/kv/?prefx=x", 400),
    ],
)
def test_invalid_request_is_refused_and_changes_nothing(
    store: KeyValue, method: str, target: str, status: int
) -> None:
    before = store.digest()
    assert ask(store, method, target, b"1").status == status
    assert store.digest() == before


def test_unknown_method_is_a_405_that_lists_the_methods(store: KeyValue) -> None:
    reply = ask(store, "PATCH", "/kv/a", b"x")
    assert (reply.status, reply.header("allow")) == (405, "DELETE, GET, HEAD, POST, PUT")
    reply = ask(store, "PUT", "/kv/", b"x")
    assert (reply.status, reply.header("allow")) == (405, "GET, HEAD")


def test_value_over_the_limit_is_refused(store: KeyValue) -> None:
    assert ask(store, "PUT", "/kv/a", bytes(MAX_VALUE)).status == 201
    assert ask(store, "PUT", "/kv/a", bytes(MAX_VALUE + 1)).status == 413
    assert len(ask(store, "GET", "/kv/a").body) == MAX_VALUE


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize("method, target", [("PUT", "/kv/a"), ("DELETE", "/kv/a")])
def test_condition_fails_when_the_key_is_absent(store: KeyValue, method: str, target: str) -> None:
    reply = ask(store, method, target, b"", {"If-Match": "*"})
    assert (reply.status, reply.header("etag")) == (412, None)
    assert ask(store, method, target, b"", {"If-Match": '"1"'}).status == 412


def test_conditions_apply_to_get_and_increment(store: KeyValue) -> None:
    ask(store, "PUT", "/kv/a", b"1")
    reply = ask(store, "GET", "/kv/a", b"", {"If-None-Match": 'W/"7", W/"1"'})
    assert (reply.status, reply.body, reply.header("etag")) == (304, b"", '"1"')
    assert ask(store, "GET", "/kv/a", b"", {"If-None-Match": '"2"'}).status == 200
    assert ask(store, "GET", "/kv/a", b"", {"If-Match": '"2"'}).status == 412
    assert ask(store, "POST", "/kv/a?increment", b"", {"If-Match": '"2"'}).status == 412
    assert ask(store, "POST", "/kv/a?increment", b"", {"If-Match": '"9", "1"'}).body == b"2"
    assert ask(store, "POST", "/kv/a?increment", b"", {"If-Match": "*"}).body == b"3"


def test_weak_tag_permits_no_write(store: KeyValue) -> None:
    ask(store, "PUT", "/kv/a", b"1")
    assert ask(store, "PUT", "/kv/a", b"2", {"If-Match": 'W/"1"'}).status == 412


@pytest.mark.parametrize("value", ["1", "", '"', "W/1", '"1", 2', "*, *"])
def test_malformed_tag_is_refused(store: KeyValue, value: str) -> None:
    ask(store, "PUT", "/kv/a", b"1")
    for name in ("If-Match", "If-None-Match"):
        assert ask(store, "PUT", "/kv/a", b"2", {name: value}).status == 400
    assert ask(store, "GET", "/kv/a").body == b"1"


# ---------------------------------------------------------------- numbers


def test_increment(store: KeyValue) -> None:
    reply = ask(store, "POST", "/kv/n?increment")
    assert (reply.status, reply.body, reply.header("etag")) == (200, b"1", '"1"')
    assert ask(store, "POST", "/kv/n?increment=41").body == b"42"
    assert ask(store, "POST", "/kv/n?increment=-50").body == b"-8"
    assert ask(store, "GET", "/kv/n").body == b"-8"
    ask(store, "PUT", "/kv/n", b"007")
    assert ask(store, "POST", "/kv/n?increment=").body == b"8"


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.0", b" 1", b"+1", b"--1", b"-", b"1_0", b"9" * 5000, "\u0661".encode()]
)
def test_increment_is_refused_when_the_value_is_not_a_number(store: KeyValue, value: bytes) -> None:
    ask(store, "PUT", "/kv/n", value)
    reply = ask(store, "POST", "/kv/n?increment=1")
    assert (reply.status, reply.header("etag")) == (409, '"1"')
    assert ask(store, "GET", "/kv/n").body == value


def test_increment_is_refused_beyond_64_bits(store: KeyValue) -> None:
    ask(store, "PUT", "/kv/n", b"9223372036854775806")
    assert ask(store, "POST", "/kv/n?increment=1").body == b"9223372036854775807"
    assert ask(store, "POST", "/kv/n?increment=1").status == 409
    assert ask(store, "POST", "/kv/m?increment=-9223372036854775808").status == 200
    assert ask(store, "POST", "/kv/m?increment=-1").status == 409


# ---------------------------------------------------------------- the list


def keys_of(store: KeyValue, target: str) -> tuple[list[str], str | None]:
    reply = ask(store, "GET", target)
    assert reply.header("content-type") == "application/json"
    page = json.loads(reply.body)
    return page["keys"], page["next"]


def test_list_is_sorted_by_bytes_and_paginated(store: KeyValue) -> None:
    for key in ("b", "a", "%FF", "B", "a%2Fb", "a%00", "10", "9"):
        ask(store, "PUT", f"/kv/{key}", b"")
    everything = ["10", "9", "B", "a", "a%00", "a%2Fb", "b", "%FF"]
    assert keys_of(store, "/kv/") == (everything, None)
    assert keys_of(store, "/kv/?limit=8") == (everything, None)
    assert keys_of(store, "/kv/?limit=3") == (everything[:3], "B")
    assert keys_of(store, "/kv/?limit=3&after=B") == (everything[3:6], "a%2Fb")
    assert keys_of(store, "/kv/?limit=3&after=a%2Fb") == (everything[6:], None)
    assert keys_of(store, "/kv/?after=a%00%00") == (everything[5:], None)
    assert keys_of(store, "/kv/?prefix=a") == (["a", "a%00", "a%2Fb"], None)
    assert keys_of(store, "/kv/?prefix=a&after=a") == (["a%00", "a%2Fb"], None)
    assert keys_of(store, "/kv/?prefix=a&limit=2") == (["a", "a%00"], "a%00")
    assert keys_of(store, "/kv/?prefix=a&after=b") == ([], None)
    assert keys_of(store, "/kv/?after=%FF") == ([], None)
    assert keys_of(store, "/kv/?prefix=%ff") == (["%FF"], None)


def test_plus_in_a_query_is_a_space(store: KeyValue) -> None:
    ask(store, "PUT", "/kv/a%20b", b"")
    ask(store, "PUT", "/kv/a+b", b"")
    assert keys_of(store, "/kv/?prefix=a+") == (["a%20b"], None)
    assert keys_of(store, "/kv/?prefix=a%2B") == (["a%2Bb"], None)


def test_pages_of_long_keys_are_bounded_and_reach_all_keys(store: KeyValue) -> None:
    for n in range(400):
        store.table.store(b"%03d" % n + b"\xff" * (MAX_KEY - 3), b"")
    seen: list[str] = []
    target = "/kv/?limit=1000"
    while True:
        keys, following = keys_of(store, target)
        assert sum(map(len, keys)) <= MAX_PAGE
        seen += keys
        if following is None:
            break
        target = f"/kv/?limit=1000&after={following}"
    assert len(seen) == len(set(seen)) == 400


# ---------------------------------------------------------------- capacity and state


def test_full_store_refuses_growth_only() -> None:
    store = KeyValue(capacity=2 * (ENTRY_COST + 11))
    assert ask(store, "PUT", "/kv/a", b"0123456789").status == 201
    assert ask(store, "PUT", "/kv/b", b"0123456789").status == 201
    before = store.digest()
    assert ask(store, "PUT", "/kv/c", b"").status == 507
    assert ask(store, "PUT", "/kv/a", b"0123456789+").status == 507
    assert ask(store, "POST", "/kv/c?increment=1").status == 507
    assert store.digest() == before
    assert ask(store, "PUT", "/kv/a", b"9876543210").status == 204
    assert ask(store, "DELETE", "/kv/b").status == 204
    assert ask(store, "PUT", "/kv/c", b"0123456789").status == 201


def test_state_over_the_capacity_is_refused() -> None:
    store = KeyValue()
    ask(store, "PUT", "/kv/a", b"0123456789")
    with raises("TV0404", match="capacity"):
        KeyValue(capacity=ENTRY_COST).restore(b"".join(store.snapshot()))


def test_snapshot_is_in_pieces_and_of_its_moment() -> None:
    store = KeyValue()
    ask(store, "PUT", "/kv/big", bytes(300_000))
    ask(store, "PUT", "/kv/small", b"x")
    before = store.digest()
    pieces = store.snapshot()
    ask(store, "PUT", "/kv/big", b"changed")
    ask(store, "DELETE", "/kv/small")
    ask(store, "PUT", "/kv/a", b"new")
    kept = list(pieces)
    assert max(map(len, kept)) <= PIECE
    assert len(kept) == 5
    assert state_digest(iter(kept)) == before


def test_digest_depends_on_the_stored_bytes() -> None:
    one, two = KeyValue(), KeyValue()
    ask(one, "PUT", "/kv/a", b"1")
    ask(one, "PUT", "/kv/b", b"2")
    ask(two, "PUT", "/kv/b", b"2")
    ask(two, "PUT", "/kv/a", b"1")
    assert one.digest() != two.digest()  # the versions differ, and so would the replies
    two.restore(b"".join(one.snapshot()))
    assert one.digest() == two.digest()
    one.table.entries[b"a"] = (b"0", 1)  # a bit that flipped in memory
    assert one.digest() != two.digest()


def test_store_can_be_inherited_from() -> None:
    class Small(KeyValue):
        capacity = ENTRY_COST

        def apply(self, request: Request, context: Context) -> Reply:
            reply = super().apply(request, context)
            return Reply(reply.status, reply.body, (("x-small", "yes"),))

    reply = Small().apply(Request("PUT", "/kv/a", b"value"), Context(1, 0, b"", ""))
    assert (reply.status, reply.header("x-small")) == (507, "yes")
