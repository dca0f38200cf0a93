"""Real guests for the tests of deploy/: one image, one node of two guests, shared by all."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.machine.node import GuestArrival, NodeMachines
from deploy.machine.spec import NodeSpec, plan_node
from deploy.node.records import cache_directory
from guests.image import COMMAND_LINE, Image, Overlay, add_overlay, build_image

__all__ = ["Booted", "booted", "capabilities", "image", "may_raise_priority", "plan"]

# Three guests on two busy cores have taken 40 s; a deadline is no measurement.
BOOT_DEADLINE = 120.0


class Booted:
    """The shared node, and how its guests came."""

    def __init__(self, node: NodeMachines, arrivals: dict[str, GuestArrival]) -> None:
        self.node = node
        self.arrivals = arrivals


@pytest.fixture(scope="session")
def image(shared_scratch: Path) -> Image:
    """Give an image with the key-value service, its base from the user's cache."""
    base = build_image(cache_directory() / "images", progress=print)
    return add_overlay(base, shared_scratch / "image", Overlay(service="kv"))


@pytest.fixture(scope="session")
def capabilities(shared_scratch: Path) -> Path:
    """Give a directory for what libvirt learns of QEMU, so that it learns it once."""
    return shared_scratch / "capabilities"


def plan(directory: Path, image: Image, *, guests: int, cmdline: str = COMMAND_LINE) -> NodeSpec:
    """Plan a node under TCG, which every host can do."""
    return plan_node(
        directory=str(directory),
        uuids=tuple(str(uuid.uuid4()) for _ in range(guests + 1)),
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        cmdline=cmdline,
        accel="tcg",
        ram_file=True,
        boot_deadline=BOOT_DEADLINE,
    )


def may_raise_priority() -> bool:
    """Whether this host lets us raise a priority; root in most containers may not."""
    words = [sys.executable, "-c", "import os; os.nice(1); os.nice(-1)"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def booted(shared_scratch: Path, image: Image, capabilities: Path) -> AsyncIterator[Booted]:
    """Give the shared node. Its tests run in the session's event loop and leave it as it was."""
    node = NodeMachines(plan(shared_scratch / "n", image, guests=2), capabilities=capabilities)
    arrivals = await node.up()
    try:
        yield Booted(node, arrivals)
    finally:
        await node.down()


@pytest.fixture
def own_directory(scratch: Path) -> Iterator[Path]:
    """Give a short path for a node of the test's own; it does not exist yet."""
    path = scratch / "n"
    yield path
    shutil.rmtree(path, ignore_errors=True)
