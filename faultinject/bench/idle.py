"""What idle HTTP connections cost the voter."""

from __future__ import annotations

import asyncio

import msgspec

from deploy.host.spawn import python_command
from faultinject.bench import rig
from faultinject.bench.usage import resident

__all__ = ["IdleCost", "hold_idle"]


class IdleCost(msgspec.Struct, frozen=True, kw_only=True):
    """Idle connections held, and the voter's resident memory in bytes before and meanwhile."""

    connections: int
    before: int
    holding: int
    answered: bool  # the first and the last connection still answered a request

    @property
    def each(self) -> float:
        """The voter's memory for each connection, bytes."""
        return (self.holding - self.before) / self.connections


async def hold_idle(voter: rig.VoterProcess, number: int) -> IdleCost:
    """Have another process hold idle connections to a voter, and measure the voter's memory."""
    before = resident(voter.pid)
    process = await asyncio.create_subprocess_exec(
        *python_command("faultinject.bench.peers", "idle", str(voter.http), str(number)),
        cwd=rig.ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(120):
        line = await process.stdout.readline()
    if line.strip() != b"ready":
        raise RuntimeError(f"{number} idle connections could not be opened")
    holding = resident(voter.pid)
    process.stdin.close()
    async with asyncio.timeout(30):
        statuses = await process.stdout.read()
        await process.wait()
    return IdleCost(
        connections=number, before=before, holding=holding,
        answered=statuses.count(b"HTTP/1.1 ") == 2,
    )  # fmt: skip
