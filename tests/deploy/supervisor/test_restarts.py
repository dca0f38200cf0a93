"""Voters and supervisors die: their successors have the same sockets and all acknowledged data."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.supervisor.voter_process import RESTART_LIMIT
from deploy.watchdog.client import WatchdogClient
from tests.deploy.supervisor.running import Running, plan
from tests.errors import logs
from tests.waiting import until
from voter.client import Client


class SocketKeeper(WatchdogClient):
    """The watchdog's part in this process: keeps duplicates of sockets."""

    def __init__(self) -> None:
        super().__init__(ended="killed by a test")
        self.kept: dict[str, socket.socket] = {}

    def keep(self, sockets: Mapping[str, socket.socket]) -> None:
        self.drop()
        self.kept = {name: sock.dup() for name, sock in sockets.items()}

    def drop(self) -> None:
        for sock in self.kept.values():
            sock.close()
        self.kept = {}

    def next(self) -> SocketKeeper:
        """What the next supervisor gets."""
        after = SocketKeeper()
        after.kept = self.kept
        after.sockets = {name: sock.dup() for name, sock in self.kept.items()}
        return after


async def count(client: Client, end: asyncio.Event) -> int:
    """Increment a counter repeatedly; each reply must be the next number."""
    number = 0
    while not end.is_set():
        answer = await client.request("POST", "/kv/n?increment=1")
        number += 1
        assert answer.body == b"%d" % number, "a request was lost, or executed twice"
    return number


async def test_killed_voter_is_replaced_by_its_standby_and_no_client_gets_an_error(
    plain_node: Running,
) -> None:
    node, enough = plain_node, asyncio.Event()
    guests = [guest.pid for guest in node.guests.values()]
    async with await node.client() as client:
        counting = asyncio.create_task(count(client, enough))
        for number in range(2):
            await until(lambda: node.supervisor._voter.standby is not None)
            before, standby = await node.voter_pid(), node.supervisor._voter.standby
            os.kill(before, signal.SIGKILL)
            await until(node.all_active)
            assert await node.voter_pid() == standby
            assert (await node.status())["voter"]["restarts"] == number + 1
        enough.set()
        assert await counting > 0
    assert [guest.pid for guest in node.guests.values()] == guests
    assert node.restores() == [0, 0, 0]


async def test_voter_that_dies_repeatedly_is_abandoned_and_clients_are_refused(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.voter_process.LAST_PAUSE", 0.2)
    manager = plain_node.supervisor._voter
    with logs("TV0221"):
        while not manager.abandoned:
            if manager.pid is not None:
                os.kill(manager.pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
    voter = (await plain_node.status())["voter"]
    assert voter["abandoned"]
    assert voter["restarts"] == RESTART_LIMIT
    assert f"{RESTART_LIMIT + 1} times in a row" in voter["problem"]
    with pytest.raises(OSError, match=r"refused|No such file|Connect"):
        await asyncio.open_unix_connection(str(plain_node.layout.native_socket))


async def test_voter_that_cannot_be_started_is_logged_and_tried_again(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no process numbers are left")

    monkeypatch.setattr("deploy.supervisor.voter_process.LAST_PAUSE", 0.1)
    manager = plain_node.supervisor._voter
    before = await plain_node.voter_pid()
    with monkeypatch.context() as failing, logs("TV0220"):
        failing.setattr(manager, "start", fail)
        os.kill(before, signal.SIGKILL)
        await until(lambda: "cannot be started" in manager.problem)
    await until(plain_node.all_active)
    assert await plain_node.voter_pid() != before


async def test_standby_voter_that_ended_is_logged_and_replaced(plain_node: Running) -> None:
    manager = plain_node.supervisor._voter
    await until(lambda: manager.standby is not None)
    before = manager.standby
    assert before is not None
    with logs("TV0222"):
        os.kill(before, signal.SIGKILL)
        await until(lambda: manager.standby not in (None, before))


async def test_hung_voter_is_replaced(plain_node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.supervisor.repairer.POLL_INTERVAL", 0.2)
    monkeypatch.setattr("deploy.supervisor.voter_control.CALL_TIMEOUT", 0.2)
    await plain_node.supervisor._control.close()  # the timeout applies to new connections
    before = await plain_node.voter_pid()
    os.kill(before, signal.SIGSTOP)
    async with await plain_node.client() as client:
        assert (await client.request("PUT", "/kv/a", b"1", timeout=20.0)).status == 201
    assert await plain_node.voter_pid() != before
    assert plain_node.events("voter hangs")


async def test_sockets_refuse_no_client_after_supervisor_and_voter_died(scratch: Path) -> None:
    keeper = SocketKeeper()
    first = Running(plan(scratch), watchdog=keeper)
    await first.start_ready()
    http = (await first.status())["http"]
    with logs("TV0733"):
        await first.cut_off()
    before = first.layout.read_running().processes["voter"]
    os.kill(before.pid, signal.SIGKILL)
    child = Child.adopt(before)
    if child is not None:
        await child.wait()
    # Neither supervisor nor voter runs: connections wait in the sockets that the watchdog keeps.
    waiting = asyncio.create_task(Client.connect(f"unix:{first.layout.native_socket}", timeout=20))
    host, port = http.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    second = Running(first.layout, first.node, watchdog=keeper.next())
    await second.start_ready()
    status = await second.status()
    assert status["http"] == http
    assert status["supervisor"]["ended"] == "killed by a test"
    async with await waiting as client:
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
    writer.close()
    assert second.events("supervisor restarted")
    # The supervisor owns the sockets again: another restart of the voter refuses no client either.
    os.kill(status["voter"]["pid"], signal.SIGKILL)
    async with await second.client() as client:
        assert (await client.request("GET", "/kv/a")).body == b"1"
    await second.stop()


async def test_take_over_repairs_a_dead_guest_while_the_others_serve(scratch: Path) -> None:
    first = Running(plan(scratch, allow_faults=False))
    await first.start_ready()
    await first.cut_off()
    await first.guests["g2"].kill()
    second = Running(first.layout, first.node)
    await second.start_ready()
    assert second.supervisor.took_over
    await until(second.all_active)
    assert second.restores() == [0, 1, 0]
    await second.stop()


async def test_acknowledged_requests_survive_the_death_of_all_processes(scratch: Path) -> None:
    layout = plan(scratch, allow_faults=False)
    for life in range(3):
        running = Running(layout)
        await running.start_ready()
        durability = (await running.status())["durability"]
        assert durability["kind"] == "fsync"
        assert durability["journal"]
        async with await running.client() as client:
            assert (await client.request("POST", "/kv/n?increment=1")).body == b"%d" % (life + 1)
        voter = await running.voter_pid()
        await running.cut_off()
        os.kill(voter, signal.SIGKILL)
        await running.node.down()


@pytest.mark.parametrize("other", ["vote", "node", "format"])
async def test_another_nodes_journal_is_rejected_by_name(scratch: Path, other: str) -> None:
    first = Running(plan(scratch / "a", allow_faults=False))
    await first.start_ready()
    async with await first.client() as client:
        await client.request("PUT", "/kv/a", b"1")
    await first.stop()
    layout = plan(scratch / "b", allow_faults=False, vote="3/3" if other == "vote" else "2/3")
    if other == "node":
        record = layout.read_node()
        uuids = ("another", *record.uuids[1:])
        layout.write(msgspec.structs.replace(record, uuids=uuids))
    shutil.copytree(scratch / "a" / "journal", layout.journal)
    if other == "format":
        (layout.journal / "identity.json").write_bytes(b'{"format": 99}')
    with pytest.raises(DeployError, match="journal") as caught:
        await Running(layout).start_and_fail()
    assert str(layout.journal) in str(caught.value)
    assert {"vote": "2/3", "node": "another", "format": "format 99"}[other] in str(caught.value)
    assert layout.read_running().processes == {}
    assert not layout.stale_sockets()
