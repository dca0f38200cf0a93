"""Voters and supervisors that die: who comes back, on which sockets, with what was acknowledged."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.supervisor.voter_process import RESTART_LIMIT
from deploy.watchdog.client import WatchdogClient
from tests.deploy.supervisor.test_supervisor import Running, all_active, plan, until
from voter.client import Client


class Kept(WatchdogClient):
    """A nanny's part, played in this process: holds duplicates of the sockets it is given."""

    def __init__(self) -> None:
        super().__init__(ended="killed by a test")
        self.held: dict[str, socket.socket] = {}

    def keep(self, sockets: Mapping[str, socket.socket]) -> None:
        self.drop()
        self.held = {name: sock.dup() for name, sock in sockets.items()}

    def drop(self) -> None:
        for sock in self.held.values():
            sock.close()
        self.held = {}

    def next(self) -> Kept:
        """What the next supervisor is given."""
        after = Kept()
        after.held = self.held
        after.sockets = {name: sock.dup() for name, sock in self.held.items()}
        return after


@pytest_asyncio.fixture
async def node(scratch: Path) -> AsyncIterator[Running]:
    """Give a node of three that is up, with no fault proxy between."""
    running = Running(plan(scratch, allow_faults=False))
    await running.start()
    assert not running.done(), running.reports
    yield running
    await running.stop()


async def cut_off(running: Running) -> None:
    """End a supervisor as if it were killed: everything else goes on."""
    assert running.task is not None
    running.task.cancel()
    await asyncio.gather(running.task, return_exceptions=True)
    await running.control.stop()


async def voter_pid(running: Running) -> int:
    pid = (await running.supervisor.status())["voter"]["pid"]
    assert isinstance(pid, int)
    return pid


async def count(client: Client, until_told: asyncio.Event) -> int:
    """Add one to a counter again and again; each reply must be the next number."""
    number = 0
    while not until_told.is_set():
        answer = await client.request("POST", "/kv/n?increment=1")
        number += 1
        assert answer.body == b"%d" % number, "a request was lost, or done twice"
    return number


async def test_a_killed_voter_is_replaced_by_its_spare_and_no_client_sees_an_error(
    node: Running,
) -> None:
    guests = [guest.pid for guest in node.node.machines.values()]
    enough = asyncio.Event()
    async with await node.client() as client:
        counting = asyncio.create_task(count(client, enough))
        for number in range(2):
            await until(lambda: node.supervisor._voter.spare is not None)
            before, spare = await voter_pid(node), node.supervisor._voter.spare
            os.kill(before, signal.SIGKILL)
            await until(lambda: all_active(node))
            assert await voter_pid(node) == spare
            assert (await node.supervisor.status())["voter"]["restarts"] == number + 1
        enough.set()
        assert await counting > 0
    assert [guest.pid for guest in node.node.machines.values()] == guests
    assert [guest.put_backs for guest in node.node.machines.values()] == [0, 0, 0]


async def test_a_voter_that_dies_again_and_again_is_given_up_and_clients_are_told(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.voter_process.LAST_PAUSE", 0.2)
    host = node.supervisor._voter
    while not host.given_up.is_set():
        if host.identity is not None:
            os.kill(host.identity.pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
    voter = (await node.supervisor.status())["voter"]
    assert voter["given_up"]
    assert voter["restarts"] == RESTART_LIMIT
    assert f"{RESTART_LIMIT + 1} times in a row" in voter["problem"]
    with pytest.raises(OSError, match=r"refused|No such file|Connect"):
        await asyncio.open_unix_connection(str(node.layout.native_socket))


async def test_a_voter_that_hangs_is_replaced(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.repairer.ASK_EVERY", 0.2)
    monkeypatch.setattr("deploy.supervisor.voter_control.CALL_TIMEOUT", 0.2)
    await node.supervisor._control.close()  # its timeout holds for new connections
    before = await voter_pid(node)
    os.kill(before, signal.SIGSTOP)
    async with await node.client() as client:
        assert (await client.request("PUT", "/kv/a", b"1", timeout=20.0)).status == 201
    assert await voter_pid(node) != before
    assert any(event["what"] == "voter hangs" for event in node.supervisor.history.after(0))


async def test_after_a_supervisors_death_the_voters_sockets_still_refuse_nobody(
    scratch: Path,
) -> None:
    nanny = Kept()
    first = Running(plan(scratch), nursery=nanny)
    await first.start()
    http = (await first.supervisor.status())["http"]
    await cut_off(first)
    before = first.layout.read_running().processes["voter"]
    os.kill(before.pid, signal.SIGKILL)
    child = Child.adopt(before)
    if child is not None:
        await child.wait()
    # Neither supervisor nor voter lives: who connects waits in the sockets that the nanny holds.
    waiting = asyncio.create_task(Client.connect(f"unix:{first.layout.native_socket}", timeout=20))
    host, port = http.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    second = Running(first.layout, first.node, nursery=nanny.next())
    await second.start()
    status = await second.supervisor.status()
    assert status["http"] == http
    assert status["supervisor"]["ended"] == "killed by a test"
    async with await waiting as client:
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
    writer.close()
    assert any(e["what"] == "supervisor started again" for e in second.supervisor.history.after(0))
    # The sockets are the supervisor's own again: one more voter, and still nobody is refused.
    os.kill(status["voter"]["pid"], signal.SIGKILL)
    async with await second.client() as client:
        assert (await client.request("GET", "/kv/a")).body == b"1"
    await second.stop()


async def test_a_take_over_finds_a_guest_dead_and_repairs_it_while_the_others_serve(
    scratch: Path,
) -> None:
    first = Running(plan(scratch, allow_faults=False))
    await first.start()
    await cut_off(first)
    await first.node.machines["g2"].kill()
    second = Running(first.layout, first.node)
    await second.start()
    assert second.supervisor.took_over
    await until(lambda: all_active(second))
    assert second.node.machines["g2"].put_backs == 1
    await second.stop()


async def test_what_was_acknowledged_is_there_after_everything_has_died(scratch: Path) -> None:
    layout = plan(scratch, allow_faults=False)
    for life in range(3):
        running = Running(layout)
        await running.start()
        status = await running.supervisor.status()
        assert status["durability"]["kind"] == "fsync"
        assert "loss of power" in status["durability"]["promise"]
        assert status["durability"]["journal"]
        async with await running.client() as client:
            assert (await client.request("POST", "/kv/n?increment=1")).body == b"%d" % (life + 1)
        await cut_off(running)
        os.kill(status["voter"]["pid"], signal.SIGKILL)
        await running.node.down()


@pytest.mark.parametrize("other", ["vote", "node", "format"])
async def test_a_journal_that_is_not_this_nodes_is_refused_by_name(
    scratch: Path, other: str
) -> None:
    first = Running(plan(scratch / "a", allow_faults=False))
    await first.start()
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
    second = Running(layout)
    await second.start()
    assert second.task is not None
    with pytest.raises(DeployError, match="journal") as caught:
        await second.task
    await second.control.stop()
    assert str(layout.journal) in str(caught.value)
    assert {"vote": "2/3", "node": "another", "format": "format 99"}[other] in str(caught.value)
    assert layout.read_running().processes == {}
    assert not layout.own_sockets()
