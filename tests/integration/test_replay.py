"""Log and replay on real guests: the past is searched while the node serves, and after its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from deploy.host.spawn import python_command, python_environment
from faultinject.section3 import predicates
from faultinject.services import ledger
from tests.conftest import left_qemus
from tests.waiting import wait_until
from voter.client import Client
from voter.commands.terminal import ExitCode

CONDITION = str(Path(predicates.__file__).parent / "ledger_condition.py")
REPLAYS = f"{gettempdir()}/tv-replay-"
"""How the scratch directories of replays begin."""
WRITES = 3000
"""Of about 250 bytes: at least one checkpoint."""


def trivisor(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_command("trivisor", *words), env=python_environment(), capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip


def replay(directory: str, *words: str) -> dict[str, Any]:
    """Replay and return the report, with the exit status as `exit`."""
    done = trivisor("replay", "--dir", directory, "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(done.stdout)) | {"exit": done.returncode}


async def transfer(address: str, count: int, *, exploit: int = -1) -> tuple[int, int]:
    """Send transfers, 32 at a time; return the numbers of the last and of the exploit."""
    queue, seqs = iter(range(count)), {}

    async with await Client.connect(address) as client:

        async def send() -> None:
            for at in queue:
                amount, user = (" -500", "mallory") if at == exploit else ("1", f"user-{at % 9}")
                body = json.dumps({"to": "bank", "amount": amount, "note": "x" * 150})
                answer = await client.request(
                    "POST", "/transfer", body.encode(), headers=[("x-user", user)], timeout=90
                )
                seqs[at] = answer.vote.seq

        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(send())
    return max(seqs.values()), seqs.get(exploit, 0)


@pytest.mark.vm
@pytest.mark.timeout(900)  # five guests boot one after another; on a busy host each takes a minute
def test_an_exploit_is_found_in_the_past_of_a_node_that_serves(
    scratch: Path, tmp_path: Path
) -> None:
    directory, file = str(scratch / "node"), tmp_path / "ledger.py"
    text = Path(ledger.__file__).read_text()
    file.write_text(text)
    patched = tmp_path / "patched.py"
    patched.write_text(text.replace('text.startswith("-")', '"-" in text'))
    assert patched.read_text() != text
    up = trivisor(
        "up", "--dir", directory, "--service", str(file), "--http", "127.0.0.1:0",
        "--keep-history", "64", "--json",
    )  # fmt: skip
    try:
        assert up.returncode == 0, up.stderr
        address = f"unix:{directory}/native.sock"
        last, exploit = asyncio.run(transfer(address, WRITES, exploit=700))
        before = json.loads(trivisor("status", "--dir", directory, "--json").stdout)

        found = replay(directory, "--predicate", CONDITION)
        assert found["exit"] == 1 and found["executed_by"] == "a guest"
        assert [(each["seq"], each["text"]) for each in found["matches"]] == [(exploit, "mallory")]
        assert (found["start"], found["last"], found["writes"]) == (0, last, WRITES)
        assert (found["compared"], found["differing"]) == (WRITES, 0)
        assert len(found["digests"]) >= 1 and all(each["same"] for each in found["digests"])

        status = json.loads(trivisor("status", "--dir", directory, "--json").stdout)
        assert [each["pid"] for each in status["guests"]] == [
            each["pid"] for each in before["guests"]
        ]
        assert status["status"] == "ready", "the live guests were not disturbed"

        with subprocess.Popen(
            python_command("trivisor", "replay", "--dir", directory),
            env=python_environment(), stderr=subprocess.PIPE, text=True,
        ) as interrupted:  # fmt: skip
            assert interrupted.stderr is not None
            assert "from checkpoint 0" in interrupted.stderr.readline()
            wait_until(lambda: left_qemus(REPLAYS), "its guest boots")
            interrupted.send_signal(signal.SIGINT)
            assert interrupted.wait(120) == ExitCode.INTERRUPTED
        assert not left_qemus(REPLAYS)

        os.kill(status["voter"]["pid"], signal.SIGKILL)
        later, _ = asyncio.run(transfer(address, 100))
        listed = json.loads(trivisor("replay", "--dir", directory, "--list", "--json").stdout)
        newest = listed["checkpoints"][-1]["seq"]
        assert newest > exploit
        found = replay(directory, "--predicate", CONDITION, "--from", str(newest))
        assert (found["exit"], found["last"], found["matching"]) == (0, later, 0)

        found = replay(directory, "--service", str(patched), "--until", str(exploit + 50))
        assert found["exit"] == 1 and found["differences"][0]["seq"] == exploit
        assert found["differences"][0]["replayed"].startswith("400")
    finally:
        trivisor("down", "--dir", directory)
    found = replay(directory, "--stand-in", "--predicate", CONDITION)
    assert [each["seq"] for each in found["matches"]] == [exploit]
    assert (found["last"], found["differing"]) == (later, 0)
