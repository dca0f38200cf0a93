"""A voter that is killed again and again: what it acknowledged stays, and nothing is done twice.

The voter is a real process with a real journal.  Its replicas run in the test's process and outlive
it, as guests do; so do the listening sockets.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from tests.voter.agents import Agent
from tests.voter.http_client import HttpClient, Response
from tests.waiting import until
from voter.client import Client
from voter.sockets import listen_unix

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
vote = "2/3"
{more}
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
        self.http = directory / "http.sock"
        self._sockets = [listen_unix(str(directory / "native.sock")), listen_unix(str(self.http))]

    async def start(self) -> None:
        """Start it on the listening sockets, which outlive it (the LISTEN_FDS convention)."""
        numbers = [sock.fileno() for sock in self._sockets]
        script = (
            "import fcntl, os, sys\n"
            f"copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in {numbers}]\n"
            "for at, number in enumerate(copies, 3): os.dup2(number, at)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2',"
            " LISTEN_FDNAMES='native-unix:http')\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, "-m", "voter", "--config"),
            str(self.directory / "voter.toml"),
            cwd=ROOT,
            pass_fds=numbers,
            stderr=asyncio.subprocess.PIPE,
        )

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        await self.process.communicate()

    async def end(self) -> None:
        """Stop it if it still runs."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            await self.process.communicate()
        for sock in self._sockets:
            sock.close()

    async def client(self) -> Client:
        """Return a client that retries while the voter is down."""
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

        async def add_repeatedly() -> None:
            while not done:
                seen.append(await add(client))

        workers = [asyncio.create_task(add_repeatedly()) for _ in range(4)]
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


async def test_voters_that_start_on_a_full_disk_answer_reads_and_lose_nothing(
    scratch: Path, tmpfs: Callable[[str], Path]
) -> None:
    """Writes under way when the disk becomes full may end the voter, and no voter after it."""
    disk = tmpfs("size=28m")
    async with running(scratch) as (voter, _), AsyncExitStack() as stack:
        await voter.kill()
        config = scratch / "voter.toml"
        small = f'"{disk / "journal"}"\nsegment = {8 << 20}'
        config.write_text(config.read_text().replace('"journal"', small))
        await voter.start()
        codes: list[int | None] = []
        kept: list[int] = []

        async def supervise() -> None:
            while voter.process is not None:
                await voter.process.communicate()
                codes.append(voter.process.returncode)
                await voter.start()

        async def write(number: int) -> None:
            body = bytes([number]) * (1 << 20)
            answer = await client.request("PUT", f"/kv/{number}", body, timeout=120)
            assert answer.status == 201
            kept.append(number)

        async def read_all() -> None:
            for number in [*kept]:
                answer = await client.request("GET", f"/kv/{number}", timeout=30)
                assert answer.body == bytes([number]) * (1 << 20)
            assert (await client.request("GET", "/kv/none", timeout=30)).status == 404

        client = await stack.enter_async_context(await voter.client())
        await read_all()
        supervisor = asyncio.create_task(supervise())
        stack.push_async_callback(asyncio.wait, [supervisor])
        stack.callback(supervisor.cancel)
        writers = [asyncio.create_task(write(number)) for number in range(1, 13)]
        await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(4):
            await read_all()
            process, count = voter.process, len(codes)
            assert process is not None
            process.kill()
            await until(lambda: len(codes) > count)  # noqa: B023
        await read_all()
        assert codes.count(3) <= 1
        assert len(kept) < 12
        async with await HttpClient.open_unix(voter.http) as http:
            answer = await http.ask("PUT", "/kv/none", b"")
            assert (answer.status, b"No space left" in answer.body) == (503, True)
        tmpfs("size=200m")
        await asyncio.gather(*writers)
        await read_all()


async def test_journal_of_another_node_is_refused(scratch: Path) -> None:
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


async def test_an_idempotency_key_survives_a_killed_voter(scratch: Path) -> None:
    async with running(scratch) as (voter, _):

        async def post(key: str) -> Response:
            async with await voter.client() as client:
                await client.request("GET", "/kv/n")  # waits for a majority
            async with await HttpClient.open_unix(voter.http) as http:
                header = ("Idempotency-Key", key)
                return await http.ask("POST", "/kv/n?increment=1", b"", header)

        first = await post("k")
        assert first.body == b"1"
        await voter.kill()
        await voter.start()
        again = await post("k")
        assert (again.body, again.headers["etag"]) == (b"1", first.headers["etag"])
        assert again.headers["idempotency-replayed"] == "true"
        assert (await post("other")).body == b"2"
