"""Header rules: what goes on to the replicas, what comes back to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from guests.protocol.message import MessageError, Reply, Request, encode_request
from tests.voter.frontend.messages import parse, requests
from tests.voter.http_client import HttpClient, Response
from voter.core.events import Release
from voter.frontend.proxying import canonical_request, origin_form, to_response, vote_header


def canonical(data: bytes) -> bytes:
    """What the replicas get of the one request in `data`."""
    ((message, body),) = parse(data)
    target, authority = origin_form(message.path)
    return canonical_request(message.method, target, message.raw_headers, authority, body)


async def sent(make: Callable[[], web.Response], method: str = "GET") -> Response:
    """What a client gets of the response that `make` makes."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return make()

    server = web.Server(handle, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        async with await HttpClient.open(listener.sockets[0].getsockname()[1]) as client:
            return await client.ask(method, "/")
    finally:
        listener.close()
        await server.shutdown(1)


def test_hop_by_hop_headers_stay_here_and_the_rest_goes_on() -> None:
    data = canonical(
        b"PUT /a%2Fb?c HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n"
        b"Keep-Alive: 5\r\nProxy-Authorization: secret\r\nProxy-Connection: close\r\n"
        b"TE: trailers\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n"
        b"Transfer-Encoding: chunked\r\nCookie: a=b\r\nContent-Encoding: gzip\r\n"
        b"X-Two: 1\r\nx-two: 2\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n"
    )
    assert data == (
        b"PUT /a%2Fb?c HTTP/1.1\r\nhost: h\r\ncookie: a=b\r\ncontent-encoding: gzip\r\n"
        b"x-two: 1\r\nx-two: 2\r\ncontent-length: 3\r\n\r\nabc"
    )


def test_the_same_request_has_one_form() -> None:
    """However it is spelled and framed, the replicas get the same bytes."""
    spellings = [
        b"POST /k HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
        b"POST /k HTTP/1.1\r\nhost:h  \r\ntransfer-encoding: chunked\r\n\r\n"
        b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        b"POST http://h/k HTTP/1.1\r\nHOST: other\r\nCONTENT-LENGTH: 2\r\n\r\nhi",
    ]
    assert len({canonical(data) for data in spellings}) == 1


@given(requests())
def test_canonical_bytes_are_those_of_encode_request(data: bytes) -> None:
    ((message, body),) = parse(data)
    taken = {b"content-length", b"transfer-encoding", b"te", b"trailer"}
    headers = [
        (name.decode(), value.decode("latin-1"))
        for name, value in message.raw_headers
        if name.lower() not in taken
    ]
    assert canonical(data) == encode_request(message.method, message.path, headers, body)
    assert Request.decode(canonical(data)).body == body


@given(st.lists(requests(), min_size=1, max_size=4), st.integers(1, 40))
def test_cutting_the_stream_changes_nothing(parts: list[bytes], piece: int) -> None:
    whole = b"".join(parts)
    read = [
        [(message.method, message.path, message.raw_headers, body) for message, body in found]
        for found in (parse(whole, piece=piece), parse(whole))
    ]
    assert read[0] == read[1]
    assert len(read[0]) == len(parts)


@pytest.mark.parametrize(
    ("target", "expected", "authority"),
    [
        ("http://other:81/a?b", "/a?b", "other:81"),
        ("HTTP://other", "/", "other"),
        ("http://other?q=/", "/?q=/", "other"),
        ("//not-a-host/a", "//not-a-host/a", None),
        ("/%C3%A4%2f", "/%C3%A4%2f", None),
        ("*", "*", None),
    ],
)
def test_an_absolute_target_comes_before_host(
    target: str, expected: str, authority: str | None
) -> None:
    assert origin_form(target) == (expected, authority)
    if target != "*":
        data = canonical(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode())
        assert (b"\r\nhost: %b\r\n" % (authority or "x").encode()) in data


@pytest.mark.parametrize("target", ["a", "", "ftp://x/a", "http:///a", "/\u00e4", "/\x7f"])
def test_a_target_that_is_none(target: str) -> None:
    with pytest.raises(MessageError):
        origin_form(target)


async def test_a_reply_gets_what_replicas_do_not_vote_on() -> None:
    response = await sent(
        lambda: to_response(
            Reply(200, b"hi", [("etag", '"1"'), ("content-type", "x/y")]),
            ("Trivisor-Vote", "2/3; seq=1"),
        )
    )
    assert (response.status, response.body) == (200, b"hi")
    assert response.headers.pop("date")
    assert response.headers == {
        "etag": '"1"',
        "content-type": "x/y",
        "server": "trivisor",
        "via": "1.1 trivisor",
        "trivisor-vote": "2/3; seq=1",
        "content-length": "2",
    }


async def test_a_service_decides_neither_framing_nor_vote() -> None:
    spoofed = [
        ("content-length", "999"),
        ("transfer-encoding", "chunked"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("trivisor-vote", "3/3; seq=0"),
        ("date", "then"),
        ("server", "mine"),
    ]
    response = await sent(lambda: to_response(Reply(200, b"hi", spoofed)))
    assert response.headers == {
        "content-type": "application/octet-stream",
        "date": "then",
        "server": "mine",
        "via": "1.1 trivisor",
        "content-length": "2",
    }


@pytest.mark.parametrize(
    ("status", "body", "method", "length", "got"),
    [
        (200, b"", "GET", "0", b""),
        (200, b"abc", "HEAD", "3", b""),
        (200, b"", "HEAD", None, b""),  # the service did not say how long it would have been
        (204, b"abc", "GET", None, b""),
        (304, b"abc", "GET", None, b""),
        (205, b"abc", "GET", "0", b""),
    ],
)
async def test_bodies_that_cannot_be(
    status: int, body: bytes, method: str, length: str | None, got: bytes
) -> None:
    response = await sent(lambda: to_response(Reply(status, body)), method)
    assert response.status == status
    assert response.headers.get("content-length") == length
    assert response.body == got


async def test_a_status_without_a_name_of_its_own_is_sent_all_the_same() -> None:
    for status in (299, 418, 599):
        assert (await sent(partial(to_response, Reply(status)))).status == status


async def test_header_values_are_sent_as_they_were_voted() -> None:
    value = "caf\u00e9".encode().decode("latin-1")  # as Reply.decode reads UTF-8
    response = await sent(lambda: to_response(Reply(200, b"", [("x-name", value)])))
    assert response.headers["x-name"] == value
    latin = await sent(lambda: to_response(Reply(200, b"", [("x-name", "caf\u00e9")])))
    assert latin.headers["x-name"] == value
    with pytest.raises(MessageError):
        to_response(Reply(200, b"", [("x-name", "a\x01b")]))


def test_how_a_reply_was_voted() -> None:
    names = ["g1", "g2", "g3"]
    assert vote_header(Release(1, 7, b"", 3, ()), 3, names)[1] == "3/3; seq=7"
    assert vote_header(Release(1, 7, b"", 2, (2,)), 3, names)[1] == "2/3; dissent=g3; seq=7"
    assert vote_header(Release(1, 7, b"", 1, (0, 2)), 3, names)[1] == "1/3; dissent=g1,g3; seq=7"
