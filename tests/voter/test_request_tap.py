"""The tap on ordered requests: what its readers get, and that a slow one costs only itself."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from guests.protocol.message import Request
from tests.voter.conftest import Nodes
from tests.voter.http_client import HttpClient
from tests.voter.node import Node
from tests.waiting import until
from voter import request_tap


@asynccontextmanager
async def reading(node: Node) -> AsyncIterator[HttpClient]:
    """A reader of the tap, which has begun."""
    async with await HttpClient.open_unix(node.control_path) as client:
        await client.send(b"GET /requests HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.read()).headers["content-type"] == "application/x-ndjson"
        yield client


async def line(client: HttpClient) -> dict[str, Any]:
    async with asyncio.timeout(30):
        found: dict[str, Any] = json.loads(await client.reader.readline())
    return found


async def test_reader_gets_each_request_with_its_number_and_caller(nodes: Nodes) -> None:
    node = await nodes.make()
    async with reading(node) as first, reading(node) as second:
        answers = [
            await node.ask("PUT", "/kv/a%20b", b"1"), await node.ask("GET", "/kv/a%20b")
        ]  # fmt: skip
        for client in (first, second):
            found = [await line(client) for _ in answers]
            assert [each["read_only"] for each in found] == [False, True]
            assert {each["caller"] for each in found} == {"http:127.0.0.1"}
            assert [each["seq"] for each in found] == [found[0]["seq"], found[0]["seq"] + 1]
            request = Request.decode(base64.b64decode(found[0]["request"]))
            assert (request.method, request.path_bytes, request.body) == ("PUT", b"/kv/a b", b"1")


async def test_requests_of_a_batch_come_as_single_lines(nodes: Nodes) -> None:
    node = await nodes.make()
    async with reading(node) as reader, await node.client() as client:
        await asyncio.gather(*(client.request("PUT", f"/kv/{n}", b"x") for n in range(100)))
        found = [await line(reader) for _ in range(100)]
    assert len({each["seq"] for each in found}) == 100


async def test_nothing_is_recorded_without_a_reader(nodes: Nodes) -> None:
    node = await nodes.make()

    def taps() -> bool:
        return node.runner.tracer.tap is not None

    assert not taps()
    async with reading(node), reading(node):
        assert taps()
    await until(lambda: not taps(), "the last reader's tap is removed")
    assert (await node.ask("PUT", "/kv/a", b"1")).status == 201


async def test_reader_that_is_behind_learns_what_it_missed_and_delays_nobody(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_tap, "QUEUED_BYTES", 1 << 20)
    node = await nodes.make()
    async with reading(node) as reader:
        count, body = 40, bytes(500_000)
        for _ in range(count):  # far more than its queue and the sockets' buffers hold
            assert (await node.ask("PUT", "/kv/a", body)).status in (200, 201, 204)
        seen, missed = 0, 0
        while seen + missed < count:
            found = await line(reader)
            if "missed" in found:
                missed += found["missed"]
                assert found["last"] - found["first"] + 1 >= found["missed"]
            else:
                seen += 1
        assert seen
        assert missed
        await node.ask("PUT", "/kv/b", b"after")
        request = Request.decode(base64.b64decode((await line(reader))["request"]))
        assert request.body == b"after"
