"""Header rules: what the replicas get, and what the client gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.protocol.message import MessageError, Reply, Request, encode_request
from tests.voter.frontend.messages import parse, requests
from tests.voter.http_client import Response
from voter.core.events import Release
from voter.frontend.proxying import canonical_request, encode_response, origin_form, vote_header


def canonical(data: bytes) -> bytes:
    """Return what the replicas get of the one request in `data`."""
    ((method, target, authority, headers, _, _, body),) = parse(data)
    return canonical_request(method, target, headers, authority, body)


def sent(reply: Reply, *extra: tuple[str, str], head: bool = False) -> Response:
    """Return what a client gets of a reply."""
    block, _, body = encode_response(reply, *extra, head=head).partition(b"\r\n\r\n")
    first, *lines = block.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Response(int(first.split(" ")[1]), headers, body)


def test_hop_by_hop_headers_are_removed() -> None:
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
    (request,) = parse(data)
    taken = {b"content-length", b"transfer-encoding", b"te", b"trailer"}
    headers = [
        (name.decode(), value.decode("latin-1"))
        for name, value in request.headers
        if name not in taken
    ]
    body = request.body
    assert canonical(data) == encode_request(request.method, request.target, headers, body)
    assert Request.decode(canonical(data)).body == body


@given(st.lists(requests(), min_size=1, max_size=4), st.integers(1, 40))
def test_cutting_the_stream_changes_nothing(parts: list[bytes], piece: int) -> None:
    whole = b"".join(parts)
    read = parse(whole, piece=piece)
    assert read == parse(whole)
    assert len(read) == len(parts)


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
def test_invalid_target_is_an_error(target: str) -> None:
    with pytest.raises(MessageError):
        origin_form(target)


def test_response_adds_headers_outside_the_vote() -> None:
    reply = Reply(200, b"hi", [("etag", '"1"'), ("content-type", "x/y")])
    response = sent(reply, ("Trivisor-Vote", "2/3; seq=1"))
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
    response = sent(Reply(200, b"hi", spoofed))
    assert response.headers == {
        "content-type": "application/octet-stream",
        "date": "then",
        "server": "mine",
        "via": "1.1 trivisor",
        "content-length": "2",
    }


@pytest.mark.parametrize(
    ("status", "body", "head", "length", "got"),
    [
        (200, b"", False, "0", b""),
        (200, b"abc", True, "3", b""),
        (200, b"", True, None, b""),  # the service did not say how long it would have been
        (204, b"abc", False, None, b""),
        (304, b"abc", False, None, b""),
        (205, b"abc", False, "0", b""),
    ],
)
def test_response_body_follows_status_and_method(
    status: int, body: bytes, head: bool, length: str | None, got: bytes
) -> None:
    response = sent(Reply(status, body), head=head)
    assert response.status == status
    assert response.headers.get("content-length") == length
    assert response.body == got


def test_header_values_are_sent_as_they_were_voted() -> None:
    for value in ("caf\u00e9".encode().decode("latin-1"), "caf\u00e9"):
        assert sent(Reply(200, b"", [("x-name", value)])).headers["x-name"] == value
    with pytest.raises(MessageError):
        encode_response(Reply(200, b"", [("x-name", "a\x01b")]))


def test_how_a_reply_was_voted() -> None:
    names = ["g1", "g2", "g3"]
    assert vote_header(Release(1, 7, b"", 3, ()), 3, names)[1] == "3/3; seq=7"
    assert vote_header(Release(1, 7, b"", 2, (2,)), 3, names)[1] == "2/3; dissent=g3; seq=7"
    assert vote_header(Release(1, 7, b"", 1, (0, 2)), 3, names)[1] == "1/3; dissent=g1,g3; seq=7"
