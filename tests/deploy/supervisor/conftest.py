"""Running nodes for the tests of the supervisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.deploy.supervisor.running import Running, plan

__all__ = ["node", "plain_node"]


@pytest.fixture(autouse=True)
def all_end_with_tests(end_with_tests: None) -> None:
    """Leave nothing behind when the tests are killed: a voter outlives its supervisor."""


@pytest_asyncio.fixture
async def node(scratch: Path) -> AsyncIterator[Running]:
    """Give a node of three that is up and allows faults."""
    running = Running(plan(scratch))
    await running.start_ready()
    yield running
    await running.stop()


@pytest_asyncio.fixture
async def plain_node(scratch: Path) -> AsyncIterator[Running]:
    """Give a node of three that is up, without a fault proxy."""
    running = Running(plan(scratch, allow_faults=False))
    await running.start_ready()
    yield running
    await running.stop()
