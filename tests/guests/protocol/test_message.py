"""Canonical messages: round trips, refusals, and arbitrary bytes."""

from __future__ import annotations

import string
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.protocol.message import MessageError, Reply, Request, encode_reply, encode_request

TOKENS = st.text("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters, min_size=1, max_size=20)
TARGETS = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=60)
VALUES = st.text([chr(code) for code in range(256) if chr(code) not in "\r\n\0"], max_size=30).map(
    lambda value: value.strip(" \t")
)
HEADERS = st.lists(st.tuples(TOKENS, VALUES), max_size=6)
HTTP_LIKE = st.lists(
    st.sampled_from(
        [b"GET", b"HTTP/1.1", b" ", b"\r\n", b"\r\n\r\n", b":", b"/", b"a: b", b"200", b"OK", b"\0"]
    )
    | st.binary(max_size=4),
    max_size=14,
).map(b"".join)


def lower(headers: list[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        if name != "content-length":
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


@given(TOKENS, TARGETS, HEADERS, st.binary(max_size=100))
def test_request_round_trip(
    method: str, target: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    data = encode_request(method, target, headers, body)
    request = Request.decode(data)
    got = dict(request.headers)
    length = got.pop("content-length", None)
    assert (request.method, request.target, request.body) == (method, target, body)
    assert got == lower(headers)
    assert length == (str(len(body)) if body else None)


@given(st.integers(200, 599), HEADERS, st.binary(max_size=100))
def test_reply_round_trip(status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    data = encode_reply(Reply(status, body, headers))
    reply = Reply.decode(data)
    assert (reply.status, reply.body) == (status, body)
    assert encode_reply(reply) == data


@given(st.binary(max_size=200) | HTTP_LIKE)
def test_any_bytes_decode_to_a_request_or_a_message_error(data: bytes) -> None:
    try:
        request = Request.decode(data)
    except MessageError:
        return
    assert request.target.isascii()
    assert isinstance(request.path_bytes, bytes)
    assert isinstance(request.query, dict)
    try:
        assert isinstance(request.headers, dict)
    except MessageError:
        pass  # headers are decoded at their first use


@given(st.binary(max_size=200) | HTTP_LIKE)
def test_any_bytes_decode_to_a_reply_or_a_message_error(data: bytes) -> None:
    try:
        reply = Reply.decode(data)
    except MessageError:
        return
    assert 200 <= reply.status <= 599
    assert Reply.decode(encode_reply(reply)).body == reply.body


@given(st.text(max_size=10), st.text(max_size=10), st.text(max_size=10), st.text(max_size=10))
def test_any_text_is_encoded_reversibly_or_refused(
    method: str, target: str, name: str, value: str
) -> None:
    try:
        data = encode_request(method, target, [(name, value)])
    except MessageError:
        return
    request = Request.decode(data)
    assert (request.method, request.target) == (method, target)
    assert len(request.headers) == (name.lower() != "content-length")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"GET /  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b" / HTTP/1.1\r\n\r\n",
        b"G(T / HTTP/1.1\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /\n HTTP/1.1\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_request_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        Request.decode(data)


@pytest.mark.parametrize(
    "block", [b"a", b": b", b"a b: c", b"a: b\0", b"a: b\rc", b"\r\na: b", b"a: b\r\n" * 200]
)
def test_malformed_headers_are_refused_when_used(block: bytes) -> None:
    request = Request("GET", "/", b"", block)
    with pytest.raises(MessageError):
        _ = request.headers


@pytest.mark.parametrize("status", [0, 100, 199, 600, 1000])
def test_reply_is_refused_without_a_final_status(status: int) -> None:
    with pytest.raises(MessageError):
        encode_reply(Reply(status))


@pytest.mark.parametrize(
    "header", [("a\r\nb", "c"), ("", "x"), ("a", "b\r\nc: d"), ("ä", "x"), ("a", "€"), ("a", "\0")]
)
def test_header_cannot_contain_another(header: tuple[str, str]) -> None:
    with pytest.raises(MessageError):
        encode_reply(Reply(200, b"", [header]))


def test_encoder_sets_the_content_length() -> None:
    data = encode_reply(Reply(200, b"four", {"Content-Length": "9"}))
    assert data == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour"


def test_repeated_headers_are_joined_in_any_case() -> None:
    request = Request("GET", "/p%20q?a=1&a=2&b", b"", b'If-Match: "1"\r\nif-match:\t"2" ')
    assert request.headers == {"if-match": '"1", "2"'}
    assert request.path_bytes == b"/p q"
    assert request.query == {"a": "2", "b": ""}
    assert Reply(200, "x", {"ETag": "1"}).header("etag") == "1"
    assert Reply(200).header("etag") is None


def test_too_many_headers_are_refused_before_they_are_split() -> None:
    assert (
        len(Request("GET", "/", b"", b"\r\n".join(b"a%d: b" % n for n in range(128))).headers)
        == 128
    )
    many = Request("GET", "/", b"", b"a:\r\n" * (1 << 18))
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match="more than 128 headers"):
            _ = many.headers
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
