"""One real guest that allows faults inside, and its shell; its node is a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from deploy.host.spawn import python_command, python_environment
from deploy.machine.spec import AcceleratorName
from deploy.machine.ssh import GuestShell, NodeKeys, free_ports, make_keys
from deploy.node.records import cache_directory
from guests.image import Overlay, add_overlay, build_image
from tests.deploy.conftest import plan

__all__ = ["OpenGuest", "open_guest"]

DEADLINE = 150.0
"""Seconds for a line on the console."""


class OpenGuest:
    """The guest's shell, its keys, and the connection to its node."""

    def __init__(self, process: asyncio.subprocess.Process, keys: NodeKeys, port: int) -> None:
        self.shell = GuestShell("g1", port=port, keys=keys)
        self.keys = keys
        self.port = port
        self._process = process

    async def clean(self) -> None:
        """Restore the guest's clean snapshot."""
        await self.command("restore")
        self.shell.disconnect()

    async def pid(self) -> int | None:
        """Return the pid of the guest's QEMU."""
        return (await self.command("state"))["pid"]  # type: ignore[no-any-return]

    async def count(self, text: str) -> int:
        """Return how many lines of the console contain this."""
        return sum(text in line for line in (await self.command("state"))["console"])

    async def says(self, text: str, *, times: int = 1) -> None:
        """Wait until so many lines of the guest's console contain this."""
        deadline = time.monotonic() + DEADLINE
        while await self.count(text) < times:
            if time.monotonic() > deadline:
                console = (await self.command("state"))["console"]
                raise TimeoutError(f"the console never contained {text!r}: {console}")
            await asyncio.sleep(0.05)  # the console is another process's

    async def command(self, command: str) -> dict[str, Any]:
        """Send a command to the node's process; return the guest's state."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return the next state that the node's process prints."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the node's process has ended"
        return dict(msgspec.json.decode(line)["g1"])


@asynccontextmanager
async def open_guest(
    scratch: Path, capabilities: Path, name: str, *, accel: AcceleratorName = "tcg"
) -> AsyncIterator[OpenGuest]:
    """Boot one guest below `scratch`; end it afterwards."""
    base = build_image(cache_directory() / "images", progress=print)
    keys = make_keys()
    image = add_overlay(base, scratch / f"{name}-image", Overlay(service="kv", access=keys.access))
    [port] = free_ports(1)
    spec = plan(scratch / name, image, guests=1, accel=accel, ssh_ports=(port,), on_reset="restart")
    file = scratch / f"{name}.spec"
    file.write_bytes(msgspec.json.encode(spec))
    process = await asyncio.create_subprocess_exec(
        *python_command("tests.deploy.node_process", file, capabilities),
        env=python_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,  # bytes of a line: it holds a console
        start_new_session=True,  # it ends its guest when its input ends, not by the tests' Ctrl-C
    )
    guest = OpenGuest(process, keys, port)
    try:
        await guest.answer()  # once it is up
        yield guest
    finally:
        await guest.shell.close()
        assert process.stdin is not None
        process.stdin.close()  # ends the node
        await process.communicate()
    assert process.returncode == 0
