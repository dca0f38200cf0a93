"""A process and a real guest that faults are injected into."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.deploy.open_guest import OpenGuest, open_guest

HOLD = "import sys; data = bytes(1 << 20); print('up', flush=True); sys.stdin.read(1)"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that waits for a byte."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"up\n"
        yield it
        it.kill()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def opened(shared_scratch: Path) -> AsyncIterator[OpenGuest]:
    """Yield a guest with a shell, shared by all tests here."""
    async with open_guest(shared_scratch, shared_scratch / "capabilities", "i") as one:
        yield one
