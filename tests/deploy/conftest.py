"""Real guests for the tests of deploy/: one image and one node of two guests, shared."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from deploy.host.spawn import end_with_parent
from deploy.machine.guest import Guest
from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import GuestArrival, NodeSpec, plan_node
from deploy.node.records import cache_directory
from guests.image import COMMAND_LINE, Image, Overlay, add_overlay, build_image
from guests.protocol import wire

__all__ = [
    "answers",
    "NASTY",
    "Booted",
    "booted",
    "capabilities",
    "end_with_tests",
    "image",
    "may_raise_priority",
    "plan",
]


# A path with what URIs, XML, TOML, QEMU's options, shells and terminals treat specially.
NASTY = "-a b;,,#&%41é😀'\":?=\\$~[/]*"


class Booted(NamedTuple):
    """The shared node, and how its guests came up."""

    node: NodeMachines
    arrivals: dict[str, GuestArrival]


@pytest.fixture
def end_with_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel kill the processes that a test starts when the tests are killed."""
    end = functools.partial(end_with_parent, os.getpid())
    monkeypatch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, preexec_fn=end))


@pytest.fixture(scope="session")
def image(shared_scratch: Path) -> Image:
    """Give an image with the key-value service, its base from the user's cache."""
    base = build_image(cache_directory() / "images", progress=print)
    return add_overlay(base, shared_scratch / "image", Overlay(service="kv"))


@pytest.fixture(scope="session")
def capabilities(shared_scratch: Path) -> Path:
    """Give a cache for what libvirt finds out about QEMU."""
    return shared_scratch / "capabilities"


def plan(
    directory: Path, image: Image, *, guests: int, cmdline: str = COMMAND_LINE, **more: Any
) -> NodeSpec:
    """Plan a node under TCG, which works on every host."""
    return plan_node(
        directory=str(directory),
        uuids=tuple(str(uuid.uuid4()) for _ in range(guests + 1)),
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        cmdline=cmdline,
        ram_file=True,
        **{"accel": "tcg"} | more,
    )


def may_raise_priority() -> bool:
    """Return whether this host permits raising a priority; most containers do not."""
    words = [sys.executable, "-c", "import os; os.nice(1); os.nice(-1)"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def booted(shared_scratch: Path, image: Image, capabilities: Path) -> AsyncIterator[Booted]:
    """Give the shared node.  Its tests run in the session's event loop and restore it."""
    node = NodeMachines(plan(shared_scratch / NASTY, image, guests=2), capabilities=capabilities)
    arrivals = await node.up()
    try:
        yield Booted(node, arrivals)
    finally:
        await node.down()


async def answers(guest: Guest, seconds: float = 10.0) -> bool:
    """Return whether the agent answers a HELLO within so many seconds.

    It answers every HELLO, whereas the epoch of another frame may be stale.  Its other frames prove
    nothing: it does not notice a link that is closed and opened again fast.
    """
    epoch = 1 + secrets.randbelow(1 << 31)
    hello = wire.PROTOCOL.to_bytes(2) + bytes([wire.NO_KEEPER])
    decoder = wire.Decoder()
    reader, writer = await asyncio.open_unix_connection(guest.spec.link_socket)
    try:
        async with asyncio.timeout(seconds):
            writer.write(wire.encode(wire.FrameKind.HELLO, epoch, 0, hello))
            while data := await reader.read(4096):
                for frame in decoder.feed(data):
                    if frame.kind == wire.FrameKind.WELCOME and frame.epoch == epoch:
                        return True
    except TimeoutError:
        return False
    finally:
        writer.close()
    return False
