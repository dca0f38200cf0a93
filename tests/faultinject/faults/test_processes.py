"""Faults of a process on the host, with substitute processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from faultinject.faults import processes
from faultinject.faults.site import NotApplied


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_kill_returns_when_the_process_has_ended(process: subprocess.Popen[bytes]) -> None:
    active = await processes.kill(process.pid, "the voter")
    assert state(process.pid) == "Z"  # this process must reap it
    assert active.proof == f"process {process.pid} has ended"
    assert await active.activated() is True
    with pytest.raises(NotApplied, match="no voter"):
        await processes.kill(process.pid, "the voter")


async def test_hang_stops_the_process_until_undone(process: subprocess.Popen[bytes]) -> None:
    active = await processes.hang(process.pid, "the voter")
    assert state(process.pid) == "T"
    await active.undo()
    assert state(process.pid) != "T"
    assert process.stdin is not None
    process.stdin.write(b"x")
    process.stdin.flush()
    assert process.wait(10) == 0
    await active.undo()


async def test_flip_voter_flips_bits_of_its_memory(process: subprocess.Popen[bytes]) -> None:
    active = await processes.flip_voter(process.pid, 5, 20)
    assert "20 of 20 flipped bits read back" in active.proof
    assert await active.activated() is None


async def test_flip_voter_is_applied_when_the_voter_ends_meanwhile(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def pread(descriptor: int, count: int, place: int) -> bytes:
        nonlocal reads
        reads += count == 1
        if reads == 8:  # the seventh and eighth reads are before and after the fourth flip
            process.kill()
            process.wait()
        return read(descriptor, count, place)

    read = os.pread
    monkeypatch.setattr(os, "pread", pread)
    active = await processes.flip_voter(process.pid, 5, 20)
    assert "it ended after 3 of 20 flips" in active.proof
    assert await active.activated() is True


async def test_flip_voter_is_not_applied_when_the_dose_is_invalid(
    process: subprocess.Popen[bytes],
) -> None:
    with pytest.raises(NotApplied, match="a dose is 1 to"):
        await processes.flip_voter(process.pid, 5, 0)
    os.kill(process.pid, 0)
