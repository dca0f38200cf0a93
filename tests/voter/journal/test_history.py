"""The history of a journal: what it keeps, within its bound, and whatever happens to the disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.errors import raises
from tests.voter.journal.disk import Disk, Open, opened
from tests.voter.journal.test_checkpoints import checkpoint
from voter.core.entries import Record, Settled
from voter.errors import JournalError
from voter.journal import Directory
from voter.journal.history import HISTORY
from voter.journal.reader import JournalReader

pytestmark = pytest.mark.asyncio

PLENTY = 1 << 30


async def rounds(run: Open, number: int, *, state: int = 40) -> list[Record]:
    """Write so many times twenty records in four segments and a checkpoint; return the records."""
    made: list[Record] = []
    for _ in range(number):
        for _ in range(4):
            made += run.write_records(5, 200)
            await run.durable()
        await checkpoint(run, made[-1], bytes(state))
    return made


def kept(disk: Disk) -> list[str]:
    """Return the names of what is kept."""
    return [name.removeprefix(HISTORY) for name in disk.names() if name.startswith(HISTORY)]


def save(disk: Disk, directory: Path) -> JournalReader:
    """Write a disk's files to a directory, and open a reader there."""
    for name, inode in disk.inodes.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(bytes(inode.cached))
    return JournalReader(directory)


def seqs(reader: JournalReader, start: int) -> list[int]:
    """Return the numbers of the records that a reader finds after a checkpoint."""
    found = next(each for each in reader.checkpoints() if each.seq == start)
    return [entry.seq for entry in reader.entries(found) if isinstance(entry, Record)]


async def test_without_a_history_nothing_is_kept() -> None:
    disk = Disk()
    async with opened(disk) as run:
        await rounds(run, 4)
    assert kept(disk) == []


async def test_the_reader_finds_all_that_was_written_from_the_start_on(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(disk, history=PLENTY) as run:
        made = await rounds(run, 5)
    assert {name.partition("-")[0] for name in kept(disk)} == {"checkpoint", "segment"}
    reader = save(disk, tmp_path)
    assert [each.seq for each in reader.checkpoints()] == [0, 20, 40, 60, 80, 100]
    for each in reader.checkpoints():
        assert seqs(reader, each.seq) == [r.seq for r in made if r.seq > each.seq]
    base, state = reader.load(reader.checkpoints()[2])
    assert (base.seq, base.history, state) == (40, made[39].history, bytes(40))


async def test_the_oldest_is_removed_beyond_the_bound_and_the_rest_can_be_read(
    tmp_path: Path,
) -> None:
    disk, bound = Disk(), 40_000
    async with opened(disk, history=bound) as run:
        made = await rounds(run, 12)
    assert 0 < sum(disk.size(HISTORY + name) for name in kept(disk)) <= bound
    reader = save(disk, tmp_path)
    first, *others = [each.seq for each in reader.checkpoints()]
    assert 0 < first < others[-1] - 60, "several are kept, and not all"
    for seq in (first, *others):
        assert seqs(reader, seq) == [r.seq for r in made if r.seq > seq]
    segments = [int(name.partition("-")[2]) for name in kept(disk) if name.startswith("segment")]
    assert all(b == a + 1 for a, b in pairwise(segments))


async def test_a_damaged_checkpoint_of_the_journal_keeps_no_history() -> None:
    disk = Disk()
    async with opened(disk, history=PLENTY) as run:
        await rounds(run, 2)
    name = next(name for name in disk.names() if name.startswith("checkpoint"))
    disk.inodes[f"{name}.bad"] = disk.inodes[name]
    async with opened(disk, history=1) as run:
        await rounds(run, 4)
    assert kept(disk) == []


async def test_large_checkpoints_are_kept_rarely() -> None:
    disk = Disk()
    async with opened(disk, history=PLENTY) as run:
        await rounds(run, 10, state=20_000)  # a round writes 12 kB of log
    names = kept(disk)
    states = sum(disk.size(HISTORY + name) for name in names if name.startswith("checkpoint"))
    logs_ = sum(disk.size(HISTORY + name) for name in names if name.startswith("segment"))
    assert 0 < states <= logs_ + 25_000


@pytest.mark.parametrize("again", range(12))
async def test_a_voter_killed_while_it_moves_files_leaves_no_gap(
    tmp_path: Path, again: int
) -> None:
    disk = Disk()

    class Dying(Disk):
        moves = again

        async def rename(self, old: str, new: str) -> None:
            if not self.moves:
                raise OSError(errno.EIO, "killed")
            self.moves -= 1
            await super().rename(old, new)

    dying = Dying()
    with contextlib.suppress(JournalError):
        async with opened(dying, history=PLENTY, clean=False) as run:
            await rounds(run, 4)
    disk = dying.copy()
    async with opened(disk, history=PLENTY) as run:
        await rounds(run, 3)
    reader = save(disk, tmp_path)
    found = seqs(reader, 0)
    assert found == list(range(1, found[-1] + 1)) and len(found) >= 60


async def test_a_full_disk_costs_the_history_before_writes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    async with opened(disk, history=PLENTY) as run:
        await rounds(run, 4)
        before = kept(disk)
        disk.room = 0
        made = await rounds(run, 3)
        assert getattr(caplog.records[-1], "fields", {})["error_code"] == "TV0255"
        assert len(made) == 60 and not run.journal.full and run.full == []
        assert len(kept(disk)) < len(before)
        disk.errors["rename"] = errno.ENOSPC  # no room for the name of what would be kept
        disk.room = None
        await rounds(run, 2)
        assert not run.journal.full


async def test_turning_it_off_and_on_leaves_a_gap_that_the_reader_does_not_cross(
    tmp_path: Path,
) -> None:
    disk = Disk()
    made: list[Record] = []
    for history in (PLENTY, 0, PLENTY):
        async with opened(disk, history=history) as run:
            made += await rounds(run, 4)
    reader = save(disk, tmp_path)
    first, *_ = reader.checkpoints()
    assert first.seq == 140, "those of the time without a history that the voter still needed"
    assert seqs(reader, first.seq) == [r.seq for r in made if r.seq > first.seq]


async def test_a_damaged_segment_is_named_and_later_checkpoints_can_be_read(
    tmp_path: Path,
) -> None:
    disk = Disk()
    async with opened(disk, history=PLENTY) as run:
        made = await rounds(run, 4)
    name = HISTORY + next(name for name in kept(disk) if name.startswith("segment"))
    disk.flip_frame(name, disk.frames(name)[2], 40)
    reader = save(disk, tmp_path)
    with raises("TV0257", match=f"{name}, offset "):
        seqs(reader, 0)
    assert seqs(reader, 40) == [r.seq for r in made if r.seq > 40]
    checkpoints = [HISTORY + each for each in kept(disk) if each.startswith("checkpoint")]
    data = bytearray((tmp_path / checkpoints[0]).read_bytes())
    data[-1] ^= 1
    (tmp_path / checkpoints[0]).write_bytes(data)
    with raises("TV0257", match=checkpoints[0]):
        reader.load(reader.checkpoints()[1])


async def test_what_is_removed_meanwhile_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(disk, history=PLENTY) as run:
        await rounds(run, 4)
    reader = save(disk, tmp_path)
    start = reader.checkpoints()[1]
    reading = reader.entries(start)
    next(reading)
    for path in (tmp_path / HISTORY).iterdir():
        path.unlink()
    with raises("TV0256", match="--keep-history"):
        list(reading)
    with raises("TV0256", match="checkpoint 20 is not kept"):
        reader.load(start)


async def test_there_may_be_no_journal_or_one_that_cannot_be_read(tmp_path: Path) -> None:
    with raises("TV0258", match="no journal"):
        JournalReader(tmp_path / "none")
    (tmp_path / "identity.json").mkdir()
    with raises("TV0258", match="cannot be read"):
        JournalReader(tmp_path)


async def test_a_running_voter_moves_files_under_the_reader(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    files = Directory(directory)
    async with opened(files, history=PLENTY) as run:
        made = await rounds(run, 3)
        reader = JournalReader(directory)
        reading: Iterator[Record] = (
            entry for entry in reader.entries(reader.checkpoints()[0]) if isinstance(entry, Record)
        )
        found = [next(reading)]
        made += await rounds(run, 3)
        made += run.write_records(3)
        run.write(Settled(made[-1].seq, b"tag"))
        await run.durable()
        found += reading
        assert found == made, "what was written meanwhile is read, too"
    assert (directory / "history").stat().st_mode & 0o777 == 0o700
