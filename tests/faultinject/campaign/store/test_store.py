"""The store: one writer, one plan, nothing lost and nothing twice, whatever ends the writer."""

from __future__ import annotations

import contextlib
import itertools
import lzma
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec import SpecError, parse
from faultinject.campaign.records import GuestFate, HitResult, Outcome
from faultinject.campaign.store.store import Store, StoreBusy, StoreError, StoreFull
from tests.faultinject.campaign.specs import (
    FACTS,
    SMALL,
    fill,
    results_of,
    row_of,
    small_plan,
    sum_of,
)

__all__: list[str] = []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A campaign that has just begun."""
    with Store.create(tmp_path / "c", SMALL, 1, versions={"trivisor": "0.1"}) as made:
        yield made


# ------------------------------------------------------------------ one campaign a directory


def test_a_campaign_is_begun_and_gone_on_with(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "c"
    with Store.create(directory, SMALL, 7, name="mine.toml", versions={"trivisor": "0.1"}) as store:
        fill(store, 10)
    assert (directory / "spec.toml").read_text() == SMALL
    with Store.open(directory) as store:
        assert (store.seed, store.done, store.spec) == (7, 10, parse(SMALL))
        meta = store.meta()
        assert (meta.title, meta.name, meta.seed) == ("A bit of everything", "mine.toml", 7)
        assert meta.versions == {"trivisor": "0.1"}
        assert meta.fingerprint == store.plan.fingerprint


def test_another_campaigns_directory_is_refused_by_name(store: Store) -> None:
    directory = store.directory
    store.close()
    with pytest.raises(StoreError, match=r"holds this very campaign .* campaign resume"):
        Store.create(directory, f"# told otherwise\n{SMALL}", 1)
    with pytest.raises(StoreError, match=r"with seed 1 .* with seed 2 .*another seed of it; give"):
        Store.create(directory, SMALL, 2)
    other = SMALL.replace("A bit of everything", "Another").replace("= 20", "= 21")
    with pytest.raises(
        StoreError, match=r"holds 'A bit of everything' .* not 'Another' .* another spec; give"
    ):
        Store.create(directory, other, 1)
    with Store.open(directory) as again:
        assert again.done == 0


def test_what_is_no_campaign_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no campaign: begin one"):
        Store.open(tmp_path)
    (tmp_path / "campaign.sqlite").write_text("no database at all, and long enough" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path)
    with pytest.raises(SpecError, match="unknown key"):
        Store.create(tmp_path / "c", f"wat = 1\n{SMALL}", 1)
    assert not (tmp_path / "c").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store.create(tmp_path / "file" / "c", SMALL, 1)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_what_is_kept_packed_can_be_read_and_not_gone_on_with(journal: str, tmp_path: Path) -> None:
    made, kept = tmp_path / "made", tmp_path / "kept"
    with Store.create(made, SMALL, 1) as store:
        fill(store, 10)
        rows = list(store.rows())
    kept.mkdir()
    copy = kept / "campaign.sqlite"
    with contextlib.closing(sqlite3.connect(made / "campaign.sqlite")) as plain:
        plain.execute("VACUUM INTO ?", (str(copy),))
    with contextlib.closing(sqlite3.connect(copy)) as plain:
        plain.execute(f"PRAGMA journal_mode = {journal}")
    (kept / "campaign.sqlite.xz").write_bytes(lzma.compress(copy.read_bytes()))
    copy.unlink()
    with Store.open(kept, write=False) as store:
        assert list(store.rows()) == rows
        assert store.partial
    assert [path.name for path in kept.iterdir()] == ["campaign.sqlite.xz"]
    with pytest.raises(StoreError, match=r"is kept to be read; to go on with it unpack it"):
        Store.open(kept)
    (kept / "campaign.sqlite.xz").write_bytes(lzma.compress(bytes(range(256)) * 64))
    with pytest.raises(StoreError, match="cannot be read as a packed campaign"):
        Store.open(kept, write=False)
    (kept / "campaign.sqlite.xz").write_bytes(b"no xz")
    with pytest.raises(StoreError, match="cannot be read as a packed campaign"):
        Store.open(kept, write=False)


def test_missions_are_judged_again_by_the_rules_of_today(store: Store) -> None:
    fill(store)
    pair = next(m for m in store.plan.missions if m.stratum == "f2")
    unseen, seen = results_of(pair)
    fell = tuple(
        GuestFate(name=hit.target, state="absent", reason="", failed=True) for hit in pair.hits
    )
    row = msgspec.structs.replace(
        row_of(pair, Outcome.DETECTED), hits=(_not_applied(unseen), seen), guests=fell
    )
    store._sql.execute("DELETE FROM missions WHERE mission = ?", (pair.index,))
    assert store.add(row)
    before = list(store.rows())
    assert store.judge_again() == [], "it was by these rules"
    # As a version would have it that took the unseen hit for none.
    store._sql.execute(
        "UPDATE missions SET stratum = 'f1', k = 1, outcome = came_out, void = '' "
        "WHERE mission = ?", (pair.index,)
    )  # fmt: skip
    [change] = store.judge_again()
    assert (change.mission, change.was) == (pair.index, "f1")
    assert "was not seen to be applied" in change.now
    assert list(store.rows()) == before


def _not_applied(result: HitResult) -> HitResult:
    return msgspec.structs.replace(result, applied=False, used=None)


def test_a_creation_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "campaign.sqlite").close()
    with pytest.raises(StoreError, match="ended while it was made"):
        Store.open(tmp_path)
    Store.create(tmp_path, SMALL, 1).close()


def test_a_version_that_plans_otherwise_is_noticed(store: Store) -> None:
    store._sql.execute("UPDATE campaign SET fingerprint = 'other'")
    store.close()
    with pytest.raises(StoreError, match=r"another version of Trivisor \(0.1\)"):
        Store.open(store.directory)
    Store.open(store.directory, write=False).close()  # what is there can be read all the same


def test_there_is_one_writer_and_readers_beside_it(store: Store) -> None:
    with pytest.raises(StoreBusy, match="another process runs this campaign"):
        Store.open(store.directory)
    with pytest.raises(StoreBusy):
        Store.create(store.directory, SMALL, 1)
    with Store.open(store.directory, write=False) as reader:
        assert reader.done == 0
        fill(store, 3)
        assert reader.done == 3


# ------------------------------------------------------------------ rows


def test_a_row_comes_back_as_it_was(store: Store) -> None:
    for mission in store.plan.missions:
        row = row_of(mission, Outcome.SILENT)
        assert store.add(row)
        assert store.row(mission.index) == row
    void = msgspec.structs.replace(row_of(store.plan.mission(0)), timings=None)
    assert not store.add(void)
    assert store.row(store.total) is None


def test_rows_come_in_the_order_of_the_plan(store: Store) -> None:
    for mission in reversed(list(store.plan.in_order())):
        store.add(row_of(mission))
    assert [row.index for row in store.rows()] == [m.index for m in store.plan.in_order()]
    ones = [row.index for row in store.rows(stratum="f1", design="voted")]
    assert {store.plan.cell_of(index).name for index in ones} == {"f1"}
    assert len(ones) == 30


def test_a_mission_is_stored_once(store: Store) -> None:
    mission = store.plan.mission(4)
    assert store.add(row_of(mission))
    assert not store.add(row_of(mission, Outcome.SILENT)), "a late twin changes nothing"
    found = store.row(4)
    assert found is not None and found.outcome is Outcome.CORRECT
    assert store.done == 1


def test_a_mission_that_is_not_planned_is_refused(store: Store) -> None:
    row = msgspec.structs.replace(row_of(store.plan.mission(0)), index=store.total)
    with pytest.raises(IndexError):
        store.add(row)


def test_many_rows_are_stored_together_or_not_at_all(store: Store) -> None:
    good = row_of(store.plan.mission(0))
    bad = msgspec.structs.replace(good, index=store.total)
    with pytest.raises(IndexError):
        store.add_many([good, bad])
    assert store.done == 0
    assert store.add_many([good, good]) == 1


def test_pending_is_what_is_planned_and_not_stored(store: Store) -> None:
    order = list(store.plan.in_order())
    assert list(store.pending()) == order
    for mission in order[:5] + order[7:9]:
        store.add(row_of(mission))
    assert list(store.pending()) == order[5:7] + order[9:]
    assert store.prefix() == 5
    assert store.partial
    fill(store)
    assert list(store.pending()) == []
    assert (store.prefix(), store.partial) == (store.total, False)


# ------------------------------------------------------------------ what is told of it


def test_runs_and_facts_are_kept(store: Store) -> None:
    first = store.begin(2)
    store.end(first, "interrupted")
    second = store.begin(4, "tcp://scheduler")
    store.note_facts("w1", FACTS)
    store.note_facts("w1", msgspec.structs.replace(FACTS, cpus=4))
    meta = store.meta()
    assert [(run.number, run.state, run.workers) for run in meta.runs] == [
        (first, "interrupted", 2), (second, "runs", 4),
    ]  # fmt: skip
    assert meta.runs[0].ended is not None and meta.runs[1].ended is None
    assert meta.facts == {"w1, run 2": msgspec.structs.replace(FACTS, cpus=4)}
    store.begin(1)
    assert [run.state for run in store.meta().runs] == ["interrupted", "killed", "runs"]
    store.note_facts("w1", FACTS)
    assert set(store.meta().facts) == {"w1, run 2", "w1, run 3"}, "what ran before is not forgotten"


def test_an_extension_must_be_declared_and_comes_after_the_first_look(tmp_path: Path) -> None:
    with Store.create(tmp_path / "a", SMALL, 1) as store, pytest.raises(StoreError, match="spoil"):
        store.extend()
    with Store.create(tmp_path / "b", f"extension = 0.5\n{SMALL}", 1) as store:
        with pytest.raises(StoreError, match="not complete"):
            store.extend()
        fill(store)
        first = store.total
        store.extend()
        store.extend()
        assert store.total > first and store.partial and store.prefix() == first
        fill(store)
        looks = {key[0]: tally.trials for key, tally in store.tallies("look").items()}
        assert looks == {1: first, 2: store.total - first}
    with Store.open(tmp_path / "b") as store:
        assert store.plan.extended and not store.partial


# ------------------------------------------------------------------ the worst


WRITER = """
import itertools, sys
from pathlib import Path
from faultinject.campaign.store.store import Store
from tests.faultinject.campaign.specs import row_of
count = itertools.count(1)
with Store.open(Path(sys.argv[1])) as store:
    for mission in store.pending():
        store.add(row_of(mission))
        print(mission.index, flush=True)
        if next(count) % 60 == 0:
            sys.stdin.readline()  # until somebody kills it: or all would be over at once
"""


def test_kill_9_loses_nothing_that_was_added_and_counts_nothing_twice(store: Store) -> None:
    directory = store.directory
    store.close()
    told: list[int] = []
    kills = 0
    while True:
        command = [sys.executable, "-c", WRITER, str(directory)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in itertools.islice(process.stdout, 55):
                told.append(int(line))
            process.send_signal(signal.SIGKILL)
            told += [int(line) for line in process.stdout if line.endswith("\n")]
        kills += process.returncode == -signal.SIGKILL
        with Store.open(directory, write=False) as reader:
            assert set(told) <= {row.index for row in reader.rows()}
            if not reader.partial:
                break
    assert kills >= 2
    with Store.open(directory) as again:
        assert again.done == again.total == sum_of(again.by_stratum()).trials
        assert len(told) == len(set(told)), "no mission was run again that was told stored"


def test_a_full_disk_stops_it_and_it_can_be_gone_on_with(store: Store) -> None:
    """SQLite's own limit stands for the disk's: it fails in the same way, at the same place."""
    pages = store._sql.execute("PRAGMA page_count").fetchone()[0]
    store._sql.execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(StoreFull, match="the disk is full: make room, then resume"):
        fill_one_by_one(store)
    kept = store.done
    assert 0 < kept < store.total
    with pytest.raises(StoreFull):
        fill(store)  # together, or not at all
    assert store.done == kept
    store.close()
    with Store.open(store.directory) as again:
        fill_one_by_one(again)
        assert again.prefix() == again.total


def fill_one_by_one(store: Store) -> None:
    """Store what is missing, each row by itself."""
    for mission in store.pending():
        store.add(row_of(mission))


def test_a_lock_ends_with_its_process(store: Store) -> None:
    directory = store.directory
    child = os.fork()
    if child == 0:
        os._exit(0)  # inherits nothing: the lock is closed on exec, and the parent's own stays
    os.waitpid(child, 0)
    with pytest.raises(StoreBusy):
        Store.open(directory)
    store.close()
    Store.open(directory).close()


def test_the_plan_is_that_of_the_directory(store: Store) -> None:
    assert store.plan.fingerprint == small_plan().fingerprint == plan(parse(SMALL), 1).fingerprint
