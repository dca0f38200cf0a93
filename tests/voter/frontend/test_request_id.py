"""Ids of HTTP requests: which of a client's are taken, and that a reply always has one."""

from __future__ import annotations

import pytest

from tests.voter.conftest import Nodes
from voter.frontend.request_id import find_ids

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00-%b-00f067aa0ba902b7-01" % TRACE


@pytest.mark.parametrize(
    ("headers", "ids"),
    [
        ([], ()),
        ([(b"x-request-id", b"a")], ("a",)),
        ([(b"x-request-id", b"A.z_9~:+=@-")], ("A.z_9~:+=@-",)),
        ([(b"x-request-id", b"x" * 128)], ("x" * 128,)),
        ([(b"traceparent", PARENT)], (TRACE.decode(),)),
        ([(b"traceparent", b"01" + PARENT[2:] + b"-later")], (TRACE.decode(),)),
        ([(b"traceparent", PARENT), (b"x-request-id", b"mine")], ("mine", TRACE.decode())),
    ],
)
def test_ids_of_a_client_are_taken(
    headers: list[tuple[bytes, bytes]], ids: tuple[str, ...]
) -> None:
    assert find_ids(headers) == ids


@pytest.mark.parametrize(
    "header",
    [
        (b"x-request-id", b""),
        (b"x-request-id", b"x" * 129),
        (b"x-request-id", b"1042"),
        (b"x-request-id", b"a b"),
        (b"x-request-id", b"a\n"),
        (b"x-request-id", b"a/b"),
        (b"x-request-id", "\u00e9".encode()),
        (b"x-request-id", b"\x00\xff"),
        (b"traceparent", PARENT + b"-more"),
        (b"traceparent", b"ff" + PARENT[2:]),
        (b"traceparent", PARENT.replace(TRACE, b"0" * 32)),
        (b"traceparent", PARENT.upper()),
        (b"traceparent", PARENT[:-1]),
        (b"traceparent", b"01" + PARENT[2:] + b"more"),
    ],
)
def test_malformed_ids_are_ignored(header: tuple[bytes, bytes]) -> None:
    assert find_ids([header]) == ()


def test_two_headers_of_one_name_are_ignored() -> None:
    assert find_ids([(b"x-request-id", b"a"), (b"x-request-id", b"b")]) == ()


async def test_request_without_a_usable_id_gets_one_and_is_executed(nodes: Nodes) -> None:
    node = await nodes.make()
    seen = set()
    for header in ((), (("x-request-id", "7"),), (("x-request-id", "a b"),)):
        response = await node.ask("PUT", "/kv/a", b"1", *header)
        assert response.status < 300
        name = response.headers["x-request-id"]
        assert node.runner.trace(name)["ids"] == (name,)
        seen.add(name)
    assert len(seen) == 3
