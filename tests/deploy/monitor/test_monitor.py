"""The monitor on a node with a real voter, whose guests are processes: each of its actions."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.monitor.control import call
from deploy.monitor.monitor import Monitor, check_node
from deploy.monitor.rule_file import parse_rules
from deploy.node.halt import HaltRecord, check_not_halted, halt
from deploy.node.records import Layout
from tests.deploy.supervisor.running import Running, plan
from tests.errors import logs, raises
from tests.voter.http_client import HttpClient
from tests.waiting import until
from voter.client import Client
from voter.client.errors import NotExecuted


@pytest_asyncio.fixture
async def node(scratch: Path) -> AsyncIterator[Running]:
    """Give a node of three that is up, without a fault proxy."""
    running = Running(plan(scratch / "n", allow_faults=False))
    await running.start_ready()
    yield running
    await running.stop()


class Watched:
    """A monitor that runs, and what it reports."""

    def __init__(self, node: Running, rules: str, delay: float = 0.0) -> None:
        self.reports: list[dict[str, Any]] = []
        self.monitor = Monitor(
            node.layout,
            parse_rules(rules, "rules.toml"),
            report=self.reports.append,
            inline=node.layout.monitor_socket,
            delay=delay,
        )

    def outcomes(self, rule: str) -> list[str]:
        return [each["outcome"] for each in self.reports if each.get("rule") == rule]


@asynccontextmanager
async def watching(node: Running, rules: str, delay: float = 0.0) -> AsyncIterator[Watched]:
    watched = Watched(node, rules, delay)
    task = asyncio.create_task(watched.monitor.run())
    try:
        await until(lambda: watched.monitor.reading.is_set() or task.done(), "the monitor reads")
        assert not task.done(), task
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def rule(action: str, pattern: str = "attack", more: str = "") -> str:
    return f'[[request]]\nname = "{action}"\nbody = "{pattern}"\naction = "{action}"\n{more}\n'


async def put(node: Running, key: str, value: str) -> int:
    """Send a write over HTTP; return its status, 0 if the connection is closed instead."""
    host, port = (await node.status())["http"].split(":")
    assert host
    try:
        async with await HttpClient.open(int(port)) as client:
            return (await client.ask("PUT", f"/kv/{key}", value.encode())).status
    except (OSError, EOFError):
        return 0


async def test_alert_is_reported_and_is_in_the_events(node: Running) -> None:
    async with watching(node, rule("alert")) as watched:
        assert await put(node, "a", "harmless") == 201
        assert await put(node, "b", "an attack") == 201
        await until(lambda: node.events("rule matched"))
    (event,) = node.events("rule matched")
    assert event["caller"] == "http:127.0.0.1"
    assert event["detail"] == "PUT /kv/b"
    (report,) = watched.reports
    assert (report["rule"], report["outcome"], report["seq"]) == ("alert", "alert", event["seq"])


async def test_block_closes_the_door_to_the_client_and_outlives_the_voter(node: Running) -> None:
    async with watching(node, rule("block", more="block_for = 3600")) as watched:
        await put(node, "b", "an attack")
        await until(lambda: watched.outcomes("block"))
        assert await put(node, "a", "harmless") == 403
        recorded = json.loads(node.layout.blocked.read_bytes())
        assert recorded["http:127.0.0.1"]["rule"] == "block"
        os.kill(await node.voter_pid(), signal.SIGKILL)

        async def blocked_again() -> bool:
            return await put(node, "a", "harmless") == 403

        await until(blocked_again, "the next voter blocks it too")
        assert await watched.monitor.blocked.unblock("http:127.0.0.1")
        assert await put(node, "a", "harmless") in (201, 204)
        assert not await watched.monitor.blocked.unblock("http:127.0.0.1")


async def test_crash_ends_voter_and_node_and_it_stays_down(node: Running) -> None:
    async with watching(node, rule("crash")) as watched:
        async with await node.client() as client:
            await client.request("PUT", "/kv/a", b"kept")
        await put(node, "b", "an attack")
        await until(node.done, "the supervisor has taken the node down")
        await until(watched.monitor.responder.told.is_set)
    assert watched.outcomes("crash") == ["stopped the node"]
    with raises("TV0785", "rule crash: PUT /kv/b"):
        check_not_halted(node.layout)
    node.layout.halted.write_text("{}")
    with raises("TV0785", "cannot be read"):
        check_not_halted(node.layout)
    node.layout.halted.unlink()
    check_not_halted(node.layout)


async def test_halted_node_starts_no_voter_even_without_its_monitor(node: Running) -> None:
    pid = await node.voter_pid()
    halt(node.layout, HaltRecord(time=0.0, rule="crash", detail="a test"))
    await until(lambda: not Path(f"/proc/{pid}").exists() or node.events("voter ended"))
    assert not node.events("voter restarted")
    with raises("TV0783", "does not answer"):
        await call(node.layout.voter_control, "GET", "/status")


async def test_revert_undoes_the_attack_and_keeps_what_was_before_the_checkpoint(
    node: Running,
) -> None:
    async with watching(node, rule("revert")) as watched:
        async with await node.client() as client:
            await client.request("PUT", "/kv/a", b"early")
        assert await put(node, "b", "an attack") in (201, 0)
        await until(lambda: watched.outcomes("revert"), "it is reverted")
        await until(node.all_active, "all guests vote again")
        async with await node.client() as client:
            assert (await client.request("GET", "/kv/b")).status == 404
            assert (await client.request("PUT", "/kv/b", b"later")).status == 201
    (event,) = node.events("reverted")
    assert (event["lost"], event["rule"], event["interrupted"]) == (2, "revert", False)
    assert event["first_lost"] < event["before"] == event["last_lost"]
    assert node.restores() == [1, 1, 1]
    assert not node.layout.revert.exists()
    assert watched.outcomes("revert") == [
        f"reverted to the checkpoint at {event['checkpoint']}: 2 writes are lost"
    ]


async def test_voter_that_is_ended_for_many_reverts_is_started_each_time(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.voter_process.RESTART_LIMIT", 1)
    async with watching(node, rule("revert")) as watched:
        reverts = ["revert"]
        for _ in range(3):
            await put(node, "b", "an attack")
            await until(lambda: len(watched.outcomes("revert")) == len(reverts))
            reverts.append("revert")
            await until(node.all_active, "all guests vote again")
    assert len(node.events("reverted")) == 3


async def test_second_match_before_the_same_checkpoint_does_not_revert_again(
    node: Running,
) -> None:
    async with watching(node, rule("revert"), delay=0.05) as watched:
        async with await node.client() as client:
            await asyncio.gather(
                *(client.request("PUT", f"/kv/{n}", b"attack") for n in range(3)),
                return_exceptions=True,
            )
        await until(lambda: len(watched.outcomes("revert")) >= 3)
    assert watched.outcomes("revert")[1:3] == ["reverted already"] * 2
    assert len(node.events("reverted")) == 1


async def test_revert_without_a_checkpoint_stops_the_node(node: Running) -> None:
    async with watching(node, rule("revert")) as watched:
        for path in node.layout.journal.glob("segment-*"):
            path.rename(path.with_name("gone"))  # no state from before is known
        with logs("TV0787"):
            await put(node, "b", "an attack")
            await until(lambda: watched.outcomes("revert"))
        await until(node.done, "the node is down")
    assert watched.outcomes("revert") == ["failed"]
    assert "so the node was stopped" in watched.reports[0]["detail"]
    with raises("TV0785", "the revert failed"):
        check_not_halted(node.layout)


async def test_writes_between_two_voters_are_judged_from_the_journal(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.monitor.monitor.RETRY", 2.0)  # it connects late
    async with watching(node, rule("alert")) as watched:
        assert await put(node, "a", "a first attack") == 201
        await until(lambda: len(watched.reports) == 1)
        os.kill(await node.voter_pid(), signal.SIGKILL)
        await until(lambda: node.events("voter restarted"))
        await until(node.all_active)
        assert await put(node, "b", "a second attack") == 201
        await until(lambda: len(watched.reports) == 2)
    assert [each["detail"] for each in watched.reports] == ["PUT /kv/a", "PUT /kv/b"]


async def test_console_and_votes_are_watched(node: Running) -> None:
    rules = """
    [[console]]
    name = "oops"
    line = "Oops"
    [[vote]]
    name = "expelled"
    event = "expelled"
    guests = ["g2"]
    [[resource]]
    name = "memory"
    rss_above = 1000
    lasting = 0.1
    """
    async with watching(node, rules) as watched:
        await until(lambda: node.guests["g1"].console.followers)
        node.guests["g1"].console.feed(b"[ 1.0] Oops: 0002 [#1]\n")
        await until(lambda: watched.outcomes("oops") == ["alert"])
        await until(lambda: len(watched.outcomes("memory")) >= 3)
        for name in ("g1", "g2"):
            path = f"/replicas/{name}/expel"
            await call(node.layout.voter_control, "POST", path, {"reason": "a test"})
            await until(node.all_active, "it is repaired")
        await until(lambda: watched.outcomes("expelled"))
    assert watched.outcomes("expelled") == ["alert"]


async def test_matches_in_a_flood_are_counted_not_reported(node: Running) -> None:
    async with watching(node, rule("alert")) as watched:
        async with await node.client() as client:
            await asyncio.gather(
                *(client.request("PUT", f"/kv/{n}", b"attack") for n in range(300))
            )
        await until(lambda: watched.monitor.responder.matches == 300)
    assert len(watched.reports) < 300


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ('[[console]]\nname = "a"\nline = "x"\nguests = ["g7"]', "names g7"),
        ('[[memory]]\nname = "a"\ncontains = "long enough"', "in no file here"),
        ('[[request]]\nname = "a"\nbody = "x"\ninline = true', "does not ask the monitor"),
    ],
)
def test_node_that_lacks_what_a_rule_needs_is_refused(
    scratch: Path, rules: str, problem: str
) -> None:
    layout = plan(scratch / "n", allow_faults=False)
    with raises("TV0784", problem):
        check_node(parse_rules(rules, "r.toml"), layout, layout.read_node(), layout.monitor_socket)


def test_damaged_record_of_blocked_clients_is_named(scratch: Path) -> None:
    layout = plan(scratch / "n")
    layout.blocked.write_text("[]")
    with raises("TV0786", "blocked.json"):
        Monitor(layout, parse_rules(rule("block"), "r.toml"), report=print)


async def test_monitor_that_is_behind_says_what_it_missed_and_judges_the_journal(
    node: Running,
) -> None:
    layout = Layout(node.layout.directory)
    layout.voter_control = layout.directory / "slow.sock"
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await go_on.wait()
        writer.write(b'{"missed": 7, "first": 1, "last": 9}\n')
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, layout.voter_control)
    reports: list[dict[str, Any]] = []
    monitor = Monitor(layout, parse_rules(rule("alert"), "r.toml"), report=reports.append)
    task = asyncio.create_task(monitor.run())
    try:
        await until(monitor.reading.is_set)
        assert await put(node, "b", "an attack") == 201
        with logs("TV0791"):
            go_on.set()
            await until(lambda: len(reports) == 2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
    assert reports[0]["missed"] == 7
    assert reports[1]["detail"] == "PUT /kv/b"


INLINE = rule("block", "attack", "inline = true") + rule("alert", "odd", "inline = true")


async def test_inline_rule_stops_a_request_before_it_is_ordered_and_fails_closed(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = plan(scratch / "n", allow_faults=False, function=f"unix:{scratch}/n/monitor.sock")
    node = Running(layout)
    await node.start_ready()
    try:
        assert await put(node, "a", "harmless") == 503, "no monitor runs: nothing is ordered"
        async with watching(node, INLINE) as watched:
            assert await put(node, "a", "harmless") == 201
            assert await put(node, "a", "an odd one") == 204
            await until(lambda: watched.outcomes("alert"))
            assert await put(node, "b", "an attack") == 0
            assert await put(node, "a", "harmless") == 403
            await until(lambda: watched.outcomes("block"))
            async with await node.client() as client:
                assert (await client.request("GET", "/kv/b")).status == 404
            monkeypatch.setattr("deploy.monitor.requests.deadline", lambda limit: 1 / 0)
            address = f"unix:{layout.native_socket}"
            async with await Client.connect(address, retry=False) as client:
                with logs("TV0790"), pytest.raises(NotExecuted):
                    await client.request("GET", "/kv/a")
        assert not layout.monitor_socket.exists()
    finally:
        await node.stop()
