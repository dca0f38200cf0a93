"""Finding and watching processes, shown on processes that stand in for QEMU."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.process import QemuProcess, bound_files, find_qemu, ram_file, resident_bytes

UUID = "aaaaaaaa-0000-4000-8000-00000000000f"
WAIT = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def stand_in(scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process with a command line like that of a QEMU of ours."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, "-uuid", UUID, "-blockdev", f'{{"f":"{scratch}/g1.qcow2"}}'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # as QEMU: else its priority would be that of these tests
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_it_takes_uuid_and_path_to_be_ours(
    stand_in: subprocess.Popen[bytes], scratch: Path
) -> None:
    assert find_qemu(UUID, naming=f"{scratch}/g1.qcow2") == stand_in.pid
    assert find_qemu(UUID, naming="/elsewhere/g1.qcow2") is None
    assert find_qemu(UUID.replace("f", "e"), naming=f"{scratch}/g1.qcow2") is None


async def test_an_exit_is_seen_at_once_and_told_once(stand_in: subprocess.Popen[bytes]) -> None:
    told: list[int] = []
    process = QemuProcess(stand_in.pid, lambda: told.append(1))
    before = process.alive
    process.kill()
    async with asyncio.timeout(5):
        await process.gone()
    assert (before, process.alive) == (True, False)
    assert told == [1]
    process.kill()  # nothing to kill, and nobody else is hit
    process.close()


async def test_who_let_go_is_not_told(stand_in: subprocess.Popen[bytes]) -> None:
    told: list[int] = []
    process = QemuProcess(stand_in.pid, lambda: told.append(1))
    process.close()
    stand_in.kill()
    stand_in.wait()
    await asyncio.sleep(0)
    assert told == []
    assert not process.alive


async def test_a_stopped_process_can_be_woken(stand_in: subprocess.Popen[bytes]) -> None:
    process, pid = QemuProcess(stand_in.pid, lambda: None), stand_in.pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED)
    process.wake()
    assert await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WCONTINUED) is not None
    process.close()


def test_memory_and_ram_file(stand_in: subprocess.Popen[bytes]) -> None:
    assert resident_bytes(stand_in.pid) > 1 << 20
    with pytest.raises(FileNotFoundError, match="no shared memory file"):
        ram_file(stand_in.pid, size=128 << 20)
    bound_files(stand_in.pid, limit=5 << 20)
    assert resource.prlimit(stand_in.pid, resource.RLIMIT_FSIZE) == (5 << 20, 5 << 20)
