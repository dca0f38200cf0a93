"""A node's machines in a process of their own, for tests: an embedded libvirt is one a process.

``python -m tests.deploy.node_process SPEC.json CAPABILITIES`` brings the node up and answers each
command on its standard input ("state", "restore", "start GUEST clone|boot SHARE", "end GUEST") with
a line of JSON: by guest, its pid, how it came up, its console, its state, and the error of the last
command.  "release" leaves the guests running; "down", or the end of the input, ends them.  So
nothing remains after the tests are killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import NodeSpec, StartMethod

__all__ = ["main"]


async def main(path: Path, capabilities: Path) -> None:
    """Own the node until "release", "down" or the end of the input."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    spec = msgspec.json.decode(path.read_bytes(), type=NodeSpec)
    node = NodeMachines(spec, capabilities=capabilities)
    arrivals = await node.up()
    command, error = "down", ""
    try:
        while True:
            state = {
                name: {
                    "pid": guest.pid, "how": arrivals[name].how, "console": guest.tail(1000),
                    "state": guest.state, "error": error, "arrival": arrivals[name],
                }
                for name, guest in node.guests.items()
            }  # fmt: skip
            print(msgspec.json.encode(state).decode(), flush=True)
            command = (await asyncio.to_thread(sys.stdin.readline)).strip()
            error, words = "", command.split()
            try:
                if command == "restore":
                    await asyncio.gather(*(guest.restore() for guest in node.guests.values()))
                elif words[:1] == ["start"]:
                    arrivals[words[1]] = await node.start(
                        words[1], by=cast(StartMethod, words[2]), share=int(words[3])
                    )
                elif words[:1] == ["end"]:
                    await node.end(words[1])
                elif command != "state":
                    break
            except DeployError as problem:
                error = f"{problem.error_code}: {problem}"
    finally:
        await (node.release() if command == "release" else node.down())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
