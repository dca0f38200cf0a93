"""A journal that is taken back to a checkpoint: what a voter finds, and what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.monitor.recent_log import journaled_writes
from guests.services.kv import KeyValue
from tests.deploy.replay.journals import JournalMaker, make_journal, put
from tests.errors import raises
from tests.voter.journal.disk import opened
from voter.core.entries import Record, RoleChange
from voter.journal import Directory
from voter.journal.files import Files
from voter.journal.reader import JournalReader
from voter.journal.revert import RevertPlan, apply_revert, plan_revert

_WRITES = [*range(1, 11), *range(12, 22), *range(23, 33)]


def fill(maker: JournalMaker) -> Iterator[None]:
    """Writes 1 to 10, checkpoint 11, writes 12 to 21, checkpoint 22, writes 23 to 32."""
    for part in range(3):
        for number in range(10):
            maker.write(put(f"k{number}", f"{part}"))
        if part < 2:
            yield


def apply(directory: Path, plan: RevertPlan, files: Files | None = None) -> None:
    async def work() -> None:
        used = files or Directory(directory)
        try:
            await apply_revert(used, directory, plan)
        finally:
            used.close()

    asyncio.run(work())


def recovered(directory: Path) -> tuple[int, bytes, list[int]]:
    """Return what a voter starts with: checkpoint, its state, and the writes after it."""

    async def work() -> tuple[int, bytes, list[int]]:
        async with opened(Directory(directory), history=1 << 30, segment_size=1 << 16) as run:
            found = run.recovery
            seqs = [entry.seq for entry in found.entries if isinstance(entry, Record)]
            return found.base.seq, found.state, seqs

    return asyncio.run(work())


@pytest.mark.parametrize(("before", "checkpoint", "lost"), [(25, 22, 10), (22, 11, 20), (5, 0, 30)])
def test_voter_starts_from_the_checkpoint_before_the_request(
    scratch: Path, before: int, checkpoint: int, lost: int
) -> None:
    asyncio.run(make_journal(scratch / "j", fill))
    wanted = {each.seq: each for each in JournalReader(scratch / "j").checkpoints()}[checkpoint]
    state = JournalReader(scratch / "j").load(wanted)[1]
    plan = plan_revert(scratch / "j", before)
    assert (plan.checkpoint, plan.lost, plan.last_lost) == (checkpoint, lost, 32)
    assert plan.seq > 32
    apply(scratch / "j", plan)
    assert recovered(scratch / "j") == (plan.seq, state, [])
    assert recovered(scratch / "j") == (plan.seq, state, []), "and the next one, too"


def test_writes_after_a_revert_are_kept_and_another_revert_undoes_only_them(scratch: Path) -> None:
    asyncio.run(make_journal(scratch / "j", fill))
    first = plan_revert(scratch / "j", 25)
    apply(scratch / "j", first)

    async def go_on() -> None:
        async with opened(Directory(scratch / "j"), history=1 << 30, segment_size=1 << 16) as run:
            assert run.recovery.base.seq == first.seq
            maker = JournalMaker(run, KeyValue())
            maker.seq = first.seq
            maker.time_ns = first.time_ns
            maker._history = run.recovery.base.history
            for number in range(5):
                maker.write(put("after", str(number)))
            await run.durable()

    asyncio.run(go_on())
    assert recovered(scratch / "j")[2] == [first.seq + n for n in range(1, 6)]
    seqs = [each.seq for each in journaled_writes(scratch / "j")]
    assert seqs == [*_WRITES, *range(first.seq + 1, first.seq + 6)], (
        "both pasts, one after the other"
    )
    second = plan_revert(scratch / "j", first.seq + 3)
    assert (second.checkpoint, second.lost) == (first.seq, 5)
    apply(scratch / "j", second)
    assert recovered(scratch / "j")[0] == second.seq > first.seq + 5


def test_roles_stay_as_they_are_now(scratch: Path) -> None:
    roles = {"g1": "voter", "g2": "retired", "g3": "voter", "g4": "voter"}
    change = RoleChange(30, 4, roles, "a test")

    def with_roles(maker: JournalMaker) -> Iterator[None]:
        yield from fill(maker)
        maker.run.write(change)

    asyncio.run(make_journal(scratch / "j", with_roles))
    apply(scratch / "j", plan_revert(scratch / "j", 25))
    reader = JournalReader(scratch / "j")
    base, _ = reader.load(reader.checkpoints()[-1])
    assert (base.roles_version, base.roles) == (4, change.roles)


def test_what_was_undone_can_still_be_read(scratch: Path) -> None:
    asyncio.run(make_journal(scratch / "j", fill))
    apply(scratch / "j", plan_revert(scratch / "j", 25))
    reader = JournalReader(scratch / "j")
    starts = {each.seq: each for each in reader.checkpoints()}
    seqs = [entry.seq for entry in reader.entries(starts[22]) if isinstance(entry, Record)]
    assert seqs == list(range(23, 33))


class _Power(Exception):
    """The power fails."""


class _Cut:
    """Files that fail before the operation with this number, as by a power cut."""

    def __init__(self, files: Directory, at: int) -> None:
        self._files = files
        self._left = at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if name not in ("create", "write_whole", "rename", "remove", "sync_names", "reopen"):
            return found

        def call(*arguments: object) -> Any:
            if self._left == 0:
                raise _Power
            self._left -= 1
            return found(*arguments)

        return call


def test_power_cut_before_any_step_leaves_the_journal_before_or_after_the_revert(
    scratch: Path,
) -> None:
    seen = set()
    for at in range(40):
        directory = scratch / str(at)
        asyncio.run(make_journal(directory, fill))
        plan = plan_revert(directory, 25)
        try:
            files: Any = _Cut(Directory(directory), at)
            apply(directory, plan, files)
            break
        except _Power:
            pass
        copy = scratch / f"copy{at}"
        _copy(directory, copy)
        seq, _, writes = recovered(copy)
        assert (seq, writes) in ((22, list(range(23, 33))), (plan.seq, [])), at
        seen.add(seq)
        apply(directory, plan)
        assert recovered(directory)[0] == plan.seq, "completed by a second try"
    else:
        pytest.fail("it has more steps than expected")
    assert len(seen) == 2


def _copy(source: Path, target: Path) -> None:
    for path in (each for each in source.rglob("*") if each.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())


def test_checkpoint_that_is_not_kept_is_an_error_that_names_the_option(scratch: Path) -> None:
    asyncio.run(make_journal(scratch / "j", fill))
    apply(scratch / "j", plan_revert(scratch / "j", 25))
    for path in (scratch / "j" / "history").iterdir():
        path.unlink()
    with raises("TV0251", "keep-history"):
        plan_revert(scratch / "j", 25)


def test_voter_that_used_the_journal_meanwhile_is_noticed(scratch: Path) -> None:
    asyncio.run(make_journal(scratch / "j", fill))
    plan = plan_revert(scratch / "j", 25)
    apply(scratch / "j", plan)
    with raises("TV0251", "a voter has used it"):
        apply(scratch / "j", RevertPlan(**{**_fields(plan), "seq": 30}))


def _fields(plan: RevertPlan) -> dict[str, Any]:
    names: Iterable[str] = plan.__struct_fields__
    return {name: getattr(plan, name) for name in names}
