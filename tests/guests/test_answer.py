"""The reply to any input."""

from __future__ import annotations

from enum import Enum, StrEnum
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.answer import MAX_REPLY, answer
from guests.protocol.message import Reply, Request, encode_request
from guests.service import Context, Service
from guests.services.kv import KeyValue

CONTEXT = Context(1, 1_000_000_007, b"seed 123", "alice")


class Odd(Service):
    """Returns its ``result``, or raises it."""

    def __init__(self, result: object) -> None:
        self.result = result

    def apply(self, request: Request, context: Context) -> Reply:
        if isinstance(self.result, Exception):
            raise self.result
        if self.result == "headers":
            return Reply(200, str(request.headers))
        return self.result  # type: ignore[return-value]


def ask(service: Service, data: bytes, context: Context = CONTEXT) -> Reply:
    return Reply.decode(answer(service, data, context))


def test_exception_is_a_500_that_names_its_class_only() -> None:
    reply = ask(Odd(KeyError(object())), encode_request("GET", "/"))
    assert (reply.status, reply.body) == (500, b"service failed: KeyError\n")


def _changed(name: str, value: object) -> Reply:
    reply = Reply(200, b"body")
    setattr(reply, name, value)
    return reply


class Tag(StrEnum):
    """A text that is formatted and concatenated in one way only."""

    LATEST = "latest"


class Named(str, Enum):  # noqa: UP042 - a StrEnum is formatted otherwise
    """A text that is formatted as ``Named.X``, and concatenated as ``x``."""

    X = "x"


class Polite(Reply):
    """A user's own kind of reply."""

    def __init__(self) -> None:
        super().__init__(203, "please")
        self.more = "an attribute of its own"


# The sources and the compiled modules must make the same of all of these: tests/guests runs twice.
@pytest.mark.parametrize(
    "result, error",
    [
        (None, "AttributeError"),
        ("text", "AttributeError"),
        (Reply(99), "MessageError"),
        (Reply("200"), "TypeError"),
        (Reply(None), "TypeError"),
        (Reply(200, None, [("a", "b")]), "TypeError"),
        (Reply(200, 7), "TypeError"),
        (Reply(200, b"", [("a", "\n")]), "MessageError"),
        (Reply(200, b"", [("a", "\u20ac")]), "MessageError"),
        (Reply(200, b"", [("a b", "x")]), "MessageError"),
        (Reply(200, b"", [("\u20ac", "x")]), "MessageError"),
        (Reply(200, b"", [("a", 7)]), "AttributeError"),
        (Reply(200, b"", [("a", b"x")]), "AttributeError"),
        (Reply(200, b"", [(7, "x")]), "AttributeError"),
        (Reply(200, b"", [([], "x")]), "TypeError"),
        (Reply(200, b"", [("a", "b", "c")]), "ValueError"),
        (_changed("status", 1e3), "MessageError"),
        (_changed("headers", None), "TypeError"),
        (_changed("headers", [None]), "TypeError"),
        (_changed("body", "text"), "TypeError"),
        (_changed("body", 1.5), "TypeError"),
    ],
)
def test_invalid_reply_is_a_500(result: object, error: str) -> None:
    reply = ask(Odd(result), encode_request("GET", "/"))
    assert reply.status == 500
    assert reply.body == f"service's reply is invalid: {error}\n".encode()


@pytest.mark.parametrize(
    "result, data",
    [
        (Reply(HTTPStatus.NOT_FOUND, "x"), b"HTTP/1.1 404 Not Found\r\ncontent-length: 1\r\n\r\nx"),
        (Reply(True + 200), b"HTTP/1.1 201 Created\r\n\r\n"),
        (Reply(299.9), b"HTTP/1.1 299 Status\r\n\r\n"),
        (Reply(200, bytearray(b"x")), b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"),
        (Reply(200, memoryview(b"x")), b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"),
        (Reply(200, b"", {"A": Tag.LATEST}), b"HTTP/1.1 200 OK\r\na: latest\r\n\r\n"),
        (Reply(200, b"", {"A": Named.X}), b"HTTP/1.1 200 OK\r\na: x\r\n\r\n"),
        (Reply(200, b"", [["A", "\t\u00e9"]]), b"HTTP/1.1 200 OK\r\na: \t\xe9\r\n\r\n"),
        (Reply(200, b"", iter([("A", "")])), b"HTTP/1.1 200 OK\r\na: \r\n\r\n"),
        (Reply(200, b"", {"Content-Length": "9"}), b"HTTP/1.1 200 OK\r\n\r\n"),
        (_changed("body", b""), b"HTTP/1.1 200 OK\r\n\r\n"),
        (Polite(), b"HTTP/1.1 203 Status\r\ncontent-length: 6\r\n\r\nplease"),
    ],
)
def test_unusual_reply_is_sent(result: object, data: bytes) -> None:
    assert answer(Odd(result), encode_request("GET", "/"), CONTEXT) == data


@pytest.mark.parametrize("parts", [(b"GET", "/", b""), ("GET", None, b""), ("GET", "/", None)])
def test_request_of_other_types_is_an_error(parts: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Request(*parts)


def test_reply_over_the_limit_is_a_500() -> None:
    assert ask(Odd(Reply(200, bytes(MAX_REPLY))), encode_request("GET", "/")).status == 500
    assert ask(Odd(Reply(200, bytes(1 << 20))), encode_request("GET", "/")).status == 200


def test_malformed_request_is_a_400() -> None:
    assert ask(Odd(Reply(200)), b"nonsense").status == 400
    assert ask(Odd("headers"), b"GET / HTTP/1.1\r\nno colon\r\n\r\n").status == 400


def test_read_only_request_must_have_a_safe_method() -> None:
    store = KeyValue()
    before = store.digest()
    marked = Context(1, 1, b"", "", read_only=True)
    assert ask(store, encode_request("PUT", "/kv/a", (), b"x"), marked).status == 400
    assert store.digest() == before
    assert ask(store, encode_request("GET", "/kv/"), marked).status == 200


@given(st.binary(max_size=300))
def test_any_bytes_get_a_reply(data: bytes) -> None:
    for service in (KeyValue(), Odd("headers")):
        assert 200 <= ask(service, data).status <= 599
