"""A supervisor of a voter that another process starts and restarts, as systemd does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest_asyncio

from deploy.commands.prepare import write_voter_config
from deploy.host.spawn import python_environment
from deploy.node.records import Layout
from tests.deploy.supervisor.running import Running, plan
from tests.waiting import until
from voter.sockets import listen_tcp, listen_unix

START = """
import fcntl, os, sys
numbers = [int(each) for each in sys.argv.pop(1).split(",")]
high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in numbers]
for at, number in enumerate(high, 3): os.dup2(number, at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="3",
                  LISTEN_FDNAMES="http:native-unix:control")
os.execv(sys.executable, [sys.executable, "-m", "voter", "--config", sys.argv[1]])
"""


class ServiceManager:
    """Holds the sockets, and starts the voter whenever it has ended."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.sockets = [
            listen_tcp("127.0.0.1:0"),
            listen_unix(str(layout.native_socket)),
            listen_unix(str(layout.voter_control)),
        ]
        self.voter: asyncio.subprocess.Process | None = None
        self.starts = 0

    async def keep(self) -> None:
        while True:
            numbers = [sock.fileno() for sock in self.sockets]
            self.voter = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", START, ",".join(map(str, numbers))),
                str(self._layout.voter_config),
                env=python_environment(),
                pass_fds=numbers,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.starts += 1
            await self.voter.wait()

    @property
    def pid(self) -> int:
        assert self.voter is not None
        return self.voter.pid


@asynccontextmanager
async def managing(layout: Layout) -> AsyncIterator[ServiceManager]:
    manager = ServiceManager(layout)
    keeping = asyncio.create_task(manager.keep())
    try:
        yield manager
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        if manager.voter is not None:
            with contextlib.suppress(ProcessLookupError):
                manager.voter.kill()
            await manager.voter.wait()
        for sock in manager.sockets:
            sock.close()


def prepare(directory: Path, **settings: Any) -> Layout:
    layout = plan(directory, allow_faults=False, **settings)
    record = msgspec.structs.replace(layout.read_node(), managed=True)
    layout.write(record)
    write_voter_config(layout, record)
    return layout


@pytest_asyncio.fixture
async def manager(scratch: Path) -> AsyncIterator[ServiceManager]:
    async with managing(prepare(scratch)) as manager:
        yield manager


@pytest_asyncio.fixture
async def node(manager: ServiceManager, scratch: Path) -> AsyncIterator[Running]:
    running = Running(Layout(scratch))
    await running.start_ready()
    yield running
    await running.stop()


async def test_status_has_the_address_and_the_process_of_the_voter(
    manager: ServiceManager, node: Running
) -> None:
    status = await node.status()
    port = manager.sockets[0].getsockname()[1]
    assert status["managed"] is True
    assert status["http"] == f"127.0.0.1:{port}"
    assert status["voter"]["pid"] == manager.pid
    assert status["voter"]["problem"] == ""
    assert "voter" not in node.layout.read_running().processes


async def test_killed_voter_is_followed_and_not_started(
    manager: ServiceManager, node: Running
) -> None:
    async with await node.client() as client:
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
        os.kill(manager.pid, signal.SIGKILL)
        assert (await client.request("GET", "/kv/a")).body == b"1"
    await until(lambda: bool(node.events("voter restarted")))
    assert manager.starts == 2
    assert (await node.status())["voter"]["restarts"] == 1


async def test_voter_that_is_gone_is_reported_with_the_commands_that_help(
    manager: ServiceManager, node: Running, monkeypatch: Any
) -> None:
    monkeypatch.setattr("deploy.supervisor.managed_voter._SILENCE", 0.1)
    os.kill(manager.pid, signal.SIGSTOP)  # the service manager's watchdog would end it
    try:

        async def reported() -> bool:
            voter = (await node.status())["voter"]
            return voter["pid"] is None and "trivisor-voter.service" in voter["problem"]

        await until(reported)
    finally:
        os.kill(manager.pid, signal.SIGCONT)


async def test_vote_continues_without_a_supervisor_and_the_next_one_follows_the_voter(
    manager: ServiceManager, scratch: Path
) -> None:
    node = Running(Layout(scratch))
    await node.start_ready()
    pids = [guest.pid for guest in node.guests.values()]
    async with await node.client() as client:
        await client.request("PUT", "/kv/a", b"1")
        await node.cut_off()
        assert (await client.request("PUT", "/kv/a", b"2")).status == 204
        successor = Running(node.layout, node.node)
        await successor.start_ready()
        assert (await client.request("GET", "/kv/a")).body == b"2"
        assert [guest.pid for guest in successor.guests.values()] == pids
        assert manager.starts == 1
        await successor.stop()


async def test_voter_with_an_older_configuration_is_replaced(
    manager: ServiceManager, scratch: Path
) -> None:
    await until(lambda: manager.starts == 1)
    record = Layout(scratch).read_node()
    changed = msgspec.structs.replace(
        record, settings=msgspec.structs.replace(record.settings, durability="os")
    )
    async with asyncio.timeout(60):  # the first one has read its configuration when it answers
        reader, writer = await asyncio.open_unix_connection(str(scratch / "control.sock"))
        writer.write(b"GET /livez HTTP/1.1\r\nhost: voter\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()
    write_voter_config(Layout(scratch), changed)
    Layout(scratch).write(changed)
    running = Running(Layout(scratch))
    await running.start_ready()
    await until(lambda: manager.starts == 2)
    await until(running.all_active)
    assert (await running.status())["durability"]["journal"] is not None
    await running.stop()


async def test_end_lets_the_voter_answer_and_leaves_the_sockets(
    manager: ServiceManager, scratch: Path
) -> None:
    running = Running(Layout(scratch))
    await running.start_ready()
    first = manager.pid
    await running.stop()
    await until(lambda: manager.pid != first)
    assert running.layout.native_socket.is_socket()
    assert running.layout.voter_control.is_socket()
    assert not running.layout.supervisor_socket.exists()
