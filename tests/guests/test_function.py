"""The function f: what it admits, that it does not change the service, what cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.answer import answer
from guests.function import Authentication, guarded, load_function, read_key, sign
from guests.protocol.function import REFUSAL
from guests.protocol.message import MessageError, Request, encode_request
from guests.service import Context, load
from tests.errors import raises

KEY = bytes(range(32))
CONTEXT = Context(1, 0, bytes(8), "test")
AUTH = Authentication(KEY)


def request(
    method: str = "PUT", target: str = "/kv/a", body: bytes = b"blue", *headers: tuple[str, str]
) -> Request:
    return Request.decode(encode_request(method, target, headers, body))


def test_signature_is_hmac_sha256_over_method_target_and_body() -> None:
    # printf 'PUT /kv/a\nblue' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0001...1f
    _, value = sign(KEY, "PUT", "/kv/a", b"blue")
    scheme, _, digest = value.partition(" ")
    assert scheme == "HMAC-SHA256"
    assert digest == "1ec9b4b624c4274af486272899019adedffa388d7d2f17ed2e9fbff99a9ce143"


def test_only_correctly_signed_requests_are_admitted() -> None:
    signed = sign(KEY, "PUT", "/kv/a", b"blue")
    assert AUTH.admits(request("PUT", "/kv/a", b"blue", signed))
    assert not AUTH.admits(request("PUT", "/kv/a", b"blue"))
    assert not AUTH.admits(request("POST", "/kv/a", b"blue", signed))
    assert not AUTH.admits(request("PUT", "/kv/b", b"blue", signed))
    assert not AUTH.admits(request("PUT", "/kv/a", b"blues", signed))
    assert not AUTH.admits(request("PUT", "/kv/a", b"blue", signed, signed))
    assert not AUTH.admits(request("PUT", "/kv/a", b"blue", ("authorization", "é")))
    assert not Authentication(KEY[1:]).admits(request("PUT", "/kv/a", b"blue", signed))


@pytest.mark.parametrize(
    ("scheme", "admitted"),
    [("hmac-sha256 ", True), ("Hmac-Sha256   ", True), ("HMAC-SHA256", False), ("Bearer ", False),
     ("HMAC-SHA256 HMAC-SHA256 ", False), ("", False), ("HMAC-SHA256\t", False)],
)  # fmt: skip
def test_scheme_is_admitted_in_any_case_with_any_spaces(scheme: str, admitted: bool) -> None:
    name, value = sign(KEY, "PUT", "/kv/a", b"blue")
    digest = value.partition(" ")[2]
    for text in (digest, digest.upper()):
        signed = (name, f"{scheme}{text}")
        assert AUTH.admits(request("PUT", "/kv/a", b"blue", signed)) is admitted


def test_invalid_target_is_refused_when_it_is_signed() -> None:
    header = sign(KEY, "GET", "/\udcff")  # what a shell's argument that is not UTF-8 becomes
    with pytest.raises(MessageError, match="percent-encoded"):
        encode_request("GET", "/\udcff", [header])


def test_malformed_headers_contain_no_signature() -> None:
    assert not AUTH.admits(Request("GET", "/", b"", b"no header at all"))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_signatures_of_different_bodies_differ(one: bytes, two: bytes) -> None:
    assert (sign(KEY, "PUT", "/", one) == sign(KEY, "PUT", "/", two)) == (one == two)


def test_refused_request_does_not_reach_the_service() -> None:
    plain, kind = load("kv"), guarded(load("kv"), AUTH)
    assert (kind.name, kind.state_format) == (plain.name, plain.state_format)
    service, bare = kind(), plain()
    unsigned = encode_request("PUT", "/kv/a", (), b"blue")
    signed = encode_request("PUT", "/kv/a", (sign(KEY, "PUT", "/kv/a", b"blue"),), b"blue")
    assert answer(service, unsigned, CONTEXT) == REFUSAL
    assert service.digest() == bare.digest()
    assert answer(service, signed, CONTEXT) == answer(bare, unsigned, CONTEXT)
    assert b"".join(service.snapshot()) == b"".join(bare.snapshot())
    again = kind()
    again.restore(b"".join(bare.snapshot()))
    assert again.digest() == bare.digest()


def test_function_is_loaded_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text(
        "from guests.function import Function\n"
        "class Reads(Function):\n"
        "    def admits(self, request):\n"
        "        return request.method == 'GET'\n"
    )
    function = load_function(str(path), KEY)
    assert function.key == KEY
    assert function.admits(request("GET", "/", b""))
    assert not function.admits(request())


def test_invalid_function_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("from guests.function import Function\nclass A(Function): ...\n")
    with raises("TV0403", match="the method admits"):
        load_function(str(path), KEY)
    with raises("TV0401", match="no function 'hmac': give one of hmac-sha256"):
        load_function("hmac", KEY)


@pytest.mark.parametrize(
    ("text", "message"),
    [("zz", "not hexadecimal"), ("00" * 15, "15 bytes"), ("é", "not hexadecimal")],
)
def test_invalid_key_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with raises("TV0406", match=message):
        read_key(path)
    path.write_text(KEY.hex() + "\n")
    assert read_key(path) == KEY
    with raises("TV0406", match="cannot be read"):
        read_key(tmp_path / "none")
