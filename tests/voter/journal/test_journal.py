"""The journal while it is written: syncs, free space, failures, sizes."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from tests.voter.journal.disk import MAGIC, Disk, opened
from voter.core.entries import Entry, SequenceReservation, Settled
from voter.errors import JournalError
from voter.journal import journal as journal_module

pytestmark = pytest.mark.asyncio


async def test_a_flush_is_one_write_and_a_position_comes_when_it_is_on_the_disk() -> None:
    disk = Disk()
    async with opened(disk) as run:
        disk.gate.clear()
        writes = disk.writes
        run.write(*(run.history.record() for _ in range(5)))
        run.journal.flush()  # nothing more to write
        assert disk.writes == writes + 1
        for _ in range(20):
            await asyncio.sleep(0)
        run.write(run.history.record())
        assert run.synced == []
        assert run.journal.status()["synced"] == 0
        disk.gate.set()
        await run.durable()
        assert run.synced == [5, 6]  # what was written while a sync was under way had its own
        assert run.journal.status()["synced"] == run.journal.status()["position"] == 6


async def test_with_durability_os_a_position_comes_with_the_write() -> None:
    disk = Disk()
    async with opened(disk, durability="os", clean=False) as run:
        disk.gate.clear()
        run.write_records(2)
        assert run.synced == [1, 2]
    async with opened(disk.copy()) as run:
        assert len(run.recovery.entries) == 2


async def test_flush_writes_entries_that_on_synced_appends() -> None:
    disk = Disk()
    done: list[int] = []

    def synced(position: int) -> None:
        done.append(position)
        if position == 1:
            run.journal.append(SequenceReservation(7))

    async with opened(disk, durability="os", on_synced=synced) as run:
        run.write(run.history.record())
        assert done == [1, 2]


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOSPC])
async def test_a_write_that_fails_is_the_end(code: int) -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        run.write_records(1)
        await run.durable()
        disk.errors["write"] = code
        with pytest.raises(JournalError, match=r"journal disk: write failed: .*start it again"):
            run.write_records(1)
        del disk.errors["write"]
        with pytest.raises(JournalError, match="write failed"):
            run.write_records(1)
        with pytest.raises(JournalError, match="write failed"):
            await run.task
        assert run.synced == [1]


async def test_a_sync_that_fails_is_the_end_and_is_not_tried_again() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        disk.errors["sync"] = errno.EIO
        run.write_records(1)
        with pytest.raises(JournalError, match="sync failed: Input/output error"):
            await run.task
        del disk.errors["sync"]
        with pytest.raises(JournalError):
            run.write_records(1)
        await run.journal.close()
        assert run.synced == []


async def test_journal_reports_a_full_disk_early_and_room_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    disk.room = 4096 + 600
    async with opened(disk) as run:
        made: list[Entry] = []
        while not run.full:
            made += run.write_records(1, 10)
            await run.durable()
        used = run.journal.status()["bytes"]
        assert 1024 <= used <= 1400
        assert run.full == [(True, "journal disk: No space left on device: make room there")]
        assert run.journal.status()["full"] is True
        assert getattr(caplog.records[-1], "fields", {})["error_code"] == "TV0219"
        made += run.write_records(3, 100)  # what is in flight still has its place
        await run.durable()
        disk.room = 5000
        await run.until(lambda: len(run.full) == 2)
        assert run.full[1] == (False, "")
        made += run.write_records(15, 100)
    async with opened(disk) as run:
        assert run.recovery.entries == made


def use_up(disk: Disk) -> dict[str, Any]:
    """Leave room for one segment; return options that give it a reserve."""
    disk.room = 32768 + 2000
    return {"segment_size": 32768, "reserve": 24576}


async def test_journal_starts_100_times_on_a_full_disk_and_has_room_again() -> None:
    disk = Disk()
    more = use_up(disk)
    made: list[Entry] = []
    async with opened(disk, clean=False, **more) as run:
        while not run.full:
            made += run.write_records(1, 100)
            await run.durable()
        made += run.write_records(20, 100)  # under way when the disk became full
        await run.durable()
    for number in range(100):
        async with opened(disk, clean=False, **more) as run:
            assert run.recovery.entries == made
            await run.until(lambda: [full for full, _ in run.full] == [True])
            made.append(SequenceReservation(number))
            run.write(made[-1])
            await run.durable()
    disk.room = None
    async with opened(disk, **more) as run:
        assert run.full == []  # it is known before the first write is accepted
        assert run.recovery.entries == made
        made += run.write_records(50, 1000)
        await run.durable()
    async with opened(disk, **more) as run:
        assert run.recovery.entries == made


async def test_frame_without_room_uses_half_of_the_reserve_and_reports_a_full_disk() -> None:
    disk = Disk()
    more = use_up(disk)
    async with opened(disk, clean=False, **more) as run:
        await asyncio.sleep(0)  # it runs
        disk.room = 0
        made: list[Entry] = [*run.write_records(1, 3000)]
        assert run.full == []
        made += run.write_records(1, 3000)
        assert [full for full, _ in run.full] == [True]
        await run.durable()
        with pytest.raises(JournalError, match="write failed: No space left"):
            run.write_records(1, 6000)
    async with opened(disk, clean=False, **more) as run:
        assert run.recovery.entries == made
        assert run.recovery.notes == []  # nothing was written in part


async def test_entries_that_do_not_fit_into_one_frame_on_a_full_disk_are_written_in_parts() -> None:
    """A voter that starts writes all results that it has learned; each start must make progress."""
    disk = Disk()
    more = use_up(disk)
    async with opened(disk, clean=False, **more) as run:
        await asyncio.sleep(0)  # it runs
        disk.room = 0
        made: list[Entry] = [run.history.record(bytes(700)) for _ in range(16)]
        run.write(*made)  # two copies are most of the 32 KiB
        assert [full for full, _ in run.full] == [True]
        await run.durable()
        disk.room = None
        await run.until(lambda: [full for full, _ in run.full] == [True, False])
    async with opened(disk, **more) as run:
        assert run.recovery.entries == made
        assert run.recovery.notes == []


async def test_journal_opens_on_a_full_disk_without_room_for_a_second_copy() -> None:
    disk = Disk()
    more = use_up(disk)
    async with opened(disk, clean=False, **more) as run:
        made = run.write_records(1, 5000)
        await run.durable()
    image = disk.inodes["segment-0000000001"].cached
    copy = bytes(image).rfind(MAGIC)
    del image[copy + 200 :]
    image[copy:] = bytes(200)  # an earlier version wrote frames in part
    disk.room = 0
    async with opened(disk, clean=False, **more) as run:
        assert run.recovery.entries == made
        assert run.journal.full


async def test_where_there_is_nowhere_to_write_it_is_the_end() -> None:
    disk = Disk()
    disk.room = 5000
    async with opened(disk, clean=False) as run:
        made: list[Entry] = []

        async def write_on() -> None:
            while True:
                made.extend(run.write_records(1, 100))
                await run.durable()

        with pytest.raises(JournalError, match="No space left"):
            await write_on()
        assert len(made) > 10
    disk.room = None
    async with opened(disk.copy()) as run:
        assert run.recovery.entries == made


async def test_a_segment_grows_where_the_next_is_not_there_in_time() -> None:
    disk = Disk()
    async with opened(disk) as run:
        made = [run.history.record(bytes(3000)) for _ in range(9)]
        for record in made:
            run.write(record)  # without a turn of the loop between them
        assert len(disk.read("segment-0000000001")) > 4096
    async with opened(disk) as run:
        assert run.recovery.entries == made


async def test_a_very_large_turn_becomes_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LARGEST", 1000)
    disk = Disk()
    async with opened(disk) as run:
        writes = disk.writes
        made = [run.history.record(bytes(size)) for size in (300, 300, 2000, 300, 300)]
        run.write(*made)
        assert disk.writes - writes == 3  # 300 + 300, 2000, 300 + 300
        await run.durable()
    async with opened(disk) as run:
        assert run.recovery.entries == made


async def test_a_spare_is_used_by_the_next_start() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        run.write_records(25, 100)
        await run.until(lambda: "segment-0000000002" in disk.inodes)
        await run.durable()
    disk = disk.copy()
    disk.errors["create"] = errno.EIO  # none is made
    async with opened(disk) as run:
        made = run.write_records(20, 100)
        assert run.journal.status()["segments"] == 2
    del disk.errors["create"]
    async with opened(disk) as run:
        assert run.recovery.entries[-20:] == made
        assert run.recovery.notes == []


async def test_journal_status_reports_positions_and_sizes() -> None:
    disk = Disk()
    async with opened(disk) as run:
        run.write_records(3)
        await run.durable()
        status = run.journal.status()
        assert status.pop("bytes") > 100
        assert 0 <= status.pop("sync_last_ms") <= status.pop("sync_longest_ms") < 10000
        assert status == {
            "durability": "fsync",
            "directory": "disk",
            "segments": 1,
            "position": 3,
            "synced": 3,
            "full": False,
            "reason": "",
            "checkpoint_seq": 0,
            "checkpoint_bytes": 0,
        }


async def test_idle_write_reports_its_requests_with_durability_os() -> None:
    """Seed 500008362: it came in the same turn as the idle timer, and its reply never went out."""
    disk = Disk()
    async with opened(disk, durability="os") as run:
        run.write(Settled(1, b"tag"))  # nobody waits for it: the idle timer writes it
        before = disk.writes
        run.journal.append(run.history.record())
        await run.until(lambda: disk.writes > before)
        run.journal.flush()
        await run.until(lambda: bool(run.synced) and run.synced[-1] == run.journal.position)
