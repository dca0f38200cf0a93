"""One guest that allows faults inside, and its shell, for the tests that need one.

Its node is in a process of its own, `python -m tests.deploy.open_guest SPEC.json CAPABILITIES`: an
embedded libvirt is one a process, and the shared node has the tests' own.  The process takes words
at its stdin ("look", "clean"; its end ends the node) and answers each by a line of JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from deploy.machine.node import NodeMachines
from deploy.machine.spec import NodeSpec, plan_node
from deploy.machine.ssh import GuestShell, NodeKeys, free_ports, make_keys
from deploy.node.records import cache_directory
from guests.image import COMMAND_LINE, Overlay, add_overlay, build_image
from tests.project.tree import ROOT

__all__ = ["OpenGuest", "main", "open_guest"]

DEADLINE = 150.0
"""Seconds; no measurement."""


class OpenGuest:
    """The guest's shell, what it was made with, and a way to its node."""

    def __init__(
        self, process: asyncio.subprocess.Process, keys: NodeKeys, port: int, uuid: str
    ) -> None:
        self.shell = GuestShell("g1", port=port, keys=keys)
        self.keys = keys
        self.port = port
        self.uuid = uuid
        self._process = process

    async def clean(self) -> None:
        """Put the guest back to its clean snapshot."""
        await self.tell("clean")
        self.shell.drop()

    async def pid(self) -> int | None:
        """The guest's QEMU."""
        return (await self.tell("look"))["pid"]  # type: ignore[no-any-return]

    async def says(self, text: str, *, times: int = 1) -> None:
        """Wait until the guest's console has said this so often."""
        give_up = time.monotonic() + DEADLINE
        console: list[str] = []
        while time.monotonic() < give_up:
            console = (await self.tell("look"))["console"]
            if sum(text in line for line in console) >= times:
                return
            await asyncio.sleep(0.05)  # the console is another process's
        raise TimeoutError(f"the console never said {text!r}: {console}")

    async def tell(self, word: str) -> dict[str, Any]:
        """Give the node's process a word, and return its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        line = await self._process.stdout.readline()
        assert line, "the node's process has ended"
        return dict(msgspec.json.decode(line))


@asynccontextmanager
async def open_guest(scratch: Path, capabilities: Path, name: str) -> AsyncIterator[OpenGuest]:
    """Boot one guest below `scratch`, under TCG; end it afterwards."""
    base = build_image(cache_directory() / "images", progress=print)
    keys = make_keys()
    image = add_overlay(base, scratch / f"{name}-image", Overlay(service="kv", access=keys.access))
    [port] = free_ports(1)
    spec = plan_node(
        directory=str(scratch / name),
        uuids=(str(uuid.uuid4()), str(uuid.uuid4())),
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        cmdline=COMMAND_LINE,
        accel="tcg",
        ram_file=True,
        boot_deadline=DEADLINE,
        ssh_ports=(port,),
        on_reset="restart",
    )
    file = scratch / f"{name}.spec"
    file.write_bytes(msgspec.json.encode(spec))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.deploy.open_guest", str(file), str(capabilities)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # what ends the tests must leave it time to end its guest
        cwd=ROOT,
    )
    guest = OpenGuest(process, keys, port, spec.guests[0].uuid)
    try:
        await guest.tell("look")  # answered once it is up
        yield guest
    finally:
        await guest.shell.close()
        assert process.stdin is not None
        process.stdin.close()
        await process.communicate()
    assert process.returncode == 0


async def main(file: Path, capabilities: Path) -> None:
    """Own the node until stdin ends."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    node = NodeMachines(
        msgspec.json.decode(file.read_bytes(), type=NodeSpec), capabilities=capabilities
    )
    await node.up()
    try:
        guest = node.guests["g1"]
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if word == "clean":
                await guest.put_back(DEADLINE)
            answer = {"pid": guest.pid, "console": guest.console.tail(1000)}
            print(msgspec.json.encode(answer).decode(), flush=True)
    finally:
        await node.down()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
