"""The request reader: by examples, by any cutting of the stream, by any bytes.

And next to aiohttp's own parser, which must not read another request out of the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import assume, given
from hypothesis import strategies as st

from voter.frontend.http1 import (
    HEAD_LIMIT,
    HEADER_LIMIT,
    TARGET_LIMIT,
    HttpRequest,
    Refused,
    RequestReader,
)

MAX_BODY = 1000
GET = b"GET /kv/a HTTP/1.1\r\nHost: x\r\n\r\n"


def read(data: bytes, *, piece: int | None = None) -> list[HttpRequest]:
    """Read all requests out of `data`, fed in pieces."""
    reader, found = RequestReader(MAX_BODY), []
    for at in range(0, len(data), piece or len(data) or 1):
        reader.feed(data[at : at + (piece or len(data))])
        while (request := reader.next()) is not None:
            found.append(request)
    return found


def outcome(data: bytes, *, piece: int | None = None) -> int:
    """Return the status that `data` is refused with, or 200."""
    try:
        read(data, piece=piece)
    except Refused as refused:
        return refused.status
    return 200


def refusal(data: bytes) -> int:
    """Return the status that `data` is refused with."""
    with pytest.raises(Refused) as caught:
        read(data)
    assert caught.value.detail
    return caught.value.status


def test_a_plain_request() -> None:
    (request,) = read(
        b"PUT /kv/a%20b?x=%7e HTTP/1.1\r\nHost: h:1\r\nX-Two:  a b\t\r\n"
        b"Content-Length: 5\r\n\r\nhello"
    )
    assert request.method == "PUT"
    assert request.target == "/kv/a%20b?x=%7e"
    assert request.headers == [(b"host", b"h:1"), (b"x-two", b"a b"), (b"content-length", b"5")]
    assert request.body == b"hello"
    assert request.keep_alive
    assert not request.http10


def test_pipelined_requests_come_one_by_one() -> None:
    data = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50))
    assert [request.target for request in read(data)] == [f"/{number}" for number in range(50)]


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        b"b\r\nhello world\r\n0\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n",
        b"00B;name=value\r\nhello world\r\n000\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [None, 1, 2, 3, 7])
def test_a_chunked_body(body: bytes, piece: int | None) -> None:
    data = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n" + body
    requests = read(data + GET, piece=piece)
    assert [request.body for request in requests] == [b"hello world", b""]


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"X-A, Close", False),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_who_keeps_the_connection(version: bytes, connection: bytes, kept: bool) -> None:
    line = b"Connection: %b\r\n" % connection if connection else b""
    (request,) = read(b"GET / HTTP/%b\r\nHost: x\r\n%b\r\n" % (version, line))
    assert request.keep_alive is kept


@pytest.mark.parametrize(
    ("target", "expected", "host"),
    [
        (b"http://other:81/a?b", "/a?b", b"other:81"),
        (b"HTTP://other", "/", b"other"),
        (b"http://other?q=/", "/?q=/", b"other"),
        (b"//not-a-host/a", "//not-a-host/a", b"x"),
    ],
)
def test_an_absolute_target_comes_before_host(target: bytes, expected: str, host: bytes) -> None:
    (request,) = read(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
    assert (request.target, request.headers) == (expected, [(b"host", host)])


def test_any_token_is_a_method_and_options_may_ask_for_all() -> None:
    assert read(GET.replace(b"GET", b"FROBNICATE"))[0].method == "FROBNICATE"
    assert read(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")[0].target == "*"


def test_continue_is_wanted_only_while_nothing_of_the_body_is_there() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    waiting, sending = RequestReader(MAX_BODY), RequestReader(MAX_BODY)
    waiting.feed(head)
    assert waiting.next() is None
    assert waiting.wants_continue
    sending.feed(head + b"a")
    assert sending.next() is None
    assert not sending.wants_continue


LINE = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n", 400),  # at once: the client may wait for the answer before it sends more
        (b"GET /\r\n", 400),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1 \r\n", 400),
        (b"GET / HTTX/1.1\r\n", 400),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"PRI * HTTP/2.0\r\n", 505),
        (b"GET a HTTP/1.1\r\n", 400),
        (b"GET * HTTP/1.1\r\n", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\n", 400),
        (b"GET http:///a HTTP/1.1\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\n", 501),
        (b"G\x00T / HTTP/1.1\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),  # TLS on a plain port
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (LINE + b"Host: x\n\r\n", 400),
        (LINE + b"\r\n", 400),  # no Host
        (LINE + b"Host: x\r\nHost: x\r\n\r\n", 400),
        (LINE + b"Host : x\r\n\r\n", 400),
        (LINE + b"Host: x\r\n folded\r\n\r\n", 400),
        (LINE + b"Host: x\r\nno colon\r\n\r\n", 400),
        (LINE + b"Host: x\r\n: empty\r\n\r\n", 400),
        (LINE + b"Host: x\r\nA: b\rc\r\n\r\n", 400),
        (LINE + b"Host: x\r\nA: b\x00\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: -1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: +1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1_0\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length:\r\n\r\n", 400),
        (LINE + b"Host: x\r\nContent-Length: 1001\r\n\r\n", 413),
        (LINE + b"Host: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (LINE + b"Host: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (LINE + b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (
            LINE + b"Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            501,
        ),
        (LINE + b"Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (LINE + b"Host: x\r\nExpect: magic\r\n\r\n", 417),
        (b"GET /" + b"a" * TARGET_LIMIT + b" HTTP/1.1\r\n", 414),
        (b"GET /" + b"a" * HEAD_LIMIT, 414),
        (LINE + b"Host: x\r\nA: " + b"a" * HEAD_LIMIT, 431),
        (LINE + b"Host: x\r\nA: " + b"a" * HEAD_LIMIT + b"\r\n\r\n", 431),
        (LINE + b"Host: x\r\n" + b"A: b\r\n" * HEADER_LIMIT + b"\r\n", 431),
    ],
)
def test_what_is_refused(data: bytes, status: int) -> None:
    assert refusal(data) == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x\r\n", 400),
        (b"0x1\r\na\r\n", 400),
        (b"-1\r\n", 400),
        (b"\r\n", 400),
        (b" 1\r\na\r\n", 400),
        (b"1 \r\na\r\n", 400),
        (b"1\na\n", 400),
        (b"1\r\nab\r\n", 400),
        (b"1;" + b"e" * 300, 400),
        (b"1;\x01\r\na\r\n", 400),
        (b"F" * 17 + b"\r\n", 400),
        (b"3e9\r\n", 413),  # 1001: refused by its size, before its bytes
        (b"3e8\r\n" + b"a" * 1000 + b"\r\n1\r\n", 413),
        (b"0\r\nno colon\r\n\r\n", 400),
        (b"0\r\nA: b\n\r\n\r\n", 400),
        (b"0\r\n" + b"A: b\r\n" * 2000, 431),
        (b"0\r\nA: " + b"b" * 9000, 431),
    ],
)
def test_chunks_that_are_refused(body: bytes, status: int) -> None:
    assert refusal(LINE + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body) == status


def test_a_huge_body_is_refused_before_it_is_sent() -> None:
    assert refusal(LINE + b"Host: x\r\nContent-Length: 1001\r\n\r\n") == 413


def test_small_pieces_cost_no_more_than_their_bytes() -> None:
    reader = RequestReader(1 << 20)
    reader.feed(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(5000):
        reader.feed(b"1\r\na\r\n")
        assert reader.next() is None
    assert reader.held == 5000
    reader.feed(b"0\r\n\r\n")
    request = reader.next()
    assert request is not None
    assert request.body == b"a" * 5000
    assert reader.held == 0
    assert not reader.started


# ------------------------------------------------------------- by hypothesis

TOKENS = st.text("abcXYZ019-_.!~", min_size=1, max_size=8).map(str.encode)
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).map(lambda text: text.encode("latin-1"))
TARGETS = st.text("abc/%7?=&;:@!$'()*+,~._-", max_size=30).map(lambda text: b"/" + text.encode())
FRAMING = {b"host", b"content-length", b"transfer-encoding", b"expect", b"connection", b"upgrade"}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A well-formed request."""
    method = draw(st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"PATCH", b"OPTIONS"]))
    body = draw(st.binary(max_size=60))
    lines = [b"%b %b HTTP/1.1" % (method, draw(TARGETS)), b"Host: example"]
    for name, value in draw(st.lists(st.tuples(TOKENS, VALUES), max_size=5)):
        if name.lower() not in FRAMING and not name.lower().startswith(b"sec-"):
            lines.append(name + b":" + value)
    if draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 20), max_size=5))
        lines.append(b"Transfer-Encoding: chunked")
        pieces, at = [], 0
        for size in [*sizes, len(body)]:
            if piece := body[at : at + size]:
                pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
            at += size
        sent = b"".join(pieces) + b"0\r\n\r\n"
    else:
        lines.append(b"Content-Length: %d" % len(body))
        sent = body
    return b"\r\n".join([*lines, b"", b""]) + sent


@given(st.lists(requests(), min_size=1, max_size=4), st.integers(1, 40))
def test_cutting_the_stream_changes_nothing(parts: list[bytes], piece: int) -> None:
    whole = b"".join(parts)
    assert read(whole, piece=piece) == read(whole)
    assert len(read(whole)) == len(parts)


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_requests_or_a_clean_refusal(data: bytes, piece: int) -> None:
    assert outcome(data, piece=piece) in (200, *range(400, 600))


@given(requests(), st.data())
def test_damaged_requests_too(request: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(request) - 1))
    damage = data.draw(st.binary(max_size=3))
    assert outcome(request[:at] + damage + request[at + 1 :]) in (200, *range(400, 600))


class _Unpaced:
    """What aiohttp's parser asks of a protocol."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


def aiohttp_reads(data: bytes) -> Iterator[tuple[str, str, list[tuple[bytes, bytes]], bytes]]:
    """Yield what aiohttp's parser makes of `data`.  Raises HttpProcessingError, ValueError."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(
            _Unpaced(),  # type: ignore[arg-type]
            loop,
            1 << 30,
            auto_decompress=False,
        )
        messages, upgraded, _ = parser.feed_data(data)
        assume(not upgraded)
        for message, payload in messages:
            if payload.exception() is not None or not payload.is_eof():
                raise ValueError("an incomplete or broken body")
            headers = [(name.lower(), value) for name, value in message.raw_headers]
            yield message.method, message.path, headers, payload.read_nowait()
    finally:
        loop.close()


@given(st.lists(requests(), min_size=1, max_size=3))
def test_aiohttp_reads_the_same(parts: list[bytes]) -> None:
    data = b"".join(parts)
    ours = [(r.method, r.target, r.headers, r.body) for r in read(data)]
    assert ours == list(aiohttp_reads(data))


@given(requests(), requests(), st.data())
def test_nothing_can_be_smuggled_past_one_of_the_two(
    first: bytes, second: bytes, data: st.DataObject
) -> None:
    """If both take damaged bytes as whole requests, they take them as the same requests."""
    at = data.draw(st.integers(0, len(first) - 1))
    damage = data.draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"0", b":", b","]))
    sent = first[:at] + damage + first[at + data.draw(st.integers(0, 1)) :] + second
    reader = RequestReader(MAX_BODY)
    reader.feed(sent)
    ours = []
    try:
        while (request := reader.next()) is not None:
            ours.append((request.method, request.target, request.headers, request.body))
        theirs = list(aiohttp_reads(sent))
    except (Refused, HttpProcessingError, ValueError):
        return  # one of them refuses: nothing behind it is read
    assume(not reader.started)
    assert ours == theirs
