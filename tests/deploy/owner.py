"""Brings a node up in a process of its own, says so, and waits: a test kills it, or ends it.

Run as `python -m tests.deploy.owner SPEC.json CAPABILITIES`; on "down" at its stdin it ends the
node, on "let go" it leaves the guests running.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from deploy.machine.node import NodeMachines
from deploy.machine.spec import NodeSpec

__all__ = ["main"]


async def main(path: Path, capabilities: Path) -> None:
    """Own the node until told otherwise."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    node = NodeMachines(
        msgspec.json.decode(path.read_bytes(), type=NodeSpec), capabilities=capabilities
    )
    arrivals = await node.up()
    state = {
        name: {"pid": guest.pid, "how": arrivals[name].how} for name, guest in node.guests.items()
    }
    print(msgspec.json.encode(state).decode(), flush=True)
    word = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if word == "let go":
        await node.let_go()
    else:
        await node.down()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
