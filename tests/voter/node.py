"""A whole voter inside the test's own event loop: runner, front ends, control socket."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.voter.agents import Agent
from tests.voter.http_client import HttpClient, Response
from tests.waiting import until
from voter.access import Access
from voter.address import connect
from voter.client import Client
from voter.config import Config, Security, parse
from voter.control import VoterControlServer
from voter.daemon import runner_class
from voter.frontend.http import HttpServer
from voter.frontend.native import NativeServer
from voter.runner import Clock, Runner
from voter.sockets import listen_tcp, listen_unix

__all__ = ["EXEC_KV", "Node", "configure", "running", "turns"]

_ROOT = shlex.quote(str(Path(__file__).parents[2]))
EXEC_KV = f"exec:env PYTHONPATH={_ROOT} {sys.executable} -m guests.agent --stdio --service kv"
"""Link of a replica that is a local process running the key-value store."""
PATIENCE = 30.0
"""Seconds until a condition that a test waits for must hold."""


def configure(
    links: Sequence[str], more: str = "", *, vote: str | None = None, retired: int = 0
) -> Config:
    """A configuration with replicas g1, g2, ... behind these links; ``more`` is further TOML.

    The last ``retired`` of them are retired.
    """
    first = len(links) - retired
    vote = vote or f"{first // 2 + 1}/{first}"
    replicas = "".join(
        f'[[replica]]\nname = "g{number}"\nlink = "{link}"\n'
        f'role = "{"retired" if number > first else "voter"}"\n'
        for number, link in enumerate(links, start=1)
    )
    return parse(f'vote = "{vote}"\n{more}\n{replicas}')


@asynccontextmanager
async def turns(value: Callable[[], int]) -> AsyncIterator[list[int]]:
    """Give the list of how much ``value()`` grew in each turn of the loop during the block."""
    grown, last = [0], value()
    loop, running = asyncio.get_running_loop(), True

    def note() -> None:
        nonlocal last
        now = value()
        grown.append(now - last)
        last = now
        if running:
            loop.call_soon(note)

    note()
    try:
        yield grown
    finally:
        running = False


class Node:
    """A running voter."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.wall_offset = 0.0  # seconds by which the host's wall clock is wrong
        self.access = Access(config.security, directory) if config.security != Security() else None
        self.runner: Runner = runner_class(config)(
            config,
            clock=Clock(time.monotonic, self._wall_ns),
            connector=connect,
            random64=lambda: secrets.randbits(64),
        )
        self.http = HttpServer(self.runner, self.access)
        self.native = NativeServer(self.runner, self.access)
        self.control = VoterControlServer(self.runner, lambda: None, (), self.access)
        self.native_path = directory / "native.sock"
        self.control_path = directory / "control.sock"
        self.port = 0
        self.native_port = 0
        self.agents: list[Agent] = []

    def _wall_ns(self) -> int:
        return time.time_ns() + round(self.wall_offset * 1e9)

    def state(self, name: str) -> str:
        """Return the state of a replica."""
        return str(self.runner.engine.members[self.runner.find(name)].state)

    def reason(self, name: str) -> str:
        """Return why a replica is in its state."""
        return self.runner.engine.members[self.runner.find(name)].reason

    async def until_status(self, wanted: str) -> None:
        """Wait until the voter is in this state."""
        await until(lambda: self.runner.engine.status == wanted, wanted)

    async def open(self) -> HttpClient:
        """Open a new HTTP connection."""
        return await HttpClient.open(self.port)

    async def ask(
        self, method: str, target: str, body: bytes = b"", *headers: tuple[str, str]
    ) -> Response:
        """Make one HTTP request on a connection of its own."""
        async with await self.open() as client:
            return await client.ask(method, target, body, *headers)

    async def client(self, *, retry: bool = False) -> Client:
        """Return a new native client; it raises each failure unless it is to ``retry``."""
        return await Client.connect(f"unix:{self.native_path}", retry=retry)


@asynccontextmanager
async def running(config: Config, directory: Path) -> AsyncIterator[Node]:
    """Run a voter until the end of the block; nothing of it is left afterwards."""
    node = Node(config, directory)
    task = asyncio.create_task(node.runner.run())
    http, native = listen_tcp("127.0.0.1:0"), listen_tcp("127.0.0.1:0")
    node.port, node.native_port = http.getsockname()[1], native.getsockname()[1]
    try:
        await node.http.serve(http)
        await node.native.serve(native)
        await node.native.serve(listen_unix(str(node.native_path)))
        await node.control.serve(listen_unix(str(node.control_path)))
        if node.access is not None:
            node.access.watch(node.native.recheck)
        yield node
        assert not task.done(), "the runner has ended"
    finally:
        if node.access is not None:
            node.access.stop()
        for part in (node.http, node.native, node.control):
            await part.stop()
        task.cancel()
        await asyncio.wait([task])
        for agent in node.agents:
            agent.stop()
        await until(lambda: not any(agent.connections for agent in node.agents))
