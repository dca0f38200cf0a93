"""A full, failing or moved directory ends nothing, and repair resumes when it can be written."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.node.records import Layout
from tests.deploy.supervisor.running import Running, plan
from tests.errors import logs
from tests.waiting import until

ERRORS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.EACCES]


@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
async def test_node_serves_while_nothing_can_be_written_and_is_repaired_later(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    node, storage = plain_node, plain_node.supervisor.storage
    guest, before = node.guests["g2"], await node.voter_pid()

    def fail(*args: object, **options: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as failing:
        failing.setattr(Layout, "write", fail)
        failing.setattr("deploy.supervisor.storage.write_whole", fail)
        failing.setattr("deploy.host.files.LogFile.trim", fail)
        os.kill(before, signal.SIGKILL)
        with logs("TV0731"):
            await until(lambda: bool(storage.problem))
        await guest.kill()
        async with await node.client() as client:
            assert (await client.request("PUT", "/kv/a", b"1", timeout=20.0)).status == 201
        status = await node.status()
        assert os.strerror(number) in status["storage"]
        assert status["voter"]["pid"] not in (None, before)
        assert guest.restores == 0
        assert node.layout.read_running().processes["voter"].pid == before
    await until(node.all_active)
    assert guest.restores == 1
    assert (await node.status())["storage"] is None
    voter = await node.voter_pid()
    await until(lambda: node.layout.read_running().processes["voter"].pid == voter)
    assert [node.events(name) != [] for name in ("storage failed", "storage works again")] == [
        True, True,
    ]  # fmt: skip


async def test_repairs_that_failed_for_lack_of_room_are_not_counted(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = plain_node.guests["g1"]
    guest.fail_restore = True
    room = os.statvfs(plain_node.layout.directory)

    def nearly_full(path: object) -> os.statvfs_result:
        return os.statvfs_result((*room[:3], 600, 600, *room[5:]))  # room for small files only

    with monkeypatch.context() as failing:
        failing.setattr("deploy.host.files.os.statvfs", nearly_full)
        await guest.kill()
        await until(lambda: bool(plain_node.supervisor.storage.problem))
        repairs = (await plain_node.status())["guests"][0]["repairs"]
        assert repairs["consecutive"] == 0
        assert "MiB may be needed" in repairs["last_error"]
        guest.fail_restore = False
    await until(plain_node.all_active)


async def test_voter_that_cannot_live_on_a_failing_disk_is_not_abandoned(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.voter_process.LAST_PAUSE", 0.05)
    manager = plain_node.supervisor._voter
    with monkeypatch.context() as failing:
        failing.setattr("deploy.supervisor.storage.lack_of_room", lambda path, room: "no room")
        while manager.restarts < 9:
            before = manager.restarts
            if manager.pid is not None:
                os.kill(manager.pid, signal.SIGKILL)
            await until(lambda before=before: manager.restarts > before)  # type: ignore[misc]
        assert not manager.abandoned
    await until(plain_node.all_active)


async def test_supervisor_of_a_moved_directory_writes_nothing_at_the_old_path(
    scratch: Path,
) -> None:
    running = Running(plan(scratch / "node", allow_faults=False))
    await running.start_ready()
    old = running.layout.directory
    moved = old.rename(scratch / "moved")
    old.mkdir()  # another node's
    await until(lambda: bool(running.supervisor.storage.problem))
    await running.guests["g1"].kill()
    os.kill(await running.voter_pid(), signal.SIGKILL)
    await until(lambda: "not restarted" in running.supervisor._voter.problem)
    assert running.restores() == [0, 0, 0]
    await running.stop()
    assert list(old.iterdir()) == []
    shutil.rmtree(moved)


async def test_voter_that_no_record_names_is_adopted(scratch: Path) -> None:
    first = Running(plan(scratch, allow_faults=False))
    await first.start_ready()
    pid = await first.voter_pid()
    await first.cut_off()
    first.layout.running.unlink()
    second = Running(first.layout, first.node)
    await second.start_ready()
    assert await second.voter_pid() == pid
    await second.stop()
