"""The reply to any input, and the loading of a service from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.answer import MAX_REPLY, answer
from guests.protocol.message import Reply, Request, encode_request
from guests.service import Context, Service, ServiceError, load, state_digest
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


@pytest.mark.parametrize("result", [None, "text", Reply(99), Reply(200, b"", [("a", "\n")])])
def test_invalid_reply_is_a_500(result: object) -> None:
    assert ask(Odd(result), encode_request("GET", "/")).status == 500


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


def test_service_without_state_has_an_empty_one() -> None:
    service = Odd(None)
    service.restore(b"")
    assert service.digest() == state_digest(iter(()))
    with pytest.raises(ServiceError, match="no state"):
        service.restore(b"x")


def test_file_may_use_dataclasses_and_postponed_annotations(tmp_path: Path) -> None:
    file = tmp_path / "s.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from guests.service import Reply, Service\n"
        "@dataclass\nclass Item:\n    n: int = 3\n"
        "class S(Service):\n    def apply(self, request, context): return Reply(200, str(Item()))\n"
    )
    assert ask(load(str(file))(), encode_request("GET", "/")).body == b"Item(n=3)"


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "not 0"),
        (
            "from guests.service import Service\n"
            "class A(Service):\n    def apply(self, r, c): ...\nclass B(A): ...\n",
            "not 2",
        ),
        ("from guests.service import Service\nclass A(Service): ...\n", "must define the method"),
        ("def (", "cannot be imported: SyntaxError"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit"),
    ],
)
def test_invalid_file_is_an_error_that_names_the_problem(
    tmp_path: Path, source: str, message: str
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(source)
    with pytest.raises(ServiceError, match=message):
        load(str(file))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="give one of kv, static, or a Python file"):
        load(str(tmp_path / "absent.py"))
    (tmp_path / "service.txt").write_text("x")
    with pytest.raises(ServiceError, match=r"must end in \.py"):
        load(str(tmp_path / "service.txt"))
