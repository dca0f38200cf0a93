"""The store: one writer, one plan; nothing lost and nothing twice, however the writer ends."""

from __future__ import annotations

import contextlib
import itertools
import lzma
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deploy.strict_toml import SpecError
from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.store.store import Store, StoreError
from faultinject.results.outcome import Outcome
from tests.errors import raises
from tests.faultinject.campaign.specs import (
    FACTS,
    SMALL,
    fill,
    row_of,
    sum_of,
)
from tests.project.tree import ROOT

__all__: list[str] = []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A campaign that has just begun."""
    with Store.create(tmp_path / "c", SMALL, 1, versions={"trivisor": "0.1"}) as made:
        yield made


# ------------------------------------------------------------------ one campaign a directory


def test_open_returns_the_campaign_that_create_made(tmp_path: Path) -> None:
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


def test_results_have_a_copy_of_the_service_and_may_be_moved(tmp_path: Path) -> None:
    service = tmp_path / "own.py"
    service.write_text((ROOT / "examples/counter.py").read_text())
    text = SMALL.replace("[station]", '[station]\nservice = "own.py"')
    with Store.create(tmp_path / "c", text, 1, name=str(tmp_path / "mine.toml")) as store:
        fill(store, 3)
        first = store.spec
    service.unlink()
    (tmp_path / "c").rename(tmp_path / "moved")
    with Store.open(tmp_path / "moved") as store:
        assert store.done == 3
        assert store.spec.station.service == str(tmp_path / "moved/own.py")
        assert store.spec.hash == first.hash
    with pytest.raises(SpecError, match=r"line .*: no service .*own.py"):
        Store.create(tmp_path / "d", text, 1, name=str(tmp_path / "mine.toml"))
    with pytest.raises(SpecError, match="copy the file next to the campaign file"):
        parse(text.replace("own.py", "some/own.py"))


def test_create_names_the_campaign_that_the_directory_holds(store: Store) -> None:
    directory = store.directory
    store.close()
    with raises("TV0526", match=r"already holds this campaign .* campaign resume"):
        Store.create(directory, f"# a comment\n{SMALL}", 1)
    with raises("TV0526", match=r"with seed 1 .* with seed 2 .*with another seed; give"):
        Store.create(directory, SMALL, 2)
    other = SMALL.replace("A bit of everything", "Another").replace("= 20", "= 21")
    with pytest.raises(
        StoreError, match=r"holds 'A bit of everything' .* not 'Another' .* another spec; give"
    ):
        Store.create(directory, other, 1)
    with Store.open(directory) as again:
        assert again.done == 0


def test_open_and_create_explain_what_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no campaign: begin one"):
        Store.open(tmp_path)
    (tmp_path / "campaign.sqlite").write_text("no database at all, and long enough" * 100)
    with raises("TV0522", match="cannot be opened"):
        Store.open(tmp_path)
    with pytest.raises(SpecError, match="unknown key"):
        Store.create(tmp_path / "c", f"wat = 1\n{SMALL}", 1)
    assert not (tmp_path / "c").exists()
    (tmp_path / "file").write_text("")
    with raises("TV0525", match="cannot be created"):
        Store.create(tmp_path / "file" / "c", SMALL, 1)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_packed_store_is_read_only(journal: str, tmp_path: Path) -> None:
    made, kept = tmp_path / "made", tmp_path / "kept"
    with Store.create(made, SMALL, 1) as store:
        fill(store, 10)
        rows = list(store.missions())
    kept.mkdir()
    copy = kept / "campaign.sqlite"
    with contextlib.closing(sqlite3.connect(made / "campaign.sqlite")) as plain:
        plain.execute("VACUUM INTO ?", (str(copy),))
    with contextlib.closing(sqlite3.connect(copy)) as plain:
        plain.execute(f"PRAGMA journal_mode = {journal}")
    (kept / "campaign.sqlite.xz").write_bytes(lzma.compress(copy.read_bytes()))
    copy.unlink()
    with Store.open(kept, write=False) as store:
        assert list(store.missions()) == rows
        assert store.partial
    assert [path.name for path in kept.iterdir()] == ["campaign.sqlite.xz"]
    with pytest.raises(StoreError, match=r"can only be read; to resume it, unpack it"):
        Store.open(kept)
    (kept / "campaign.sqlite.xz").write_bytes(lzma.compress(bytes(range(256)) * 64))
    with raises("TV0522", match="cannot be read as a packed campaign"):
        Store.open(kept, write=False)
    (kept / "campaign.sqlite.xz").write_bytes(b"no xz")
    with pytest.raises(StoreError, match="cannot be read as a packed campaign"):
        Store.open(kept, write=False)


def test_store_that_cannot_be_written_is_read_with_its_log(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 10)  # these rows are in the log, as the writer has not closed it
    rows = list(store.missions())
    monkeypatch.setattr("os.access", lambda *_: False)
    files = {path.name: path.stat().st_mtime_ns for path in store.directory.iterdir()}
    assert "campaign.sqlite-wal" in files
    with Store.open(store.directory, write=False) as reader:
        assert list(reader.missions()) == rows
    assert {path.name: path.stat().st_mtime_ns for path in store.directory.iterdir()} == files
    store.close()
    (store.directory / "campaign.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot be read as a campaign's results"):
        Store.open(store.directory, write=False)


def test_create_succeeds_after_an_interrupted_creation(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "campaign.sqlite").close()
    with pytest.raises(StoreError, match="its creation was interrupted"):
        Store.open(tmp_path)
    Store.create(tmp_path, SMALL, 1).close()


def test_open_refuses_to_write_when_this_version_plans_other_missions(store: Store) -> None:
    store._sql.execute("UPDATE campaign SET fingerprint = 'other'")
    store.close()
    with pytest.raises(StoreError, match=r"another version of Trivisor \(0.1\)"):
        Store.open(store.directory)
    Store.open(store.directory, write=False).close()  # reading works


def test_readers_see_new_rows_of_the_one_writer(store: Store) -> None:
    with raises("TV0524", match="another process runs this campaign"):
        Store.open(store.directory)
    with raises("TV0524"):
        Store.create(store.directory, SMALL, 1)
    with Store.open(store.directory, write=False) as reader:
        assert reader.done == 0
        fill(store, 3)
        assert reader.done == 3


# ------------------------------------------------------------------ rows


def test_a_row_is_read_back_as_it_was_stored(store: Store) -> None:
    for mission in store.plan.missions:
        row = row_of(mission, Outcome.SILENT)
        assert store.add(row)
        assert store.row(mission.index) == store.assess(row)
    assert store.row(store.total) is None


def test_missions_come_in_the_order_of_the_plan(store: Store) -> None:
    for mission in reversed(list(store.plan.in_order())):
        store.add(row_of(mission))
    assert [plan for plan, _ in store.missions()] == list(store.plan.in_order())


def test_add_ignores_a_mission_that_is_stored_already(store: Store) -> None:
    mission = store.plan.mission(4)
    assert store.add(row_of(mission))
    assert not store.add(row_of(mission, Outcome.SILENT))
    found = store.row(4)
    assert found is not None and found.outcome is Outcome.CORRECT
    assert store.done == 1


def test_add_refuses_a_mission_that_is_not_planned(store: Store) -> None:
    row = msgspec.structs.replace(row_of(store.plan.mission(0)), index=store.total)
    with pytest.raises(IndexError):
        store.add(row)


def test_pending_returns_planned_missions_that_are_not_stored(store: Store) -> None:
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


# ------------------------------------------------------------------ runs, facts, extension


def test_meta_returns_all_runs_and_facts(store: Store) -> None:
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
    assert set(store.meta().facts) == {"w1, run 2", "w1, run 3"}


def test_extend_needs_a_declared_extension_and_a_complete_first_analysis(tmp_path: Path) -> None:
    with (
        Store.create(tmp_path / "a", SMALL, 1) as store,
        raises("TV0528", match="declares no extension"),
    ):
        store.extend()
    with Store.create(tmp_path / "b", f"extension = 0.5\n{SMALL}", 1) as store:
        with raises("TV0528", match="incomplete"):
            store.extend()
        fill(store)
        first = store.total
        store.extend()
        store.extend()
        assert store.total > first and store.partial and store.prefix() == first
        fill(store)
        analyses = {key[0]: tally.trials for key, tally in store.tallies("analysis").items()}
        assert analyses == {1: first, 2: store.total - first}
    with Store.open(tmp_path / "b") as store:
        assert store.plan.extended and not store.partial


# ------------------------------------------------------------------ crashes, full disks


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
            sys.stdin.readline()  # until it is killed
"""


def test_kill_9_loses_no_added_row_and_repeats_none(store: Store) -> None:
    directory = store.directory
    store.close()
    added: list[int] = []
    kills = 0
    while True:
        command = [sys.executable, "-c", WRITER, str(directory)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in itertools.islice(process.stdout, 55):
                added.append(int(line))
            process.send_signal(signal.SIGKILL)
            added += [int(line) for line in process.stdout if line.endswith("\n")]
        kills += process.returncode == -signal.SIGKILL
        with Store.open(directory, write=False) as reader:
            assert set(added) <= {plan.index for plan, _ in reader.missions()}
            if not reader.partial:
                break
    assert kills >= 2
    with Store.open(directory) as again:
        assert again.done == again.total == sum_of(again.by_stratum()).trials
        assert len(added) == len(set(added))


def test_a_campaign_can_be_resumed_after_a_full_disk(store: Store) -> None:
    """SQLite's page limit stands for the disk's: it fails in the same way, at the same place."""
    pages = store._sql.execute("PRAGMA page_count").fetchone()[0]
    store._sql.execute(f"PRAGMA max_page_count = {pages + 20}")
    with raises("TV0523", match="the disk is full: free disk space, then resume"):
        fill_one_by_one(store)
    kept = store.done
    assert 0 < kept < store.total
    store.close()
    with Store.open(store.directory) as again:
        fill_one_by_one(again)
        assert again.prefix() == again.total


def fill_one_by_one(store: Store) -> None:
    """Store the missing rows, one by one."""
    for mission in store.pending():
        store.add(row_of(mission))
