"""Limits on each client: requests under way, requests a second, connections."""

from __future__ import annotations

import asyncio

import pytest

from tests.voter.conftest import Nodes
from tests.voter.node import configure
from tests.waiting import until
from voter import client_limits
from voter.address import connect
from voter.client import Client
from voter.client.errors import ConnectionFailed, Overload
from voter.core.events import Fail
from voter.daemon import runner_class
from voter.runner import Clock, Result, SessionResult


async def test_client_over_its_rate_waits_and_others_do_not(nodes: Nodes) -> None:
    node = await nodes.make("[clients]\nrate = 0.001\nburst = 5")
    async with await node.open() as client:
        assert [(await client.ask("GET", "/kv/a")).status for _ in range(5)] == [404] * 5
        refused = await client.ask("PUT", "/kv/a", b"1")
        assert (refused.status, refused.problem) == (503, "overload")
        assert 900 <= int(refused.headers["retry-after"]) <= 1000
    before = node.runner.counters["requests"]
    assert (await node.ask("GET", "/kv/a")).status == 503, "a new connection is the same client"
    assert node.runner.counters["requests"] == before
    async with await node.client() as other:
        assert (await other.request("GET", "/kv/a")).status == 404


class Alone:
    """A runner with limits and without replicas, at a time that the test sets."""

    def __init__(self, more: str) -> None:
        self.now = 1000.0
        config = configure(["unix:/nowhere"], more, vote="1/1")
        clock = Clock(lambda: self.now, lambda: 10**18)
        self.runner = runner_class(config)(config, clock, connect, lambda: 1)
        self.results: list[Result | SessionResult] = []

    def refused(self, caller: bytes) -> bool:
        """Submit a request; return whether its client is over a limit."""
        self.results.clear()
        self.runner.submit(b"", caller, True, self.results.append)
        return any(isinstance(each, Fail) and each.failure == "overload" for each in self.results)


async def test_rate_is_an_average_and_a_burst_is_bounded() -> None:
    alone = Alone("[clients]\nrate = 10\nburst = 2")
    taken = 0
    for _ in range(100):  # 10 s in steps of 0.1 s
        alone.now += 0.1
        taken += sum(not alone.refused(b"greedy") for _ in range(3))
    assert 100 <= taken <= 102
    assert not alone.refused(b"modest")
    alone.now += 3600
    assert [alone.refused(b"greedy") for _ in range(3)] == [False, False, True]


async def test_session_counts_as_a_request() -> None:
    alone = Alone("[clients]\nrate = 0.1\nburst = 3")
    for _ in range(4):
        alone.runner.open_session(b"greedy", alone.results.append)
    assert [type(each) for each in alone.results].count(Fail) == 1


async def test_requests_under_way_are_limited_for_each_client(nodes: Nodes) -> None:
    """A greedy client gets as many as are allowed, and a modest one is served."""
    node = await nodes.make("[clients]\nin_flight = 3")
    for agent in node.agents:
        agent.mode = "waits"
    async with await node.client() as greedy, await node.open() as modest:
        asked = [asyncio.ensure_future(greedy.request("GET", "/kv/a")) for _ in range(10)]
        await until(lambda: sum(each.done() for each in asked) == 7)
        assert {type(each.exception()) for each in asked if each.done()} == {Overload}
        waiting = asyncio.ensure_future(modest.ask("GET", "/kv/a"))
        await until(lambda: node.runner.waiting == 4)
        open_ones = [each for each in asked if not each.done()]
        for agent in node.agents:
            agent.release_answers()
        assert (await waiting).status == 404
        assert [(await each).status for each in open_ones] == [404] * 3
        assert (await greedy.request("GET", "/kv/a")).status == 404


async def test_lost_connection_frees_its_requests(nodes: Nodes) -> None:
    node = await nodes.make("[clients]\nin_flight = 1")
    for agent in node.agents:
        agent.mode = "waits"
    client = await node.open()
    await client.send(b"GET /kv/a HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: node.runner.waiting == 1)
    client.reset()
    await until(lambda: node.runner.waiting == 0)
    for agent in node.agents:
        agent.release_answers()
    assert (await node.ask("GET", "/kv/a")).status == 404


async def test_connections_from_one_address_are_limited(nodes: Nodes) -> None:
    node = await nodes.make("[clients]\nconnections = 2")
    async with await node.open() as first, await node.open() as second:
        for client in (first, second):
            assert (await client.ask("GET", "/livez")).status == 200
        async with await node.open() as third:
            refused = await third.read()
            assert (refused.status, refused.problem) == (503, "overload")
        address = f"tcp:127.0.0.1:{node.native_port}"
        async with await Client.connect(address, retry=False), await Client.connect(address):
            with pytest.raises((Overload, ConnectionFailed)):
                await Client.connect(address, retry=False)
    await until(lambda: not node.http.origins)
    assert (await node.ask("GET", "/livez")).status == 200


async def test_remembered_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "MOST", 10)
    alone = Alone("[clients]\nrate = 0.1\nburst = 1")
    assert isinstance(alone.runner, client_limits.LimitingRunner)
    for number in range(100):
        assert not alone.refused(b"%d" % number)
        await asyncio.sleep(0)  # the engine refuses it: there is no replica
        assert alone.runner.remembered <= 10
    assert alone.refused(b"99")
    assert not alone.refused(b"1"), "the client seen least recently was not forgotten"
