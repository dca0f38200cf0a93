"""The runner and its links, with agents in this process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from guests.protocol import wire
from guests.protocol.message import Reply, Request, encode_request
from guests.service import Context
from guests.services.kv import KeyValue
from tests.errors import raises
from tests.voter.conftest import Nodes
from tests.voter.node import Node, configure
from tests.waiting import until
from voter.address import connect
from voter.client.errors import OutcomeUnknown
from voter.config import parse
from voter.core import events as ev
from voter.core.entries import RoleChange
from voter.core.events import Fail, Failure, Release
from voter.core.resume import Past
from voter.errors import ConfigError
from voter.journal import Directory, Journal, open_journal
from voter.runner import LARGEST, Clock, Result, Runner

PUT = encode_request("PUT", "/kv/a", [], b"1")


def submit(node: Node, request: bytes, caller: bytes = b"test") -> list[Result]:
    """Submit a write; return the list that gets its result."""
    results: list[Result] = []
    node.runner.submit(request, caller, False, results.append)
    return results


async def test_journal_whose_voters_are_not_configured_is_refused(scratch: Path) -> None:
    entry = RoleChange(9, 1, {"g1": "voter", "g2": "retired", "g3": "voter", "g4": "voter"}, "")
    async with open_runner(scratch) as (runner, journal):
        with raises("TV0240", match="the journal says that g4 votes"):
            runner.begin(journal, Past(entries=[entry]), None)


@asynccontextmanager
async def open_runner(directory: Path) -> AsyncIterator[tuple[Runner, Journal]]:
    """Give a runner before three replicas that is not running, and an empty journal."""
    clock = Clock(time.monotonic, time.time_ns)
    config = configure(["unix:/nowhere"] * 3)
    journal, _ = await open_journal(
        Directory(directory / "journal"),
        node="n",
        vote="2/3",
        durability="fsync",
        segment_size=8 << 20,
        random64=lambda: secrets.randbits(64),
        on_synced=lambda _: None,
        on_full=lambda full, reason: None,
    )
    try:
        yield Runner(config, clock, connect, lambda: secrets.randbits(64), secret=b"s"), journal
    finally:
        await journal.close()


async def test_pipelined_requests_are_ordered_and_checkpointed(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\nmarker_every = 50\ncheckpoint_bytes = 1000\n")
    async with await node.client() as client:
        calls = [client.request("POST", "/kv/n?increment=1") for _ in range(500)]
        bodies = [answer.body for answer in await asyncio.gather(*calls)]
    assert bodies == [b"%d" % (number + 1) for number in range(500)]
    # The state is fetched while requests are served.
    await until(lambda: node.runner.counters["checkpoints"] > 0)
    assert len(node.runner.engine.log) < 500


async def test_a_record_has_the_time_and_the_caller(nodes: Nodes) -> None:
    node = await nodes.make()
    before = time.time_ns()
    submit(node, PUT)
    await until(lambda: bool(node.runner.engine.log))
    record = node.runner.engine.log.after(0, 1)[0].record
    assert (before - 10**9 < record.time_ns <= time.time_ns(), record.caller) == (True, b"test")


async def test_a_restarted_service_catches_up_from_checkpoint_and_log(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\nmarker_every = 20\ncheckpoint_bytes = 1000\n")
    async with await node.client() as client:
        for number in range(100):
            await client.request("PUT", f"/kv/{number}", b"x" * 100)
        await until(lambda: node.runner.counters["checkpoints"] >= 1)
        node.agents[1].restart()
        for number in range(50):
            answer = await client.request("PUT", "/kv/during", b"%d" % number)
            assert answer.vote.agreed >= 2
    await node.until_status("ready")

    def states() -> set[bytes]:
        return {b"".join(agent.incarnation._service.snapshot()) for agent in node.agents}

    await until(lambda: len(states()) == 1)


async def test_a_follower_gets_what_is_held_although_nothing_else_happens(nodes: Nodes) -> None:
    node = await nodes.make('follow = "on"\n')
    for number in range(3):
        answered = submit(node, encode_request("PUT", "/kv/a", [], b"%d" % number))
        await until(lambda: bool(answered))  # noqa: B023 - of this round
        assert isinstance(answered[0], Release) and answered[0].agreed >= 2
        orders = number + 1
        await until(lambda: [agent.orders for agent in node.agents] == [orders] * 3)  # noqa: B023


async def test_followers_get_what_is_held_when_a_replica_ahead_falls_silent(nodes: Nodes) -> None:
    node = await nodes.make('follow = "on"\n')
    ahead = node.runner.engine.followers.ahead[0]
    node.agents[ahead].mode = "says nothing"
    answered = submit(node, PUT)
    await until(lambda: bool(answered))
    assert isinstance(answered[0], Release) and answered[0].agreed == 2


async def test_an_idle_node_stays_ready(nodes: Nodes) -> None:
    node = await nodes.make("[limits]\nhang = 0.3\nping = 0.05\n")
    await asyncio.sleep(0.8)
    assert node.runner.engine.status == "ready"
    assert node.runner.engine.members.incarnations_ended == 0


class Mortal(KeyValue):
    """A service that one request kills."""

    def apply(self, request: Request, context: Context) -> Reply:
        if request.target == "/kv/fatal":
            raise SystemExit(1)
        return super().apply(request, context)


async def test_a_request_that_kills_the_service_is_voided(nodes: Nodes) -> None:
    node = await nodes.make(services=dict.fromkeys(range(3), Mortal))
    async with await node.client() as client:
        await client.request("PUT", "/kv/a", b"1")
        calls = [client.request("PUT", f"/kv/{key}", b"x") for key in ("b", "fatal", "c")]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[1], OutcomeUnknown)
        await node.until_status("ready")
        assert node.runner.counters["voided"] == 1
        for key, status in (("a", 200), ("b", 200), ("c", 200), ("fatal2", 404)):
            assert (await client.request("GET", f"/kv/{key}")).status == status


async def test_too_large_request_is_refused_before_it_is_ordered(
    nodes: Nodes,
) -> None:
    node = await nodes.make()
    seq = node.runner.engine.log.seq
    for request, caller in ((LARGEST + 1, 0), (LARGEST, 1), (0, 70_000)):
        (result,) = submit(node, bytes(request), bytes(caller))
        assert isinstance(result, Fail) and result.failure == Failure.TOO_LARGE
    assert node.runner.engine.log.seq == seq
    fits = submit(node, bytes(LARGEST), b"")
    await until(lambda: fits)
    assert isinstance(fits[0], Release)
    assert node.runner.engine.status == "ready"


def test_the_wire_holds_the_largest_request() -> None:
    payload = wire.encode_order(0, bytes(8), bytes(8), b"", bytes(LARGEST))
    assert len(payload) == wire.MAX_PAYLOAD


# ------------------------------------------------------------ who may take part


class Other(KeyValue):
    name = "other"


class Later(KeyValue):
    state_format = 2


async def test_a_service_that_is_not_the_configured_one_is_not_used(nodes: Nodes) -> None:
    node = await nodes.make('service = "kv"\n')
    node.agents[0].service = Other
    node.agents[0].restart()
    problem = "it runs service 'other', the configuration says 'kv'"
    await until(lambda: node.runner.links[0].problem == problem)
    assert node.runner.engine.status == "degraded"


@pytest.mark.parametrize("service", [Other, Later])
@pytest.mark.parametrize("odd", range(3))
async def test_a_replica_with_another_service_than_the_others_is_not_used(
    nodes: Nodes, odd: int, service: type[KeyValue]
) -> None:
    """Even if it connects first: it must not lock out the two others."""
    node = await nodes.make(ready=False, services={odd: service})
    honest = [node.runner.names[index] for index in range(3) if index != odd]
    await until(lambda: {node.state(name) for name in honest} == {"active"})
    assert (await node.ask("PUT", "/kv/a", b"1")).status == 201
    node.agents[odd].restart()  # one that connected first is rejected at its next handshake
    await until(lambda: "the others" in node.runner.links[odd].problem)


def test_an_address_that_cannot_be_used_is_an_error_at_the_start() -> None:
    text = "".join(f'[[replica]]\nname = "g{n}"\nlink = "tcp:nowhere"\n' for n in (1, 2, 3))
    with pytest.raises(ConfigError, match="nowhere"):
        parse(text)


async def test_an_observer_that_always_dissents_does_not_fill_the_log(nodes: Nodes) -> None:
    node = await nodes.make(vote="1/3")
    node.agents[2].mode = "lies"
    async with await node.client() as client:
        for number in range(100):
            await client.request("PUT", "/kv/a", b"%d" % number)
    await until(lambda: node.runner.counters["dissents"] > 50)
    assert len([i for i in node.runner.reports.incidents.kept if i.reason == "dissent"]) < 10


# ---------------------------------------------------------------- effects


async def test_a_front_end_that_fails_costs_its_own_client_only(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    node = await nodes.make()

    def broken(result: Result) -> None:
        raise ZeroDivisionError("a defect of a front end")

    node.runner.submit(PUT, b"test", False, broken)
    assert (await node.ask("GET", "/kv/a")).body == b"1"
    assert {node.state(name) for name in node.runner.names} == {"active"}
    assert "a front end failed" in caplog.text
    codes = [getattr(each, "fields", {}).get("error_code") for each in caplog.records]
    assert "TV0226" in codes


async def test_an_event_that_arises_from_an_effect_waits_for_all_effects(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a later order could be sent first."""
    node = await nodes.make()
    runner, depth, deepest = node.runner, 0, 0

    def watch(feed: object, event: ev.Event) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        feed(event)  # type: ignore[operator]
        depth -= 1

    monkeypatch.setattr(runner, "_feed", partial(watch, runner._feed))
    results: list[Result] = []

    def again(result: Result) -> None:
        results.append(result)
        runner.submit(PUT, b"test", False, results.append)

    runner.submit(PUT, b"test", False, again)
    await until(lambda: len(results) == 2)
    assert deepest == 1
