"""Idempotency-Key: how it is parsed, and its effect through the vote of three local processes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.protocol.message import MessageError
from tests.voter.conftest import Nodes
from tests.voter.http_client import HttpClient, Response
from tests.voter.node import Node
from tests.waiting import until
from voter.frontend.idempotency import LONGEST_KEY, find_key, once_of
from voter.frontend.request import HttpRequest

KEYS = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=LONGEST_KEY)


def quote(key: bytes) -> bytes:
    return b'"%b"' % key.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


# ------------------------------------------------------------- how it is read


@given(KEYS.map(str.encode), st.sampled_from([b"Idempotency-Key", b"idempotency-key"]))
def test_quoted_and_bare_are_the_same_key(key: bytes, name: bytes) -> None:
    others = [(b"host", b"x"), (b"x-idempotency-key", b"y")]
    assert find_key([*others, (name, b" %b\t" % quote(key))]) == key
    if not key.startswith(b'"'):
        assert find_key([(name, key), *others]) == key
    assert find_key(others) is None


@pytest.mark.parametrize(
    "value",
    [b"", b'""', b'"', b'"open', b'"a"b"', b'"a";p=1', b"a b", b'"a b"', b"\xc3\xa4", b"a\x01",
     b'"a\\n"', b"x" * (LONGEST_KEY + 1), b'"' + b"x" * (LONGEST_KEY + 1) + b'"'],
)  # fmt: skip
def test_malformed_key_is_refused(value: bytes) -> None:
    with pytest.raises(MessageError, match="visible ASCII"):
        find_key([(b"Idempotency-Key", value)])


def test_two_keys_are_none() -> None:
    with pytest.raises(MessageError, match="more than one"):
        find_key([(b"Idempotency-Key", b"a"), (b"idempotency-key", b"a")])


def request_of(
    method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> HttpRequest:
    return HttpRequest(method, target, None, headers, keep_alive=True, old=False, body=body)


@given(st.data())
def test_a_fingerprint_is_of_method_target_conditions_and_body(data: st.DataObject) -> None:
    headers = [(b"if-match", b'"1"'), (b"if-match", b'"2"'), (b"content-type", b"a/b")]
    parts = st.tuples(
        st.sampled_from(["PUT", "POST"]), st.sampled_from(["/", "/a", "/a%0A"]),
        st.sampled_from([[], *([header] for header in headers), headers[1:]]),
        st.sampled_from([b"", b"\n", b'if-match: "1"\n\n', b'if-match: "1"\n']),
    )  # fmt: skip
    one, other = data.draw(parts), data.draw(parts)
    first, second = (once_of(b"k", b"me", request_of(*some)) for some in (one, other))
    assert (first == second) == (one == other)
    assert (first.scope, first.key, len(first.fingerprint)) == (b"kme", b"k", 16)


def test_what_may_differ_in_a_retry_is_not_in_the_fingerprint() -> None:
    once = [
        once_of(b"k", b"me", request_of("PUT", "/", [(b"if-match", b"*"), header], b""))
        for header in ((b"user-agent", b"a"), (b"authorization", b"b"), (b"traceparent", b"c"))
    ]
    assert once[0] == once[1] == once[2]


# ------------------------------------------------------------- what it does


async def add(client: HttpClient, key: str, target: str = "/kv/n?increment=1") -> Response:
    return await client.ask("POST", target, b"", ("Idempotency-Key", key))


def sequence_number(response: Response) -> str:
    return response.headers["trivisor-vote"].rpartition("seq=")[2]


async def test_retry_gets_the_same_reply_and_a_header(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.open() as client, await node.open() as other:
        first = await add(client, "one")
        assert (first.status, first.body) == (200, b"1")
        assert "idempotency-replayed" not in first.headers
        assert first.headers["trivisor-vote"].startswith(("2/3", "3/3"))
        again = await add(other, '"one"')
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["trivisor-vote"] == f"replayed; seq={sequence_number(first)}"
        outside = {"idempotency-replayed", "trivisor-vote", "x-request-id", "date"}
        assert {k: v for k, v in again.headers.items() if k not in outside} == {
            k: v for k, v in first.headers.items() if k not in outside
        }
        assert (again.status, again.body) == (200, b"1")
        assert (await add(client, "two")).body == b"2"
        assert (await client.ask("POST", "/kv/n?increment=1")).body == b"3"
        assert (await client.ask("POST", "/kv/n?increment=1")).body == b"4"


async def test_a_refusal_of_the_services_is_a_reply_too(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.open() as client:
        assert (await client.ask("PUT", "/kv/word", b"x")).status == 201
        assert (await add(client, "k", "/kv/word?increment=1")).status == 409
        assert (await client.ask("PUT", "/kv/word", b"1")).status == 204
        assert (await add(client, "k", "/kv/word?increment=1")).status == 409


async def test_a_corrected_condition_is_another_request_and_needs_another_key(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    async with await node.open() as client:

        async def put(key: str, tag: str) -> Response:
            headers = (("Idempotency-Key", key), ("If-Match", tag))
            return await client.ask("PUT", "/kv/a", b"2", *headers)

        tag = (await client.ask("PUT", "/kv/a", b"1")).headers["etag"]
        assert (await put("one", '"0"')).status == 412
        corrected = await put("one", tag)
        assert (corrected.status, corrected.problem) == (422, "key-reused")
        again = await put("one", '"0"')
        assert (again.status, again.headers["idempotency-replayed"]) == (412, "true")
        assert (await client.ask("GET", "/kv/a")).body == b"1"
        assert (await put("two", tag)).status == 204
        assert (await put("two", tag)).headers["idempotency-replayed"] == "true"
        assert (await client.ask("GET", "/kv/a")).body == b"2"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/kv/n?increment=1", b""),
        ("POST", "/kv/n?increment=2", b""),
        ("POST", "/kv/n?increment=1", b"x"),
        ("DELETE", "/kv/n?increment=1", b""),
    ],
)
async def test_a_key_used_for_another_request(
    nodes: Nodes, method: str, target: str, body: bytes
) -> None:
    node = await nodes.make()
    async with await node.open() as client:
        first = await add(client, "k")
        other = await client.ask(method, target, body, ("Idempotency-Key", "k"))
        assert (other.status, other.problem) == (422, "key-reused")
        again = await add(client, "k")
        assert (again.body, sequence_number(again)) == (b"1", sequence_number(first))


async def test_it_means_nothing_where_nothing_is_changed(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await node.open() as client:
        for method in ("GET", "HEAD", "OPTIONS"):
            one, two = [
                await client.ask(method, "/kv/x", b"", ("Idempotency-Key", key))
                for key in ("k", "not a key")
            ]
            assert sequence_number(one) != sequence_number(two)
            assert one.status == two.status
        assert (await client.ask("GET", "/livez", b"", ("Idempotency-Key", ""))).status == 200


async def test_bad_keys_are_refused_and_nothing_is_ordered(nodes: Nodes) -> None:
    node = await nodes.make()
    for headers in ([""], ["a b"], ["k" * 256], ["k", "k"]):
        pairs = [("Idempotency-Key", value) for value in headers]
        response = await node.ask("POST", "/kv/n?increment=1", b"", *pairs)
        assert (response.status, response.problem) == (400, "bad-request")
    assert node.runner.counters["requests"] == 0


async def test_retry_waits_for_the_request_under_way(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "waits"
    async with await node.open() as first, await node.open() as second:
        one = asyncio.create_task(add(first, "k"))
        await until(lambda: node.runner.waiting == 1)
        two = asyncio.create_task(add(second, "k"))
        await until(lambda: node.runner.waiting == 2)
        changed = await node.ask("PUT", "/kv/n", b"1", ("Idempotency-Key", "k"))
        assert changed.status == 422
        for agent in node.agents:
            agent.release_answers()
        replies = await one, await two
    assert [response.body for response in replies] == [b"1", b"1"]
    assert sequence_number(replies[0]) == sequence_number(replies[1])
    assert "idempotency-replayed" not in replies[1].headers
    await until(lambda: [agent.orders for agent in node.agents] == [1, 1, 1])


async def test_client_that_disconnected_gets_the_reply_by_retry(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents:
        agent.mode = "waits"
    async with await node.open() as client:
        call = asyncio.create_task(add(client, "k"))
        await until(lambda: node.runner.waiting == 1)
        client.reset()
        await until(lambda: node.runner.waiting == 0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await call
    for agent in node.agents:
        agent.release_answers()
    async with await node.open() as client:
        assert (await add(client, "k")).body == b"1"
    await until(lambda: [agent.orders for agent in node.agents] == [1, 1, 1])


async def test_a_timeout_is_no_end(nodes: Nodes) -> None:
    node = await nodes.make("[timing]\nrequest = 0.2\n")
    for agent in node.agents:
        agent.mode = "waits"
    async with await node.open() as client:
        for _ in range(2):
            late = await add(client, "k")
            assert (late.status, late.problem) == (504, "timeout")
        for agent in node.agents:
            agent.release_answers()
        assert (await add(client, "k")).body == b"1"
    await until(lambda: [agent.orders for agent in node.agents] == [1, 1, 1])


async def test_too_many_keys_are_refused_before_they_are_ordered(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\nkeys = 8\n")
    async with await node.open() as client:
        for number in range(2):
            assert (await add(client, f"k{number}")).status == 200
        crowded = await add(client, "k2")
        assert (crowded.status, crowded.problem) == (503, "overload")
        assert 86_000 < int(crowded.headers["retry-after"]) <= 86_400, "when the first one expires"
        assert (await add(client, "k1")).body == b"2"
        assert (await client.ask("POST", "/kv/n?increment=1")).body == b"3"


async def test_reply_too_large_to_keep_expires_and_is_not_executed_again(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\ntable_bytes = 150\n")
    async with await node.open() as client:
        assert (await add(client, "k")).body == b"1"
        gone = await add(client, "k")
        assert (gone.status, gone.problem) == (410, "session-expired")
    await until(lambda: [agent.orders for agent in node.agents] == [1, 1, 1])


async def test_a_key_is_free_when_its_time_is_over(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\nkey_retention = 0.2\n")
    async with await node.open() as client:
        assert (await add(client, "k")).body == b"1"
        async with asyncio.timeout(5):
            while (body := (await add(client, "k")).body) == b"1":
                pass
        assert body == b"2"


async def test_the_service_gets_the_header_once_as_it_came(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node: Node = await nodes.make()
    seen = []
    submit = node.runner.submit

    def note(request: bytes, *rest: object) -> int:
        seen.append(request)
        return submit(request, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(node.runner, "submit", note)
    await node.ask("POST", "/kv/n?increment=1", b"", ("Idempotency-Key", '"k"'))
    assert b'\r\nidempotency-key: "k"\r\n' in seen[0]
