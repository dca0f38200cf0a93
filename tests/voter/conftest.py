"""Voters for the tests: one for a module on three processes, or one for a test on three agents."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from guests.services.kv import KeyValue
from tests.voter.agents import Agent
from tests.voter.node import EXEC_KV, Node, configure, running

__all__: list[str] = []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_node(shared_scratch: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """Give a voter before three local processes, all voting; the tests of a module share it.

    Such tests need ``pytestmark = pytest.mark.asyncio(loop_scope="module")``.
    """
    directory = shared_scratch / request.module.__name__.rpartition(".")[2]
    directory.mkdir()
    async with running(configure([EXEC_KV] * 3), directory) as node:
        await node.until_status("ready")
        yield node


@pytest.fixture
def tmpfs(scratch: Path) -> Iterator[Callable[[str], Path]]:
    """Give a maker of small file systems; skips where it may not mount."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = scratch / "tmpfs"
        path.mkdir(exist_ok=True)
        remount = "remount," if path in mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", remount + options, "none", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount a tmpfs: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(mounted[0])], check=True)


class Nodes:
    """Makes voters before agents in this process."""

    def __init__(self, scratch: Path, stack: AsyncExitStack) -> None:
        self._scratch = scratch
        self._stack = stack
        self._count = 0

    async def make(
        self,
        more: str = "",
        *,
        vote: str = "2/3",
        services: Mapping[int, type[KeyValue]] | None = None,
        ready: bool = True,
        spares: int = 0,
    ) -> Node:
        """Start a voter before three agents; ``more`` is TOML for it (no ``[[replica]]``).

        ``spares``: more agents, whose replicas are retired.
        """
        self._count += 1
        directory = self._scratch / str(self._count)
        directory.mkdir()
        agents = [Agent(directory / f"g{number}.sock") for number in range(1, 4 + spares)]
        for index, service in (services or {}).items():
            agents[index].service = service
            agents[index].restart()
        for agent in agents:
            await agent.start()
        config = configure([agent.link for agent in agents], more, vote=vote, retired=spares)
        node = await self._stack.enter_async_context(running(config, directory))
        node.agents = agents
        if ready:
            await node.until_status("ready")
        return node


@pytest_asyncio.fixture
async def nodes(scratch: Path) -> AsyncIterator[Nodes]:
    """Give a maker of voters before agents in this process, whose faults a test selects."""
    async with AsyncExitStack() as stack:
        yield Nodes(scratch, stack)
