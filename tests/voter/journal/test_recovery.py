"""Recovery after crashes and disk faults: what was synced comes back, and nothing else."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import voter.journal.format
import voter.journal.journal
from tests.errors import raises
from tests.voter.journal.disk import Disk, History, Inode, opened
from voter.core.entries import (
    Base,
    ClockStep,
    Entry,
    MembershipChange,
    Once,
    Opened,
    Record,
    RoleChange,
    SequenceReservation,
    Settled,
    Void,
)
from voter.errors import JournalError
from voter.journal.format import Owner, pack_frame

pytestmark = pytest.mark.asyncio


def one_of_each(history: History) -> list[Entry]:
    """Return entries of all kinds."""
    plain, once = history.record(b"put"), history.record(b"once")
    return [
        plain,
        msgspec.structs.replace(once, once=Once(b"s" + bytes(16), bytes(8), b"f", 3)),
        Settled(plain.seq, b"tag", b"reply"),
        Settled(once.seq, b"tag"),
        Void(plain.seq),
        Opened(bytes(16), b"caller", 5),
        MembershipChange(7, "g1", "voting", "expelled", "dissent", True),
        SequenceReservation(1000),
        ClockStep(9, 3),
        RoleChange(8, 1, {"g1": "voter", "g2": "retired"}, "why"),
    ]


async def test_all_kinds_of_entries_come_back_as_they_were() -> None:
    disk = Disk()
    async with opened(disk) as run:
        entries = one_of_each(run.history)
        run.write(*entries)
        secret = run.recovery.identity.key
    async with opened(disk) as run:
        assert run.recovery.entries == entries
        assert (run.recovery.base, run.recovery.state) == (Base(), b"")
        assert run.recovery.identity.key == secret
        assert run.recovery.notes == []
        assert run.journal.position == 0


async def test_journal_continues_over_many_segments_and_starts() -> None:
    disk = Disk()
    made: list[Record] = []
    for clean in (True, False, True, False, True):
        async with opened(disk, clean=clean) as run:
            assert run.recovery.entries == made
            for _ in range(20):
                made += run.write_records(3, 100)
                await run.durable()
        disk = disk.copy()
    assert len(disk.names()) > 10
    async with opened(disk) as run:
        assert run.recovery.entries == made
        assert run.recovery.notes == []


step = st.tuples(
    st.lists(st.integers(0, 300), min_size=1, max_size=4), st.sampled_from(["all", "one", "none"])
)


@given(
    lives=st.lists(st.tuples(st.lists(step, max_size=12), st.booleans()), min_size=1, max_size=4),
    keep=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    seed=st.integers(0, 1 << 32),
)
async def test_crash_loses_no_synced_entry_and_invents_none(
    lives: list[tuple[list[tuple[list[int], str]], bool]], keep: float, seed: int
) -> None:
    """Each life ends by kill -9 or by a loss of power, which may follow a start at once."""
    chance = random.Random(seed)
    disk, known = Disk(), list[Entry]()
    for steps, power in lives:
        async with opened(disk, clean=False, segment_size=1500) as run:
            assert run.recovery.entries == known
            disk.gate.set()
            await asyncio.sleep(0)
            for sizes, sync in steps:
                disk.single = sync == "one"
                disk.gate.clear()
                for size in sizes:
                    run.journal.append(run.history.record(chance.randbytes(size)))
                    if chance.random() < 0.5:
                        run.journal.flush()
                run.journal.flush()
                if sync != "none":
                    disk.gate.set()
                if sync == "all":
                    await run.durable()
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
            promised = run.synced[-1] if run.synced else 0
            written = known + run.history.made
        if power:
            disk = disk.lose_power(lambda name, at: chance.random() < keep)
        disk.single = False
        disk.gate.set()
        async with opened(disk, clean=False, segment_size=1500) as run:
            found = run.recovery.entries
            assert found == written[: len(found)]
            assert len(found) >= (len(known) + promised if power else len(written))
            known = found
        # What is known now stays, also if the power goes at once.
        disk = disk.lose_power(lambda name, at: chance.random() < keep)


async def test_entries_written_during_a_sync_may_be_lost() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        disk.single = True
        disk.gate.clear()
        first = run.write_records(1, 100)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        run.write_records(1, 100)
        disk.gate.set()
        await run.until(lambda: run.synced == [1])
        assert not disk.gate.is_set()
        run.write_records(1, 100)
    _, second, third = disk.frames("segment-0000000001")
    lost = disk.lose_power(lambda name, at: not second - 64 <= at < third)
    async with opened(lost) as run:
        assert run.recovery.entries == first
        assert "torn tail" in run.recovery.notes[0]


async def test_recovered_entries_are_on_the_disk_before_open_returns() -> None:
    disk = Disk()
    async with opened(disk, clean=False, segment_size=700) as run:
        made = run.write_records(2, 100)
        await run.durable()
        spare = "segment-0000000002"
        await run.until(lambda: spare in disk.inodes and any(disk.inodes[spare].stored))
        await asyncio.sleep(0)
        disk.gate.clear()
        made += run.write_records(4, 100)
        assert disk.frames(spare)
    disk.gate.set()
    async with opened(disk, clean=False, segment_size=700) as run:
        assert run.recovery.entries == made
    async with opened(disk.lose_power(lambda name, at: False)) as run:
        assert run.recovery.entries == made


async def test_a_torn_segment_becomes_the_spare_one_and_those_behind_it_are_removed() -> None:
    disk = Disk()
    async with opened(disk, clean=False, segment_size=1300) as run:
        first = run.write_records(2, 100)
        await run.durable()
        spare = "segment-0000000002"
        await run.until(lambda: spare in disk.inodes and any(disk.inodes[spare].stored))
        await asyncio.sleep(0)
        disk.gate.clear()
        run.write_records(4, 100)
    torn = "segment-0000000001"
    lost = disk.lose_power(lambda name, at: name != torn)
    assert lost.frames("segment-0000000002")
    lost.inodes["segment-0000000003"] = Inode(bytes(1300))
    lost.room = 0  # a full disk has no room for another spare one
    async with opened(lost, clean=False, segment_size=1300) as run:
        assert run.recovery.entries == first
        assert "torn tail" in run.recovery.notes[0]
        assert not lost.frames("segment-0000000002")
        assert "segment-0000000003" not in lost.inodes
        lost.room = None
        more = run.write_records(10, 100)
    async with opened(lost.copy()) as run:
        assert run.recovery.entries == first + more


async def test_a_frame_whose_number_is_not_the_next_is_not_taken() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        made = run.write_records(1)
        await run.durable()
        seed = Owner.of("n1", run.recovery.identity.key).seed
        stale, _ = pack_frame(seed, 1, 0, msgspec.msgpack.encode([SequenceReservation(5)]))
    image = disk.inodes["segment-0000000001"].cached
    end = len(bytes(image).rstrip(b"\0"))
    image[end : end + len(stale)] = stale
    async with opened(disk.copy()) as run:
        assert run.recovery.entries == made


async def test_a_whole_frame_without_entries_is_a_defect_that_names_its_place() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        seed = Owner.of("n1", run.recovery.identity.key).seed
        run.write_records(1)
        await run.durable()
    image = disk.inodes["segment-0000000001"].cached
    (at,) = disk.frames("segment-0000000001")
    frame, _ = pack_frame(seed, 1, 0, msgspec.msgpack.encode({"entries": 5}))
    image[at:] = (frame + bytes(len(image)))[: len(image) - at]
    with raises("TV0218", match="segment-0000000001, offset .* holds no entries"):
        async with opened(disk.copy()):
            pass


async def small() -> tuple[Disk, list[Record]]:
    """Return a disk with a few frames in several segments, and all records, each acknowledged.

    No later frame proves that the last one was synced.
    """
    disk = Disk()
    async with opened(disk, clean=False, segment_size=420) as run:
        made = []
        for count in (1, 2, 1, 3, 1, 2):
            made += [run.history.record(bytes(40)) for _ in range(count)]
            run.write(*made[-count:])
            await run.durable()
    return disk, made


async def test_one_flipped_bit_loses_no_acknowledged_entry() -> None:
    disk, made = await small()
    chance = random.Random(3)
    outcomes = {"named": 0, "copy": 0, "harmless": 0}
    for name in disk.names():
        for at in range(len(disk.inodes[name].cached)):
            damaged = disk.copy()
            damaged.flip(name, at, chance.randrange(8))
            try:
                async with opened(damaged, clean=False, segment_size=420) as run:
                    found, notes = run.recovery.entries, run.recovery.notes
            except JournalError:
                outcomes["named"] += 1
                continue
            assert found == made, (name, at)
            outcomes[
                "copy" if any("one copy of frame" in note for note in notes) else "harmless"
            ] += 1
    assert outcomes["copy"] > 1000
    assert 100 < outcomes["named"] < 500  # heads of segments, and the identity


async def test_damage_to_both_copies_of_a_proved_frame_is_named() -> None:
    disk = Disk()
    async with opened(disk) as run:
        run.write_records(5, 40)
    name = "segment-0000000001"
    *frames, last = disk.frames(name)
    for number, at in enumerate(frames, 1):
        for offset in range(72):
            damaged = disk.copy()
            damaged.flip_frame(name, at, offset)
            with pytest.raises(JournalError, match=f"{name}, offset {at}: frame {number} is"):
                async with opened(damaged):
                    pass
    damaged = disk.copy()
    damaged.flip_frame(name, last, 8)
    async with opened(damaged) as run:  # it is empty: it only proves the others
        assert len(run.recovery.entries) == 5
        assert "torn tail" in run.recovery.notes[0]


async def test_once_started_on_a_journal_no_frame_of_it_can_be_taken_for_torn() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        run.write_records(2)
        await run.durable()
    async with opened(disk, clean=False):
        pass  # killed at once
    name = "segment-0000000001"
    at = disk.frames(name)[1]
    disk.flip_frame(name, at, 40)
    with pytest.raises(JournalError, match=f"{name}, offset {at}: frame 2 is damaged"):
        async with opened(disk):
            pass


async def test_a_head_whose_sync_failed_is_written_again_by_the_next_start() -> None:
    disk = Disk()
    async with opened(disk, clean=False, segment_size=700) as run:
        made = run.write_records(1, 200)
        await run.durable()
        spare = "segment-0000000002"
        await run.until(lambda: spare in disk.inodes)
        inode = disk.inodes[spare]
        await run.until(lambda: not inode.dirty)
    # As Linux leaves it after a sync that failed: in the page cache, clean, and not on the disk.
    inode.stored[:] = bytes(len(inode.stored))
    async with opened(disk, clean=False, segment_size=700) as run:
        made += run.write_records(2, 200)
        await run.durable()
        assert disk.frames(spare)
    async with opened(disk.lose_power(lambda name, at: False)) as run:
        assert run.recovery.entries == made


async def test_a_last_frame_with_one_whole_copy_is_given_a_second_one() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        made = run.write_records(3, 40)
        await run.durable()
    name = "segment-0000000001"
    at = disk.frames(name)[2]
    end = len(bytes(disk.inodes[name].cached).rstrip(b"\0"))
    torn = disk.copy()
    for inode in (torn.inodes[name],):
        inode.cached[at + (end - at) // 2 :] = bytes(len(inode.cached) - at - (end - at) // 2)
        inode.stored[:] = inode.cached
    async with opened(torn, clean=False) as run:
        assert run.recovery.entries == made
        assert [note for note in run.recovery.notes if "torn tail" in note] == []
    assert torn.frames(name)[2] == at
    torn.flip(name, at + 40, 0)
    async with opened(torn) as run:
        assert run.recovery.entries == made


async def test_frames_that_were_dropped_and_come_back_from_the_disk_are_no_successors() -> None:
    """A tail that was zeroed in the page cache, and never on the disk, after a sync that failed."""
    disk = Disk()
    async with opened(disk, clean=False) as run:
        made = run.write_records(1, 40)
        await run.durable()
        before = disk.copy()
        run.write_records(1, 200)
        run.write(*(Opened(bytes([number]) * 16, b"me", 1) for number in range(3)))
        run.write(Opened(b"x" * 16, b"me", 1))
    name = "segment-0000000001"
    old = bytes(disk.inodes[name].cached)
    async with opened(before, clean=False) as run:
        more = run.write_records(1, 10)
        await run.durable()
    image = before.inodes[name].cached
    end = len(bytes(image).rstrip(b"\0"))
    image[end:] = old[end:]
    before.inodes[name].stored[:] = image
    async with opened(before) as run:
        assert run.recovery.entries == made + more


async def test_idle_frames_prove_what_was_synced() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        run.write_records(1)
        await run.durable()
        writes = disk.writes
        await run.until(lambda: disk.writes > writes)
        # One says it all: no others follow.
        await asyncio.sleep(0.2)
        assert disk.writes == writes + 1
    name = "segment-0000000001"
    end = len(bytes(disk.inodes[name].cached).rstrip(b"\0"))
    assert end > disk.frames(name)[1]
    disk.flip_frame(name, disk.frames(name)[0], 40)
    with pytest.raises(JournalError, match=f"{name}, offset .* frame 1 is damaged"):
        async with opened(disk):
            pass


async def test_torn_tail_is_logged_and_never_comes_back() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        first = run.write_records(1, 10)
        await run.durable()
        disk.gate.clear()
        run.write_records(5, 10)
    name = "segment-0000000001"
    torn = disk.copy()
    at = torn.frames(name)[1]
    torn.flip_frame(name, at, 40)
    async with opened(torn, clean=False) as run:
        assert run.recovery.entries == first
        assert f"disk/{name}, offset {at}: torn tail" in run.recovery.notes[0]
        # As many bytes as the frame that was torn: what follows it would fit.
        more = run.write_records(1, 10)
    async with opened(torn.copy()) as run:
        assert run.recovery.entries == first + more
        assert run.recovery.notes == []


async def test_a_frame_in_a_request_is_no_frame() -> None:
    disk = Disk()
    async with opened(disk, clean=False) as run:
        for _ in range(5):
            run.write_records(1)
            await run.durable()
        image = bytes(disk.inodes["segment-0000000001"].cached).rstrip(b"\0")
    other = Disk()
    async with opened(other, clean=False, random64=lambda: 77) as run:
        first = run.write_records(1)
        await run.durable()
        other.gate.clear()
        run.write(run.history.record(image))
    name = "segment-0000000001"
    # Frames of another journal inside it claim that much was synced.
    data = bytes(other.inodes[name].cached).rstrip(b"\0")
    at = other.frames(name)[1]
    for copy in (at, at + (len(data) - at) // 2):
        other.flip(name, copy, 1)
    async with opened(other.copy()) as run:
        assert run.recovery.entries == first
        assert "torn tail" in run.recovery.notes[0]


@pytest.mark.parametrize("gone", [1, 2, 3])
async def test_a_segment_that_is_missing_is_named(gone: int) -> None:
    disk, _ = await small()
    segments = [name for name in disk.names() if name.startswith("segment")]
    assert len(segments) >= 4
    del disk.inodes[f"segment-{gone:010d}"]
    with pytest.raises(JournalError, match=f"{gone:010d} is missing|do not begin|begin with"):
        async with opened(disk):
            pass


async def test_a_segment_of_another_journal_or_name_is_refused() -> None:
    disk, _ = await small()
    other = Disk()
    async with opened(other, random64=lambda: 5):
        pass
    stranger = Disk()
    async with opened(stranger, node="n2"):
        pass
    for donor, text in ((other, "of another journal"), (stranger, "of node 'n2'")):
        mixed = disk.copy()
        mixed.inodes["segment-0000000002"] = donor.inodes["segment-0000000001"]
        with raises("TV0212", match=text):
            async with opened(mixed):
                pass
    mixed = disk.copy()
    mixed.inodes["segment-0000000002"] = mixed.inodes["segment-0000000001"]
    with raises("TV0212", match="is segment 1 under another name"):
        async with opened(mixed):
            pass


async def test_broken_hash_chain_is_named() -> None:
    disk = Disk()
    async with opened(disk) as run:
        run.write_records(2)
        stranger = History(bytes(32), 2, run.history.history)
        run.write(stranger.record(b"forged"))
    with pytest.raises(JournalError, match="sequence number 3 does not continue"):
        async with opened(disk):
            pass


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"node": "n2"}, "is of node 'n1', not of 'n2'"),
        ({"vote": "3/5"}, "written under vote '2/3', not '3/5'"),
    ],
)
async def test_a_journal_of_another_node_or_policy_is_refused(
    more: dict[str, Any], text: str
) -> None:
    disk, _ = await small()
    with pytest.raises(JournalError, match=text):
        async with opened(disk, **more):
            pass


async def test_another_version_is_refused() -> None:
    disk, _ = await small()
    identity = disk.inodes["identity.json"].cached
    identity[:] = identity.replace(b'"format": 4', b'"format": 9')
    with raises("TV0214", match="format 9, this voter reads formats 2 to 4"):
        async with opened(disk):
            pass


@pytest.mark.parametrize("earlier", [2, 3])
async def test_journal_of_an_earlier_format_is_continued(
    monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    disk = Disk()
    with monkeypatch.context() as patch:
        for module in (voter.journal, voter.journal.format, voter.journal.journal):
            patch.setattr(module, "FORMAT", earlier)
        async with opened(disk) as run:
            made: list[Entry] = [*run.write_records(5, 100)]
            await run.durable()
    assert b'"format": %d' % earlier in disk.inodes["identity.json"].cached
    async with opened(disk) as run:
        assert run.recovery.entries == made
        change = RoleChange(99, 1, {"g1": "voter"}, "")
        run.write(change)
        await run.durable()
    assert b'"format": 4' in disk.inodes["identity.json"].cached
    async with opened(disk) as run:
        assert run.recovery.entries == [*made, change]


async def test_learned_service_is_kept_and_a_lost_identity_is_an_error() -> None:
    disk = Disk()
    async with opened(disk) as run:
        run.journal.learn("kv", 3)
        await run.until(lambda: b'"kv"' in disk.inodes["identity.json"].cached)
        run.write_records(1)
    async with opened(disk) as run:
        assert (run.recovery.identity.service, run.recovery.identity.state_format) == ("kv", 3)
    del disk.inodes["identity.json"]
    with pytest.raises(JournalError, match=r"has no identity\.json"):
        async with opened(disk):
            pass


async def test_a_beginning_that_was_cut_short_begins_again() -> None:
    disk = Disk()
    async with opened(disk):
        pass
    begun = Disk()
    begun.inodes["segment-0000000001"] = disk.inodes["segment-0000000001"]
    head = bytes(begun.inodes["segment-0000000001"].cached)[:40]
    begun.inodes["segment-0000000001"].cached[:] = head + bytes(4056)
    begun.inodes["identity.json.new"] = disk.inodes["identity.json"]
    async with opened(begun) as run:
        made = run.write_records(2)
    async with opened(begun) as run:
        assert run.recovery.entries == made
