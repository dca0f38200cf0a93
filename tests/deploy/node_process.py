"""A node's machines in a process of their own, for tests: an embedded libvirt is one a process.

``python -m tests.deploy.node_process SPEC.json CAPABILITIES`` brings the node up and answers each
command on its standard input ("state", "restore") with a line of JSON: by guest, its pid, how it
came up and its console.  "release" leaves the guests running; "down", or the end of the input, ends
them.  So nothing remains after the tests are killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import NodeSpec

__all__ = ["main"]


async def main(path: Path, capabilities: Path) -> None:
    """Own the node until "release", "down" or the end of the input."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    spec = msgspec.json.decode(path.read_bytes(), type=NodeSpec)
    node = NodeMachines(spec, capabilities=capabilities)
    arrivals = await node.up()
    command = "down"
    try:
        while True:
            state = {
                name: {
                    "pid": guest.pid, "how": arrivals[name].how, "console": guest.tail(1000),
                }
                for name, guest in node.guests.items()
            }  # fmt: skip
            print(msgspec.json.encode(state).decode(), flush=True)
            command = (await asyncio.to_thread(sys.stdin.readline)).strip()
            if command == "restore":
                await asyncio.gather(*(guest.restore() for guest in node.guests.values()))
            elif command != "state":
                break
    finally:
        await (node.release() if command == "release" else node.down())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
