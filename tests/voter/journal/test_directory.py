"""Real directories: access, and full, read-only and broken file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from tests.errors import raises
from tests.voter.journal.disk import opened
from voter.core.entries import Base, Entry, SequenceReservation
from voter.errors import JournalError
from voter.journal import Directory
from voter.journal.format import blank
from voter.journal.journal import RESERVE

pytestmark = pytest.mark.asyncio

SEGMENT = 1 << 16


async def test_journal_on_a_real_disk_continues_after_a_restart(scratch: Path) -> None:
    path = scratch / "deep" / "journal"
    made: list[Entry] = []
    for clean in (True, False, True):
        directory = Directory(path)
        async with opened(directory, segment_size=SEGMENT, clean=clean) as run:
            assert run.recovery.entries == made
            for _ in range(10):
                made += run.write_records(20, 500)
                await run.durable()
        if not clean:
            directory.close()
    assert len(list(path.glob("segment-*"))) > 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


async def test_checkpoints_on_a_real_disk_take_segments_away(scratch: Path) -> None:
    state = bytearray(os.urandom(3 << 20))
    digest = blake2b(state, digest_size=32).digest()
    async with opened(Directory(scratch), segment_size=SEGMENT) as run:
        for _ in range(3):
            for _ in range(15):
                made = run.write_records(20, 500)
                await run.durable()
            base = Base(made[-1].seq, made[-1].history, digest)
            run.journal.checkpoint(base, state)
            seq = base.seq
            await run.until(lambda: run.journal.status()["checkpoint_seq"] == seq)  # noqa: B023
        first = scratch / "segment-0000000001"
        await run.until(lambda: not first.exists())
        await run.until(lambda: len(list(scratch.glob("checkpoint-*"))) == 2)
    async with opened(Directory(scratch), segment_size=SEGMENT) as run:
        assert run.recovery.base == base
        assert run.recovery.state == bytes(state)
        assert run.recovery.entries == []


async def test_a_second_voter_is_refused_by_name(scratch: Path) -> None:
    async with opened(Directory(scratch)):
        with raises("TV0211", match=f"in use by another voter .process {os.getpid()}."):
            Directory(scratch)
    Directory(scratch).close()  # free again


async def test_a_path_that_is_no_directory_is_refused(scratch: Path) -> None:
    file = scratch / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(JournalError, match=r"cannot be used: .*journal.directory"):
            Directory(path)


async def test_a_directory_that_may_not_be_read_is_refused(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:  # root may read all
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(JournalError, match="Permission denied: give the voter's user"):
            Directory(scratch)


async def test_unreadable_file_is_named(scratch: Path) -> None:
    async with opened(Directory(scratch)):
        pass
    (scratch / "segment-0000000001").unlink()
    (scratch / "segment-0000000001").mkdir()
    with raises("TV0210", match=r"cannot be opened: .*segment-0000000001"):
        async with opened(Directory(scratch)):
            pass
    Directory(scratch).close()  # it was released


async def test_a_read_only_file_system_is_refused(tmpfs: Callable[[str], Path]) -> None:
    path = tmpfs("size=1m")
    async with opened(Directory(path), segment_size=SEGMENT):
        pass
    tmpfs("ro")
    with raises("TV0210", match=r"Read-only file system: mount it for writing"):
        Directory(path)
    with pytest.raises(JournalError, match=r"Read-only file system: mount it for writing"):
        Directory(path / "new")


async def test_journal_recovers_from_a_full_file_system(tmpfs: Callable[[str], Path]) -> None:
    path = tmpfs("size=600k")
    filler = path / "filler"
    async with opened(Directory(path), segment_size=SEGMENT) as run:
        filler.write_bytes(bytes(400 << 10))
        made: list[Entry] = []
        while not run.full:
            made += run.write_records(1, 250)  # of the 60 that fit once a segment is wanted
            await run.durable()  # a turn of a thread, as setting one aside takes a few
        assert "No space left on device" in run.full[0][1]
        await run.until(lambda: not list(path.glob("*.new")))
        made += run.write_records(5, 500)  # in what was set aside
        await run.durable()
        filler.unlink()
        await run.until(lambda: run.full[-1] == (False, ""))
        made += run.write_records(100, 500)
        await run.durable()
    async with opened(Directory(path), segment_size=SEGMENT) as run:
        assert run.recovery.entries == made


async def test_journal_opens_again_and_again_on_a_full_file_system(
    tmpfs: Callable[[str], Path],
) -> None:
    """The last frame before was cut short: it did not fit into what was set aside."""
    path, segment = tmpfs("size=40m"), 8 << 20
    directory = Directory(path)
    async with opened(directory, clean=False, segment_size=segment, reserve=RESERVE) as run:
        made: list[Entry] = [*run.write_records(3, 1 << 20)]
        while run.journal.status()["segments"] < 2:
            made += run.write_records(1, 1000)
            await run.durable()
        with contextlib.suppress(OSError), (path / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

        async def write_on() -> None:
            while True:
                made.extend(run.write_records(1, 1 << 20))
                await run.durable()

        with raises("TV0216", match="write failed: No space left on device"):
            await write_on()
    directory.close()
    for number in range(100):
        directory = Directory(path)
        async with opened(directory, clean=False, segment_size=segment, reserve=RESERVE) as run:
            assert run.recovery.entries == made
            assert run.recovery.notes == []
            await run.until(lambda: [full for full, _ in run.full] == [True])
            made.append(SequenceReservation(number))
            run.write(made[-1])
            await run.durable()
        directory.close()
    (path / "filler").unlink()
    async with opened(Directory(path), segment_size=segment, reserve=RESERVE) as run:
        assert run.recovery.entries == made
        await run.until(lambda: not run.journal.full)
        made += run.write_records(5, 1 << 20)
        await run.durable()


async def test_a_full_file_system_at_the_start_is_named(tmpfs: Callable[[str], Path]) -> None:
    path = tmpfs("size=100k")
    with pytest.raises(JournalError, match="No space left on device"):
        async with opened(Directory(path), segment_size=1 << 20):
            pass


async def test_failed_write_whole_leaves_the_old_file(scratch: Path) -> None:
    directory = Directory(scratch)
    await directory.write_whole("f", [b"old"])

    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise JournalError("no more")

    with pytest.raises(JournalError):
        await directory.write_whole("f", pieces())
    assert directory.read("f") == b"old"
    await directory.write_whole("f", [b"new", memoryview(b"er")])
    await directory.rename("f", "g")
    assert directory.read("g") == b"newer"
    directory.close()
    assert sorted(file.name for file in scratch.iterdir()) == ["g", "lock"]


async def test_reopen_zeroes_the_bytes_behind_the_offset(scratch: Path) -> None:
    directory = Directory(scratch)
    file = await directory.create("s", 3 << 20)
    assert blank(directory.read("s"))
    file.append(b"abc" * (1 << 20))
    file.close()
    file = directory.reopen("s", 5, 2)
    file.append(b"XY")
    await file.sync()
    file.close()
    data = directory.read("s")
    assert data[:7] == b"abcabXY"
    assert len(data) == 3 << 20
    assert blank(data, 7)
    directory.close()
