"""QEMU processes are found, watched, killed and limited; its debug stub is detected."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.machine.debug_stub import monitor_word, why_no_stub
from deploy.machine.qemu import (
    QemuProcess,
    find_qemu,
    last_message,
    limit_file_size,
    make_snapshot_disk,
    ram_file,
    suits_io_uring,
)
from tests.deploy.conftest import NASTY
from tests.errors import logs, raises

UUID = "aaaaaaaa-0000-4000-8000-00000000000f"
WAIT = "import sys; disk = open(sys.argv[4]); print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def qemu(scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process with command line and open disk like those of a node's QEMU."""
    disk = scratch / "g1.qcow2"
    disk.touch()
    with subprocess.Popen(
        [sys.executable, "-c", WAIT, "-uuid", UUID, "-blockdev", disk],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_stub_listens_in_any_directory(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU itself reads the option back: a wrong one would make another path or an error."""
    directory = scratch / f"{NASTY},,=,"
    directory.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    assert why_no_stub() == ""


def test_last_message_is_that_of_the_last_qemu(scratch: Path) -> None:
    log = scratch / "g1.log"
    assert "no message" in last_message(log)
    log.write_text(
        "2026-01-01: starting up libvirt version: 9.0.0\n/usr/bin/qemu-system-x86_64 \\\n"
        "qemu-system-x86_64: the first\nqemu-system-x86_64: no room\n2026-01-01: shutting down\n"
    )
    assert last_message(log) == ": qemu-system-x86_64: no room"
    with log.open("a") as file:
        file.write("2026-01-02: starting up libvirt version: 9.0.0\n2026-01-02: shutting down\n")
    assert "no message" in last_message(log)


def test_monitor_reads_a_path_as_one_word() -> None:
    assert monitor_word('a "b" c\\d') == '"a \\"b\\" c\\\\d"'


def test_qemu_is_found_by_uuid_and_open_disk_together(
    qemu: subprocess.Popen[bytes], scratch: Path, tmp_path: Path
) -> None:
    disk, moved = scratch / "g1.qcow2", tmp_path / "g1.qcow2"
    assert find_qemu(UUID, disk=disk) == qemu.pid
    assert find_qemu(UUID, disk=Path("/elsewhere/g1.qcow2")) is None
    assert find_qemu(UUID.replace("f", "e"), disk=disk) is None
    disk.rename(moved)
    disk.touch()  # a copy, or another node's
    assert find_qemu(UUID, disk=moved) == qemu.pid
    assert find_qemu(UUID, disk=disk) is None
    moved.unlink()
    assert find_qemu(UUID, disk=moved) == qemu.pid


async def test_exit_is_reported_once(qemu: subprocess.Popen[bytes]) -> None:
    exits: list[int] = []
    process = QemuProcess(qemu.pid, lambda: exits.append(1))
    before = process.alive
    process.kill()
    async with asyncio.timeout(5):
        await process.wait()
    assert (before, process.alive) == (True, False)
    assert exits == [1]
    process.kill()  # signals nothing, and no other process
    process.close()


async def test_exit_is_not_reported_after_close(qemu: subprocess.Popen[bytes]) -> None:
    exits: list[int] = []
    process = QemuProcess(qemu.pid, lambda: exits.append(1))
    process.close()
    qemu.kill()
    qemu.wait()
    await asyncio.sleep(0)
    assert exits == []
    assert not process.alive


async def test_wake_continues_a_stopped_process(qemu: subprocess.Popen[bytes]) -> None:
    process, pid = QemuProcess(qemu.pid, lambda: None), qemu.pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED)
    process.wake()
    assert await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WCONTINUED) is not None
    process.close()


def test_file_size_is_limited_and_a_missing_ram_file_is_an_error(
    qemu: subprocess.Popen[bytes],
) -> None:
    with pytest.raises(FileNotFoundError, match="no shared memory file"):
        ram_file(qemu.pid, size=128 << 20)
    limit_file_size(qemu.pid, memory_mib=128)
    assert resource.prlimit(qemu.pid, resource.RLIMIT_FSIZE) == (320 << 20, 320 << 20)


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_debians_qemu_has_a_debug_stub() -> None:
    assert why_no_stub() == ""


def test_qemus_own_error_is_returned_without_a_debug_stub(scratch: Path) -> None:
    fake = scratch / "qemu"
    fake.write_text("#!/bin/sh\necho 'starting' >&2\necho \"-gdb: not compiled in\" >&2\nexit 1\n")
    fake.chmod(0o755)
    assert why_no_stub(str(fake)) == "-gdb: not compiled in"
    assert "No such file" in why_no_stub(str(scratch / "none"))


async def test_io_uring_is_not_used_for_a_disk_that_ends_within_a_sector(tmp_path: Path) -> None:
    disk = tmp_path / "g1.qcow2"
    assert not suits_io_uring(disk)
    await make_snapshot_disk(disk)
    assert suits_io_uring(disk)
    disk.write_bytes(disk.read_bytes()[:-1])  # QEMU 7.2 would wait for the rest for ever
    assert not suits_io_uring(disk)


async def test_snapshot_disk_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with raises("TV0121", match="cannot make"):
        await make_snapshot_disk(tmp_path / "none" / "g1.qcow2")


def test_limit_that_cannot_be_set_is_logged() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with logs("TV0120"):
        limit_file_size(ended.pid, memory_mib=128)
