"""Reads that kill or hang every replica, on real guests; and a service file that changed."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from deploy.host.spawn import python_command, python_environment
from voter.client import Client
from voter.client.errors import RequestError

SERVICE = """
import os
import time

from guests.service import Context, Reply, Request, Service


class Fragile(Service):
    name = "fragile"
    count = 0

    def apply(self, request: Request, context: Context) -> Reply:
        if request.target == "/die":
            os._exit(3)
        if request.target == "/slow":
            time.sleep(6)
        self.count += request.method == "POST"
        return Reply(200, f"{self.count}\\n")

    def snapshot(self):
        yield b"%d" % self.count

    def restore(self, state):
        self.count = int(state or 0)
"""
PATIENCE = 90.0
"""Seconds for one request on a busy machine."""


def _trivisor(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_command("trivisor", *words), env=python_environment(), capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip


class Bystander:
    """A client without retries.  ``outages`` counts runs of consecutive failures."""

    def __init__(self, address: str) -> None:
        self.outages = 0
        self.answers = asyncio.Queue[int]()
        self.stop = asyncio.Event()
        self._address = address

    async def run(self) -> None:
        failed = False
        async with await Client.connect(self._address, retry=False) as client:
            while not self.stop.is_set():
                try:
                    answer = await client.request("POST", "/", timeout=PATIENCE)
                    self.answers.put_nowait(answer.status)
                    failed = False
                except RequestError:
                    self.outages += not failed
                    failed = True
                await asyncio.sleep(0.05)


async def _read_and_watch(address: str, target: str) -> tuple[list[int], Bystander]:
    """Read twice while a bystander makes requests; return the statuses and the bystander."""
    bystander = Bystander(address)
    async with asyncio.TaskGroup() as group:
        group.create_task(bystander.run())
        async with await Client.connect(address) as client:
            answers = [await client.request("GET", target, timeout=PATIENCE) for _ in range(2)]
            for _ in range(bystander.answers.qsize() + 10):  # the service goes on
                await bystander.answers.get()
        bystander.stop.set()
    return [answer.status for answer in answers], bystander


@pytest.mark.vm
def test_deadly_reads_disturb_once_and_a_changed_service_is_refused(
    scratch: Path, tmp_path: Path
) -> None:
    directory, file = str(scratch / "fragile"), tmp_path / "fragile.py"
    file.write_text(SERVICE)
    words = ("up", "--dir", directory, "--service", str(file), "--http", "127.0.0.1:0", "--json")
    up = _trivisor(*words)
    try:
        assert up.returncode == 0, up.stderr
        address = f"unix:{directory}/native.sock"
        for target in ("/die", "/slow"):
            statuses, bystander = asyncio.run(_read_and_watch(address, target))
            assert statuses == [500, 500]
            assert bystander.outages <= 1
        status = json.loads(_trivisor("status", "--dir", directory, "--json").stdout)
        assert status["status"] in ("ready", "degraded")
    finally:
        _trivisor("down", "--dir", directory)
    file.write_text(SERVICE + "# changed\n")
    refused = _trivisor(*words)
    assert refused.returncode != 0
    assert "the service differs from the one that wrote the journal" in refused.stderr
    assert "--accept-service" in refused.stderr
    assert (Path(directory) / "journal" / "identity.json").exists()
