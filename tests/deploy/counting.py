"""A client that increments counters and checks each reply.

``python -m tests.deploy.counting SOCKET`` prints each acknowledged number on its own line until its
standard input ends.  A request that fails, is lost or is executed twice ends it with a traceback.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from voter.client import Client

__all__ = ["main"]

WORKERS = 4
SILENCE = 60.0
"""Seconds for one request, with all its attempts."""


async def _count(path: Path, worker: int, ended: asyncio.Event) -> None:
    key = f"/kv/n-{time.time_ns()}-{worker}"
    async with await Client.connect(f"unix:{path}", timeout=SILENCE) as client:
        number = 0
        while not ended.is_set():
            answer = await client.request("POST", f"{key}?increment=1", timeout=SILENCE)
            number += 1
            if answer.body != b"%d" % number:
                raise AssertionError(f"{answer.body!r} not {number}: lost or executed twice")
            print(number, flush=True)
        answer = await client.request("GET", key, timeout=SILENCE)
        if answer.body != b"%d" % number:
            raise AssertionError(f"{number} were acknowledged, and there are {answer.body!r}")


async def main(path: Path) -> None:
    """Count until standard input ends."""
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for worker in range(WORKERS):
            group.create_task(_count(path, worker, ended))
        await asyncio.to_thread(sys.stdin.read)
        ended.set()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
