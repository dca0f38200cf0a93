"""A voter that is killed with everything under way, and goes on from its journal: nothing is lost,
nothing is done twice, and clients of the library notice a pause only.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from guests.protocol.message import Reply, encode_request
from tests.voter.http_client import HttpClient, Response
from tests.voter.node import EXEC_KV
from voter.client import Client
from voter.client.errors import ConnectionFailed

ROOT = Path(__file__).parents[3]
WORKERS = 8
KILLS = 2
PATIENCE = 30.0


class Voter:
    """A voter in a process of its own, with a journal, before three local processes."""

    def __init__(self, directory: Path) -> None:
        self.native = f"unix:{directory / 'n.sock'}"
        self.http = directory / "h.sock"
        self.config = directory / "voter.toml"
        self.log = directory / "log"
        self.process: asyncio.subprocess.Process | None = None
        replicas = "".join(
            f'[[replica]]\nname = "g{number}"\nlink = "{EXEC_KV}"\n' for number in (1, 2, 3)
        )
        self.config.write_text(
            f'vote = "2/3"\n[journal]\ndirectory = "journal"\n'
            f'[listen]\nnative_unix = "{directory / "n.sock"}"\nhttp = "127.0.0.1:0"\n{replicas}'
        )

    async def start(self) -> None:
        """Start it; who connects before it listens is refused."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "voter", "--config", str(self.config), cwd=ROOT, stderr=log
            )

    async def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def connect(self) -> Client:
        """A client, as soon as there is somebody."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await Client.connect(self.native)
                except ConnectionFailed:
                    await asyncio.sleep(0.02)  # it starts: there is no event for its socket


@asynccontextmanager
async def voter_of(directory: Path) -> AsyncIterator[Voter]:
    voter = Voter(directory)
    await voter.start()
    try:
        yield voter
    finally:
        if voter.process is not None and voter.process.returncode is None:
            await voter.kill()


def increment(name: str) -> bytes:
    return encode_request("POST", f"/kv/{name}?increment=1")


@pytest.mark.timeout(120)
async def test_kill_9_costs_clients_a_pause_and_nothing_else(scratch: Path) -> None:
    counts = [0] * WORKERS
    going = True
    async with voter_of(scratch) as voter, await voter.connect() as client:

        async def work(worker: int) -> None:
            while going:
                _, raw = await client.ask(increment(f"w{worker}"), timeout=PATIENCE)
                counts[worker] += 1
                assert Reply.decode(raw).body == b"%d" % counts[worker]

        async def until_more(number: int) -> None:
            wanted = sum(counts) + number
            while sum(counts) < wanted:
                assert not any(task.done() for task in tasks), "a worker has failed"
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(work(worker)) for worker in range(WORKERS)]
        try:
            async with asyncio.timeout(PATIENCE * 3):
                for _ in range(KILLS):
                    await until_more(100)
                    await voter.kill()
                    await voter.start()
                await until_more(100)
                going = False
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        for worker, count in enumerate(counts):
            answer = await client.request("GET", f"/kv/w{worker}")
            assert answer.body == b"%d" % count


@pytest.mark.timeout(120)
async def test_an_idempotency_key_outlives_the_voter(scratch: Path) -> None:
    def port() -> int:
        lines = voter.log.read_text().splitlines()
        listening = [line for line in lines if '"listening"' in line and '"http"' in line]
        return int(listening[-1].rpartition("127.0.0.1")[2].split(",")[1].split("]")[0])

    async def add(key: str) -> Response:
        client = await voter.connect()  # it listens, on all sockets
        await client.request("GET", "/kv/n")  # and has a majority
        await client.close()
        async with await HttpClient.open(port()) as http:
            headers = ("Idempotency-Key", key)
            return await http.ask("POST", "/kv/n?increment=1", b"", headers)

    async with voter_of(scratch) as voter:
        first = await add("k")
        assert first.body == b"1"
        await voter.kill()
        await voter.start()
        again = await add("k")
        assert (again.body, again.headers["etag"]) == (b"1", first.headers["etag"])
        assert again.headers["idempotency-replayed"] == "true"
        assert (await add("other")).body == b"2"
