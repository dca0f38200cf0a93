"""Faults of a process on the host, with substitute processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faultinject.faults import processes
from faultinject.faults.site import NotApplied

HOLD = "import sys; data = bytes(1 << 20); print('up', flush=True); sys.stdin.read(1)"


@pytest.fixture
def voter() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that waits."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"up\n"
        yield it
        it.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_kill_returns_when_the_process_has_ended(voter: subprocess.Popen[bytes]) -> None:
    active = await processes.kill(voter.pid, "the voter")
    assert state(voter.pid) == "Z"  # this process must reap it
    assert active.proof == f"process {voter.pid} has ended"
    assert await active.activated() is True
    with pytest.raises(NotApplied, match="no voter"):
        await processes.kill(voter.pid, "the voter")


async def test_hang_stops_the_process_until_undone(voter: subprocess.Popen[bytes]) -> None:
    active = await processes.hang(voter.pid, "the voter")
    assert state(voter.pid) == "T"
    await active.undo()
    assert state(voter.pid) != "T"
    assert voter.stdin is not None
    voter.stdin.write(b"x")
    voter.stdin.flush()
    assert voter.wait(10) == 0
    await active.undo()


async def test_flip_voter_flips_bits_of_its_memory(voter: subprocess.Popen[bytes]) -> None:
    active = await processes.flip_voter(voter.pid, 5, 20)
    assert "20 of 20 flipped bits read back" in active.proof
    assert await active.activated() is None


async def test_flip_voter_is_applied_when_the_voter_ends_meanwhile(
    voter: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def pread(descriptor: int, count: int, place: int) -> bytes:
        nonlocal reads
        reads += count == 1
        if reads == 8:  # the seventh and eighth reads are before and after the fourth flip
            voter.kill()
            voter.wait()
        return read(descriptor, count, place)

    read = os.pread
    monkeypatch.setattr(os, "pread", pread)
    active = await processes.flip_voter(voter.pid, 5, 20)
    assert "it ended after 3 of 20 flips" in active.proof
    assert await active.activated() is True


async def test_flip_voter_is_not_applied_when_the_dose_is_invalid(
    voter: subprocess.Popen[bytes],
) -> None:
    with pytest.raises(NotApplied, match="a dose is 1 to"):
        await processes.flip_voter(voter.pid, 5, 0)
    os.kill(voter.pid, 0)
