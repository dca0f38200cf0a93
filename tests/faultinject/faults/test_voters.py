"""Faults of the voter's process, on processes of our own that stand in for one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faultinject.faults import voters
from faultinject.faults.site import NotApplied

HOLD = "import sys; data = bytes(1 << 20); print('up', flush=True); sys.stdin.read(1)"


@pytest.fixture
def voter() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that waits."""
    words = [sys.executable, "-c", HOLD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"up\n"
        yield it
        it.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_killed_voter_has_ended_when_that_is_told(voter: subprocess.Popen[bytes]) -> None:
    applied = await voters.kill_voter(voter.pid)
    assert state(voter.pid) == "Z"  # it is ours to reap
    assert applied.proof == f"process {voter.pid} has ended"
    assert await applied.used() is True
    with pytest.raises(NotApplied, match="no voter"):
        await voters.kill_voter(voter.pid)


async def test_a_hung_voter_is_stopped_until_that_is_undone(voter: subprocess.Popen[bytes]) -> None:
    applied = await voters.hang_voter(voter.pid)
    assert state(voter.pid) == "T"
    await applied.undo()
    assert state(voter.pid) != "T"
    assert voter.stdin is not None
    voter.stdin.write(b"x")
    voter.stdin.flush()
    assert voter.wait(10) == 0
    await applied.undo()


async def test_bits_of_its_memory_are_flipped(voter: subprocess.Popen[bytes]) -> None:
    applied = await voters.flip_voter(voter.pid, 5, 20)
    assert "20 of 20 flipped bits read back" in applied.proof
    assert await applied.used() is None


async def test_a_voter_that_ends_while_it_is_flipped_was_hit(
    voter: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def pread(descriptor: int, count: int, place: int) -> bytes:
        nonlocal looks
        looks += count == 1
        if looks == 8:  # before the fourth flip and after it are the seventh and eighth look
            voter.kill()
            voter.wait()
        return read(descriptor, count, place)

    read = os.pread
    monkeypatch.setattr(os, "pread", pread)
    applied = await voters.flip_voter(voter.pid, 5, 20)
    assert "it ended after 3 of 20 flips" in applied.proof
    assert await applied.used() is True


async def test_a_dose_that_it_cannot_have_is_no_fault(voter: subprocess.Popen[bytes]) -> None:
    with pytest.raises(NotApplied, match="a dose is 1 to"):
        await voters.flip_voter(voter.pid, 5, 0)
    os.kill(voter.pid, 0)


async def test_where_there_is_no_voter_nothing_is_hit() -> None:
    with pytest.raises(NotApplied, match="no voter"):
        await voters.hang_voter(None)
