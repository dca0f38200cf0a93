"""A dashboard of a node that is data, and a browser, logged in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deploy.dashboard.dashboard import Dashboard
from tests.deploy.dashboard.shown import Browser, FakeSource, browser, dashboard

__all__ = ["node", "shown", "user"]


@pytest.fixture
def node() -> FakeSource:
    return FakeSource()


@pytest_asyncio.fixture
async def shown(node: FakeSource) -> AsyncIterator[Dashboard]:
    async with dashboard(node) as served:
        yield served


@pytest_asyncio.fixture
async def user(shown: Dashboard) -> AsyncIterator[Browser]:
    """Give a browser that has logged in."""
    async with browser(shown) as opened:
        await opened.log_in()
        yield opened
