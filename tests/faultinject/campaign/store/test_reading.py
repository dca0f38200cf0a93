"""What the store tells: counts by anything, prefixes, times, exports."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.planning.plan import CampaignPlan
from faultinject.campaign.records import MissionPlan, MissionRow, Outcome, Timings
from faultinject.campaign.store.store import Store
from faultinject.campaign.store.table import COLUMNS, INSERT, record_of
from faultinject.campaign.store.tally import Tally
from tests.faultinject.campaign.specs import SMALL, fill, row_of, sum_of

__all__: list[str] = []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A campaign that has just begun."""
    with Store.create(tmp_path / "c", SMALL, 1) as made:
        yield made


# ------------------------------------------------------------------ counts


def test_missions_are_counted_by_stratum_kind_dose_and_shot(store: Store) -> None:
    fill(store)
    by_stratum = store.by_stratum()
    assert by_stratum["f0"] == Tally(correct=20)
    assert by_stratum["f2"] == Tally(detected=40)
    assert by_stratum["f1-repair"] == Tally(correct=30)
    assert sum((tally.trials for tally in by_stratum.values()), 0) == store.total
    assert {kinds for stratum, kinds in store.by_kind() if stratum == "f1"} == {
        "crash", "corrupt-reply",
    }  # fmt: skip
    assert all(not stratum.startswith(("dose", "shot")) for stratum, _ in store.by_kind())
    assert store.by_dose() == {
        ("flip-ram", 0, "voted"): Tally(correct=2),
        ("flip-ram", 0, "nv"): Tally(correct=2),
        ("flip-ram", 50, "voted"): Tally(detected=7),
        ("flip-ram", 50, "nv"): Tally(correct=9),
    }
    assert store.shots() == {
        ("flip-all", 5, "voted", ""): {3: Tally(detected=4)},
        ("flip-all", 5, "nv", ""): {3: Tally(correct=3)},
        ("host-crash", 1, "voted", ""): {3: Tally(detected=2)},
    }


def test_counts_by_anything_of_what_is_wanted(store: Store) -> None:
    fill(store)
    by_k = store.tallies("k", design="voted", repair=False, voter_hit=False, kind="")
    assert {key[0]: tally.trials for key, tally in by_k.items()} == {0: 20, 1: 30, 2: 40, 3: 10}
    masks = store.tallies("mask", stratum="f1")
    assert set(masks) == {(1,), (2,), (4,)}
    alike = store.tallies("alike", stratum=("f2", "f3"))
    assert {key for (key,) in alike} <= {None, False, True}
    assert store.tallies() == {(): sum_of(store.by_stratum())}
    assert store.tallies("voter_kind", voter_hit=True) == {("voter-kill",): Tally(correct=8)}
    with pytest.raises(ValueError, match="no column 'words'"):
        store.tallies("words")
    with pytest.raises(ValueError, match="no column 'a; DROP"):
        store.tallies(**{"a; DROP TABLE missions": 1})


def test_a_prefix_counts_the_first_of_the_order_only(store: Store) -> None:
    fill(store, 60)
    order = list(store.plan.in_order())
    store.add(row_of(order[100], Outcome.SILENT))
    assert store.prefix() == 60
    prefix = store.by_stratum(store.prefix())
    assert sum_of(prefix).trials == 60
    assert sum_of(prefix).silent == 0
    assert len(list(store.rows(prefix=60))) == 60


def test_what_was_not_applied_is_no_trial(store: Store) -> None:
    missions = {name: mission_of(store.plan, name) for name in ("f1", "f2", "f3")}
    for mission in missions.values():
        store.add(first_not_applied(row_of(mission, Outcome.DETECTED)))
    tallies = store.tallies("planned", "stratum")
    assert tallies == {
        ("f1", "f1"): Tally(void=1),
        ("f2", "f1"): Tally(detected=1),  # by the rule that was there before the data
        ("f3", "f2"): Tally(detected=1),
    }
    void = store.row(missions["f1"].index)
    assert void is not None and void.outcome is None
    assert "was not applied to" in void.void
    assert store.tallies("k", planned="f3") == {(2,): Tally(detected=1)}


def test_what_was_not_seen_to_be_applied_and_may_have_been_is_no_trial(store: Store) -> None:
    mission = mission_of(store.plan, "f2")
    row = row_of(mission, Outcome.DETECTED)
    store.add(msgspec.structs.replace(first_not_applied(row), guests=row.guests))
    assert store.tallies("planned", "stratum") == {("f2", "f2"): Tally(void=1)}
    void = store.row(mission.index)
    assert void is not None and "was not seen to be applied to" in void.void


def first_not_applied(row: MissionRow) -> MissionRow:
    """The same, with one guest less hit, which serves on."""
    first = msgspec.structs.replace(row.hits[0], applied=False)
    guests = tuple(
        msgspec.structs.replace(guest, failed=guest.failed and guest.name != first.target)
        for guest in row.guests
    )
    return msgspec.structs.replace(row, hits=(first, *row.hits[1:]), guests=guests)


def mission_of(planned: CampaignPlan, stratum: str) -> MissionPlan:
    """The first mission of a cell."""
    return next(mission for mission in planned.missions if mission.stratum == stratum)


def test_latencies_and_times_are_summarized(store: Store) -> None:
    fill(store)
    latency = store.latencies("stratum")["f0"]
    assert (latency.count, latency.unanswered, latency.p50, latency.max) == (40, 20, 0.001, 0.002)
    assert set(store.latencies("k", design="voted")) == {0, 1, 2, 3}
    timings, count = store.timings("stratum")["f1"]
    assert count == 30
    assert timings.total == pytest.approx(Timings(reset=0.2, inject=0.01, workload=0.05,
                                                  settle=0.01).total)  # fmt: skip
    rates = store.rates()
    assert rates is not None
    assert rates.clean == pytest.approx(0.27)
    assert "crash" in rates.kinds


# ------------------------------------------------------------------ exports


def json_of(value: object) -> object:
    """What comes back of it from JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))


def test_csv_has_all_rows(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert store.export_csv(tmp_path / "rows.csv") == store.total
    with (tmp_path / "rows.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert list(records[0]) == list(COLUMNS)
    assert [int(record["mission"]) for record in records] == [
        mission.index for mission in store.plan.in_order()
    ]
    planned = store.plan.mission(int(records[0]["mission"]))
    assert msgspec.json.decode(records[0]["plan_hits"]) == json_of(planned.hits)


def test_parquet_has_the_same(store: Store, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    fill(store)
    mission = store.plan.mission(store.total - 1)
    path = tmp_path / "rows.parquet"
    assert store.export_parquet(path) == store.total
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT stratum, count(*), bool_and(repair = contains(stratum, 'repair')) "
            f"FROM '{path}' GROUP BY stratum"
        ).fetchall()
        one = connection.execute(
            f"SELECT seed, alike, void, outcome, plan_hits FROM '{path}' WHERE mission = ?",
            [mission.index],
        ).fetchone()
    assert {name: count for name, count, _ in found} == {
        cell.name: cell.missions for cell in store.plan.cells
    }
    assert all(same for _, _, same in found)
    assert one[:4] == (mission.seed, None, "", "detected")
    assert msgspec.json.decode(one[4]) == json_of(mission.hits)
    assert sorted(path.parent.glob("*.csv")) == []


# ------------------------------------------------------------------ speed


@pytest.mark.long
def test_a_million_rows_are_counted_in_seconds(tmp_path: Path) -> None:
    text = SMALL.replace("missions = 20", "missions = 1_000_000")
    with Store.create(tmp_path / "c", text, 1) as store:
        mission, planned = store.plan.mission(0), store.plan
        record = list(record_of(mission, row_of(mission), planned.cells, planned.first))
        places = (list(COLUMNS).index("ord"), list(COLUMNS).index("mission"))

        def records() -> Iterator[list[object]]:
            for index in range(1_000_000):
                record[places[0]], record[places[1]] = planned.order_of(index), index
                yield record

        store._sql.execute("BEGIN")
        store._sql.executemany(INSERT, records())
        store._sql.execute("COMMIT")
        counts = (store.by_stratum, store.by_kind, store.by_dose, store.prefix)
        for count in counts:
            began = time.process_time()
            count()
            assert time.process_time() - began < 5, count.__name__
        assert store.by_stratum()["f0"].correct == 1_000_000
