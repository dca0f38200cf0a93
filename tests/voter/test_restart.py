"""A voter that is killed again and again: what it acknowledged stays, and nothing is done twice.

The voter is a real process with a real journal; its replicas run in the test's process and outlive
it, as guests do.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from guests.protocol.message import Reply, encode_request
from tests.voter.agents import Agent
from tests.voter.node import until
from voter.client import Client
from voter.client.errors import RequestError
from voter.sockets import listen_unix

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
vote = "2/3"
{more}
[listen]
native_unix = "{directory}/native.sock"
control = "{directory}/control.sock"
[journal]
directory = "journal"
"""


class Voter:
    """A voter's process, started again on the same directory as often as wanted."""

    def __init__(self, directory: Path, agents: list[Agent], more: str) -> None:
        self.directory = directory
        self.process: asyncio.subprocess.Process | None = None
        text = CONFIG.format(directory=directory, more=more) + "".join(
            f'[[replica]]\nname = "g{number}"\nlink = "{agent.link}"\n'
            for number, agent in enumerate(agents, 1)
        )
        (directory / "voter.toml").write_text(text)
        self._socket = listen_unix(str(directory / "native.sock"))

    async def start(self) -> None:
        """Start it on the one listening socket, which outlives it (the LISTEN_FDS convention)."""
        number = self._socket.fileno()
        script = (
            "import os, sys\n"
            f"os.dup2({number}, 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1',"
            " LISTEN_FDNAMES='native-unix')\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, "-m", "voter", "--config"),
            str(self.directory / "voter.toml"),
            cwd=ROOT,
            pass_fds=(number,),
            stderr=asyncio.subprocess.PIPE,
        )

    async def kill(self) -> None:
        """End it as nothing can be ended more suddenly."""
        assert self.process is not None
        self.process.kill()
        await self.process.communicate()

    async def end(self) -> None:
        """Stop it if it still runs."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            await self.process.communicate()
        self._socket.close()

    async def client(self) -> Client:
        """Return a client that goes on through the voter's ends."""
        return await Client.connect(f"unix:{self.directory / 'native.sock'}", timeout=20)


@asynccontextmanager
async def running(scratch: Path, more: str = "") -> AsyncIterator[tuple[Voter, list[Agent]]]:
    agents = [Agent(scratch / f"g{number}.sock") for number in (1, 2, 3)]
    for agent in agents:
        await agent.start()
    voter = Voter(scratch, agents, more)
    await voter.start()
    try:
        yield voter, agents
    finally:
        await voter.end()
        for agent in agents:
            agent.stop()
        await until(lambda: not any(agent.connections for agent in agents))


def more_than(seen: list[int], count: int) -> bool:
    return len(seen) > count


async def add(client: Client) -> int:
    """Add one to the counter; return what it is then."""
    answer = await client.request("POST", "/kv/n?increment=1", timeout=30)
    assert answer.status == 200, answer
    return int(answer.body)


async def test_no_increment_is_lost_or_done_twice_while_the_voter_is_killed(
    scratch: Path,
) -> None:
    async with running(scratch) as (voter, _), await voter.client() as client:
        seen = [await add(client)]
        done = False

        async def go_on() -> None:
            while not done:
                seen.append(await add(client))

        workers = [asyncio.create_task(go_on()) for _ in range(4)]
        for _ in range(3):
            before = len(seen)
            await until(partial(more_than, seen, before + 40), "load")
            await voter.kill()
            await voter.start()
        before = len(seen)
        await until(partial(more_than, seen, before + 40), "load")
        done = True
        await asyncio.gather(*workers)
        total = await add(client)
        assert sorted(seen) == list(range(1, total))


async def test_after_the_voter_and_all_replicas_have_died_everything_acknowledged_is_there(
    scratch: Path,
) -> None:
    async with running(scratch, "[limits]\nmarker_every = 50\ncheckpoint_bytes = 4096") as (
        voter,
        agents,
    ):
        async with await voter.client() as client:
            for number in range(120):
                await client.request("PUT", f"/kv/key{number}", b"%d" % number)
            await voter.kill()
            for agent in agents:
                agent.restart()
            await voter.start()
            for number in range(120):
                answer = await client.request("GET", f"/kv/key{number}")
                assert answer.body == b"%d" % number
        assert list((scratch / "journal").glob("checkpoint-*"))


async def test_another_nodes_journal_is_refused_by_name(scratch: Path) -> None:
    async with running(scratch) as (voter, _):
        async with await voter.client() as client:
            await add(client)
        await voter.kill()
        config = scratch / "voter.toml"
        config.write_text(config.read_text().replace('"journal"', '"journal"\nnode = "another"'))
        await voter.start()
        assert voter.process is not None
        _, words = await voter.process.communicate()
        assert voter.process.returncode == 3
        assert b"is of node 'node', not of 'another'" in words


async def test_a_reply_is_the_same_for_whoever_asks_again_after_the_end(scratch: Path) -> None:
    async with running(scratch) as (voter, _), await voter.client() as client:
        first = await client.ask(encode_request("POST", "/kv/n?increment=1"))
        await voter.kill()
        await voter.start()
        again = await client.ask(encode_request("POST", "/kv/n?increment=1"))
        assert [Reply.decode(raw).body for _, raw in (first, again)] == [b"1", b"2"]
        with suppress(RequestError):
            await client.request("GET", "/kv/n")
