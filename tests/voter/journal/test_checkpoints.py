"""Checkpoints: the last two are kept, and trusted only if their checksums match."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from hashlib import blake2b

import msgspec
import pytest

from tests.errors import raises
from tests.voter.journal.disk import Disk, Open, opened
from voter.core.entries import (
    Base,
    Kept,
    Opened,
    Record,
    ScopeBase,
    SequenceReservation,
    Settled,
    Void,
)
from voter.errors import JournalError

pytestmark = pytest.mark.asyncio


def base_of(record: Record, state: bytes | bytearray, **more: object) -> Base:
    """Return the base of a state after a record."""
    digest = blake2b(state, digest_size=32).digest()
    return Base(record.seq, record.history, digest, record.time_ns, **more)  # type: ignore[arg-type]


async def checkpoint(run: Open, record: Record, state: bytes, seq: int = 0) -> Base:
    """Write one, and wait for it; at ``seq``, if given, with no records since this one."""
    base = base_of(record, state)
    base = msgspec.structs.replace(base, seq=seq or base.seq)
    run.journal.checkpoint(base, state)
    await run.until(lambda: run.journal.status()["checkpoint_seq"] == base.seq)
    return base


async def three(disk: Disk) -> tuple[list[Record], list[Base]]:
    """Write records, and checkpoints after the 20th, 40th and 60th."""
    made: list[Record] = []
    bases = []
    async with opened(disk, clean=False) as run:
        for number in range(3):
            for _ in range(4):
                made += run.write_records(5, 200)
                await run.durable()
            bases.append(await checkpoint(run, made[-1], b"state %d" % number))
        made += run.write_records(5, 200)
        await run.durable()
    return made, bases


async def test_recovery_returns_the_last_checkpoint_and_later_entries() -> None:
    disk = Disk()
    made, bases = await three(disk)
    async with opened(disk) as run:
        assert (run.recovery.base, run.recovery.state) == (bases[2], b"state 2")
        assert run.recovery.entries == made[60:]
        assert run.recovery.notes == []
        status = run.journal.status()
        assert (status["checkpoint_seq"], status["checkpoint_bytes"]) == (60, 7)
        more = run.write_records(5)
    async with opened(disk) as run:
        assert run.recovery.entries == made[60:] + more


async def test_two_are_kept_and_the_segments_that_the_older_needs() -> None:
    disk = Disk()
    made, bases = await three(disk)
    names = disk.names()
    kept = [name for name in names if name.startswith("checkpoint")]
    assert kept == [f"checkpoint-{40:020d}", f"checkpoint-{60:020d}"]
    segments = [name for name in names if name.startswith("segment")]
    assert segments[0] > "segment-0000000001"
    del disk.inodes[kept[1]]
    async with opened(disk) as run:
        assert (run.recovery.base, run.recovery.state) == (bases[1], b"state 1")
        assert run.recovery.entries == made[40:]


async def test_one_whose_bytes_do_not_match_is_dropped_by_name_and_the_one_before_used() -> None:
    disk = Disk()
    made, bases = await three(disk)
    name = f"checkpoint-{60:020d}"
    size = len(disk.inodes[name].cached)
    for at in range(size):
        damaged = disk.copy()
        damaged.flip(name, at, at % 8)
        async with opened(damaged, clean=False) as run:
            assert (run.recovery.base, run.recovery.state) == (bases[1], b"state 1")
            assert run.recovery.entries == made[40:]
            assert f"checkpoint disk/{name} is dropped" in run.recovery.notes[0]
        assert name + ".bad" in damaged.inodes
        assert name not in damaged.inodes
    for cut in range(0, size, 7):
        damaged = disk.copy()
        del damaged.inodes[name].cached[cut:]
        async with opened(damaged, clean=False) as run:
            assert run.recovery.base == bases[1]


async def test_with_no_checkpoint_left_the_journal_is_refused_unless_it_begins_at_the_start() -> (
    None
):
    disk = Disk()
    await three(disk)
    for seq in (40, 60):
        disk.flip(f"checkpoint-{seq:020d}", 60, 0)
    with raises("TV0215", match="no whole checkpoint"):
        async with opened(disk):
            pass

    young = Disk()
    async with opened(young) as run:
        made = run.write_records(30, 200)
        await run.durable()
        await checkpoint(run, made[20], b"state")
    young.flip(f"checkpoint-{21:020d}", 60, 0)
    async with opened(young) as run:
        assert run.recovery.base == Base()
        assert run.recovery.entries == made


async def test_a_segment_that_a_checkpoint_needs_must_be_there_and_whole() -> None:
    disk = Disk()
    await three(disk)
    segments = [name for name in disk.names() if name.startswith("segment")]
    for gone in ([segments[-2]], segments):
        less = disk.copy()
        for name in gone:
            less.inodes.pop(name)
        with pytest.raises(JournalError, match=r"is missing"):
            async with opened(less):
                pass


async def test_recovery_drops_settled_entries_before_the_base() -> None:
    disk = Disk()
    async with opened(disk) as run:
        one, two = run.write_records(2)
        run.write(Settled(1, b"t", b"r"), SequenceReservation(50), Void(2))
        await checkpoint(run, one, b"")
    async with opened(disk) as run:
        assert run.recovery.entries == [two, SequenceReservation(50), Void(2)]


async def test_large_tables_come_back_as_they_were() -> None:
    kept = [Kept(b"%d" % n, b"f", n, n, None if n % 3 else bytes(n)) for n in range(700)]
    scopes = [
        ScopeBase(b"s1", b"c", 1, 0, []),
        ScopeBase(b"k2", b"c", 2, 0, kept),
        *(ScopeBase(b"s%d" % n, b"d", n, n, kept[:n]) for n in range(3, 300, 7)),
    ]
    disk = Disk()
    state = bytearray(b"z" * (3 << 20))
    async with opened(disk) as run:
        made = run.write_records(3)
        base = base_of(made[1], state, suspects=["g1"], sessions=scopes, reserved=99)
        run.journal.checkpoint(base, state)
        await run.until(lambda: run.journal.status()["checkpoint_seq"] == 2)
    async with opened(disk) as run:
        assert run.recovery.base == base
        assert run.recovery.state == state
        assert run.recovery.entries == made[2:]


async def test_checkpoint_with_a_wrong_digest_is_never_written() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        (record,) = run.write_records(1)
        run.journal.checkpoint(base_of(record, b"voted"), b"other")
        with raises("TV0217", match="no longer has the digest that was voted"):
            await run.task
    assert not any(name.startswith("checkpoint") for name in disk.names())


async def test_a_checkpoint_waits_for_room_and_a_newer_one_takes_its_place() -> None:
    disk = Disk()
    async with opened(disk) as run:
        made = run.write_records(3)
        disk.room = 100
        run.journal.checkpoint(base_of(made[0], b"old" * 100), b"old" * 100)
        for _ in range(50):
            await asyncio.sleep(0)
        assert run.full == []  # the journal itself has room
        run.journal.checkpoint(base_of(made[1], b"new" * 100), b"new" * 100)
        disk.room = None
        await run.until(lambda: run.journal.status()["checkpoint_seq"] == 2)
        assert f"checkpoint-{1:020d}" not in disk.inodes


async def test_checkpoint_write_error_ends_the_journal() -> None:
    disk = Disk()

    def fail(size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with opened(disk, clean=False) as run:
        (record,) = run.write_records(1)
        await run.durable()
        disk.take = fail  # type: ignore[method-assign]
        run.journal.checkpoint(base_of(record, b"s"), b"s")
        with raises("TV0216", match="writing a checkpoint failed"):
            await run.task


async def test_a_checkpoint_is_not_there_before_the_entries_it_covers() -> None:
    disk = Disk()
    async with opened(disk, clean=False, durability="os") as run:
        disk.gate.clear()
        (record,) = run.write_records(1)
        run.journal.checkpoint(base_of(record, b"s"), b"s")
        for _ in range(50):
            await asyncio.sleep(0)
        assert not any(name.startswith("checkpoint") for name in disk.names())
        disk.gate.set()
        await run.until(lambda: run.journal.status()["checkpoint_seq"] == 1)


async def test_checkpoint_proves_earlier_synced_frames() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        run.write_records(2)
        await run.durable()
        await checkpoint(run, run.history.made[0], b"s")
        disk = disk.copy()
    name = "segment-0000000001"
    at = disk.frames(name)[1]  # the last one: no other frame says that it was synced
    disk.flip_frame(name, at, 40)
    with raises("TV0215", match=f"{name}, offset {at}: frame 2 is damaged"):
        async with opened(disk):
            pass


async def test_segments_without_requests_are_removed_too() -> None:
    """Sessions that are opened, and never used, must not fill the disk."""
    disk = Disk()
    async with opened(disk, segment_size=700) as run:
        (record,) = run.write_records(1)
        session = 0
        for place in (10, 20, 30):
            for _ in range(20):
                session += 1
                run.write(Opened(session.to_bytes(16), b"caller", 1))
                await run.durable()
            await checkpoint(run, record, b"s", seq=place)
        await run.until(lambda: run.journal.status()["segments"] < 25)
        kept = [name for name in disk.names() if name.startswith("segment")]
        assert "segment-0000000001" not in kept
    async with opened(disk, segment_size=700) as run:
        assert run.recovery.base.seq == 30


async def test_sessions_opened_during_a_checkpoint_are_kept() -> None:
    disk = Disk()
    async with opened(disk, segment_size=700, clean=False) as run:
        (record,) = run.write_records(1)
        await run.durable()
        for place in (10, 20):
            run.journal.checkpoint(msgspec.structs.replace(base_of(record, b"s"), seq=place), b"s")
            opened_since = [Opened((place * 100 + n).to_bytes(16), b"c", 1) for n in range(20)]
            for entry in opened_since:
                run.write(entry)
            await run.durable()
            written = partial(lambda place: run.journal.status()["checkpoint_seq"] == place, place)
            await run.until(written)
    async with opened(disk, segment_size=700) as run:
        assert [entry for entry in run.recovery.entries if entry in opened_since] == opened_since


async def test_segments_that_a_killed_voter_was_about_to_remove_are_removed_at_the_start() -> None:
    disk = Disk()
    _, bases = await three(disk)
    first = min(name for name in disk.names() if name.startswith("segment"))
    left = f"segment-{int(first[8:]) - 1:010d}"
    disk.inodes[left] = disk.copy().inodes[first]
    async with opened(disk) as run:
        assert run.recovery.base == bases[2]
        assert left not in disk.names()
        assert first in disk.names()
