"""Voters for the tests: one of a module's own on three processes, or one a test on three agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

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
        await node.standing("ready")
        yield node


class Nodes:
    """Makes voters before agents in this process."""

    def __init__(self, scratch: Path, stack: AsyncExitStack) -> None:
        self._scratch = scratch
        self._stack = stack
        self._count = 0

    async def make(self, more: str = "", *, replicas: int = 3, ready: bool = True) -> Node:
        """Start one; ``more`` is TOML for the voter (no ``[[replica]]``)."""
        self._count += 1
        directory = self._scratch / str(self._count)
        directory.mkdir()
        agents = [Agent(directory / f"g{number}.sock") for number in range(1, replicas + 1)]
        for agent in agents:
            await agent.start()
        config = configure([agent.link for agent in agents], more)
        node = await self._stack.enter_async_context(running(config, directory))
        node.agents = agents
        if ready:
            await node.standing("ready")
        return node


@pytest_asyncio.fixture
async def nodes(scratch: Path) -> AsyncIterator[Nodes]:
    """Give a maker of voters before agents in this process, which can be told to go wrong."""
    async with AsyncExitStack() as stack:
        yield Nodes(scratch, stack)
