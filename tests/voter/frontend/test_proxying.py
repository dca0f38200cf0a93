"""Header rules: what goes on to the replicas, what comes back to the client."""

from __future__ import annotations

import pytest
from hypothesis import given

from guests.message import Reply, Request, encode_request
from tests.voter.frontend.test_http1 import requests
from voter.core.events import Release
from voter.frontend.http1 import HttpRequest, RequestReader
from voter.frontend.proxying import canonical_request, encode_response, vote_header

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def parse(data: bytes) -> HttpRequest:
    reader = RequestReader(1000)
    reader.feed(data)
    request = reader.next()
    assert request is not None
    return request


def split(response: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}, body


def test_hop_by_hop_headers_stay_here_and_the_rest_goes_on() -> None:
    data = canonical_request(
        parse(
            b"PUT /a%2Fb?c HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n"
            b"Keep-Alive: 5\r\nProxy-Authorization: secret\r\nProxy-Connection: close\r\n"
            b"TE: trailers\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\nCookie: a=b\r\nContent-Encoding: gzip\r\n"
            b"X-Two: 1\r\nx-two: 2\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n"
        )
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
    assert len({canonical_request(parse(data)) for data in spellings}) == 1


@given(requests())
def test_canonical_bytes_are_those_of_encode_request(data: bytes) -> None:
    request = parse(data)
    taken = {b"content-length", b"transfer-encoding", b"te", b"trailer"}
    headers = [
        (name.decode(), value.decode("latin-1"))
        for name, value in request.headers
        if name not in taken
    ]
    canonical = canonical_request(request)
    assert canonical == encode_request(request.method, request.target, headers, request.body)
    assert Request.decode(canonical).body == request.body


def test_a_reply_gets_what_replicas_do_not_vote_on() -> None:
    first, headers, body = split(
        encode_response(
            Reply(200, b"hi", [("etag", '"1"')]), DATE, extra=[("Trivisor-Vote", "2/3; seq=1")]
        )
    )
    assert first == "HTTP/1.1 200 OK"
    assert body == b"hi"
    assert headers == {
        "etag": '"1"',
        "date": DATE,
        "server": "trivisor",
        "via": "1.1 trivisor",
        "trivisor-vote": "2/3; seq=1",
        "content-length": "2",
    }


def test_a_service_decides_neither_framing_nor_vote() -> None:
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
    _, headers, _ = split(encode_response(Reply(200, b"hi", spoofed), DATE))
    assert headers == {
        "date": "then",
        "server": "mine",
        "via": "1.1 trivisor",
        "content-length": "2",
    }


@pytest.mark.parametrize(
    ("status", "body", "head_only", "length", "sent"),
    [
        (200, b"", False, "0", b""),
        (200, b"abc", True, "3", b""),
        (200, b"", True, None, b""),  # the service did not say how long it would have been
        (204, b"abc", False, None, b""),
        (304, b"abc", False, None, b""),
        (205, b"abc", False, "0", b""),
    ],
)
def test_bodies_that_cannot_be(
    status: int, body: bytes, head_only: bool, length: str | None, sent: bytes
) -> None:
    _, headers, got = split(encode_response(Reply(status, body), DATE, head_only=head_only))
    assert headers.get("content-length") == length
    assert got == sent


@pytest.mark.parametrize(
    ("keep_alive", "http10", "connection"),
    [(True, False, None), (True, True, "keep-alive"), (False, False, "close")],
)
def test_the_connection_is_told_its_fate(
    keep_alive: bool, http10: bool, connection: str | None
) -> None:
    response = encode_response(Reply(), DATE, keep_alive=keep_alive, http10=http10)
    assert split(response)[1].get("connection") == connection


def test_a_status_without_a_name_of_its_own_is_sent_all_the_same() -> None:
    assert encode_response(Reply(299), DATE).startswith(b"HTTP/1.1 299 Status\r\n")
    assert encode_response(Reply(418), DATE).startswith(b"HTTP/1.1 418 I'm a Teapot\r\n")


def test_how_a_reply_was_voted() -> None:
    names = ["g1", "g2", "g3"]
    assert vote_header(Release(1, 7, b"", 3, ()), 3, names)[1] == "3/3; seq=7"
    assert vote_header(Release(1, 7, b"", 2, (2,)), 3, names)[1] == "2/3; dissent=g3; seq=7"
    assert vote_header(Release(1, 7, b"", 1, (0, 2)), 3, names)[1] == "1/3; dissent=g1,g3; seq=7"
