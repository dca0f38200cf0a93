"""What idle connections cost: so many HTTP connections held open by another process, the
voter's memory before and after.

``python -m faultinject.bench.idle PORT NUMBER`` is that other process: it prints ``ready``, holds
until its input ends, then makes one request on the first and the last connection and prints their
status lines.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

import msgspec

from faultinject.bench.usage import resident

__all__ = ["Idle", "hold"]

REQUEST = b"GET /kv/idle HTTP/1.1\r\nhost: bench\r\n\r\n"


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """Connections held, and the voter's resident memory in bytes before and while they are."""

    connections: int
    before: int
    holding: int
    answered: bool  # both probes on held connections were answered

    @property
    def each(self) -> float:
        """Bytes of the voter's memory for each connection."""
        return (self.holding - self.before) / self.connections


async def hold(port: int, number: int, pid: int) -> Idle:
    """Have ``number`` connections held to the voter ``pid``."""
    before = resident(pid)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faultinject.bench.idle", str(port), str(number),
        cwd=Path(__file__).resolve().parents[2],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(120):
        line = await process.stdout.readline()
    held = int(line.split()[1]) if line.startswith(b"ready") else 0
    holding = resident(pid)
    process.stdin.close()
    async with asyncio.timeout(30):
        rest = await process.stdout.read()
        await process.wait()
    answered = rest.count(b"HTTP/1.1 ") == 2
    return Idle(connections=held, before=before, holding=holding, answered=answered)


async def _hold_here(port: int, number: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    for _ in range(number):
        streams.append(await asyncio.open_connection("127.0.0.1", port))
    print(f"ready {len(streams)}", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    for reader, writer in (streams[0], streams[-1]):
        writer.write(REQUEST)
        print((await reader.readline()).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_hold_here(int(sys.argv[1]), int(sys.argv[2])))
