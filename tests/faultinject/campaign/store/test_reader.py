"""Reading a campaign: counts by any column, prefixes, durations, exports, legacy rows."""

from __future__ import annotations

import csv
import lzma
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.planning.plan import CampaignPlan
from faultinject.campaign.records import MissionPlan, MissionRow, RequestResult
from faultinject.campaign.store.store import Store
from faultinject.campaign.store.table import EXPORTED
from faultinject.campaign.store.tally import Tally
from faultinject.results.outcome import Outcome
from tests.errors import raises
from tests.faultinject.campaign.specs import SMALL, fill, row_of, sum_of

__all__: list[str] = []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A campaign that has just begun."""
    with Store.create(tmp_path / "c", SMALL, 1) as made:
        yield made


# ------------------------------------------------------------------ counts


def test_missions_are_counted_by_stratum_dose_and_shot(store: Store) -> None:
    fill(store)
    by_stratum = store.by_stratum()
    assert by_stratum["f0"] == Tally(correct=20)
    assert by_stratum["f2"] == Tally(detected=40)
    assert by_stratum["f1-repair"] == Tally(correct=30)
    assert sum((tally.trials for tally in by_stratum.values()), 0) == store.total
    assert store.by_dose() == {
        ("flip-ram", 0, "voted"): Tally(correct=2),
        ("flip-ram", 0, "nv"): Tally(correct=2),
        ("flip-ram", 50, "voted"): Tally(detected=7),
        ("flip-ram", 50, "nv"): Tally(correct=9),
    }
    assert store.common_causes() == {
        ("flip-all", 5, "voted", ""): {3: Tally(detected=4)},
        ("flip-all", 5, "nv", ""): {0: Tally(correct=3)},
        ("host-crash", 1, "voted", ""): {3: Tally(detected=2)},
    }


def test_tallies_group_and_select_by_any_column(store: Store) -> None:
    fill(store)
    by_k = store.tallies("k", design="voted", repair=False, host_target_hit=False, kind="")
    assert {key[0]: tally.trials for key, tally in by_k.items()} == {0: 20, 1: 30, 2: 40, 3: 10}
    masks = store.tallies("mask", stratum="f1")
    assert set(masks) == {(1,), (2,), (4,)}
    alike = store.tallies("alike", stratum=("f2", "f3"))
    assert {key for (key,) in alike} <= {None, False, True}
    assert store.tallies() == {(): sum_of(store.by_stratum())}
    assert store.tallies("voter_kind", host_target_hit=True) == {("voter-kill",): Tally(correct=8)}
    with pytest.raises(ValueError, match="no column 'problem'"):
        store.tallies("problem")
    with pytest.raises(ValueError, match="no column 'a; DROP"):
        store.tallies(**{"a; DROP TABLE missions": 1})


def test_tallies_of_a_prefix_count_the_first_of_the_order_only(store: Store) -> None:
    fill(store, 60)
    order = list(store.plan.in_order())
    store.add(row_of(order[100], Outcome.SILENT))
    assert store.prefix() == 60
    prefix = store.by_stratum(store.prefix())
    assert sum_of(prefix).trials == 60
    assert sum_of(prefix).wrong_replies == 0


def test_tallies_count_a_mission_for_the_faults_that_were_applied(store: Store) -> None:
    missions = {name: mission_of(store.plan, name) for name in ("f1", "f2", "f3")}
    for mission in missions.values():
        store.add(first_not_applied(row_of(mission, Outcome.DETECTED)))
    tallies = store.tallies("planned", "stratum")
    assert tallies == {
        ("f1", "f1"): Tally(excluded=1),
        ("f2", "f1"): Tally(detected=1),
        ("f3", "f2"): Tally(detected=1),
    }
    excluded = store.row(missions["f1"].index)
    assert excluded is not None and excluded.outcome is None
    assert "was not applied to" in excluded.excluded
    assert store.tallies("k", planned="f3") == {(2,): Tally(detected=1)}


def first_not_applied(row: MissionRow) -> MissionRow:
    """Return the row with one hit not applied, whose guest keeps serving."""
    first = msgspec.structs.replace(row.injections[0], applied=False)
    guests = tuple(
        msgspec.structs.replace(guest, failed=guest.failed and guest.name != first.target)
        for guest in row.guests
    )
    return msgspec.structs.replace(row, injections=(first, *row.injections[1:]), guests=guests)


def mission_of(planned: CampaignPlan, stratum: str) -> MissionPlan:
    """Return the first mission of a cell."""
    return next(mission for mission in planned.missions if mission.stratum == stratum)


def test_new_rows_are_counted_after_an_earlier_query(store: Store) -> None:
    fill(store, 5)
    assert sum_of(store.by_stratum()).trials == 5
    fill(store, 9)
    assert sum_of(store.by_stratum()).trials == 9


def test_rates_are_mean_durations(store: Store) -> None:
    fill(store)
    durations = store.durations()
    assert durations is not None
    assert durations.clean == pytest.approx(0.27)
    assert "crash" in durations.kinds


# ------------------------------------------------------------------ legacy rows

RESULTS = Path(__file__).parents[4] / "docs" / "results" / "mofn"


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Store]:
    """A kept campaign of format 1, unpacked."""
    packed = lzma.decompress((RESULTS / "campaign.sqlite.xz").read_bytes())
    (tmp_path / "campaign.sqlite").write_bytes(packed)
    with Store.open(tmp_path, write=False) as opened:
        yield opened


def test_rows_of_format_1_are_assessed_as_they_were_stored(kept: Store) -> None:
    query = "SELECT mission, stratum, outcome, void, words, correct, masked FROM missions"
    stored = {record["mission"]: tuple(record)[1:] for record in kept._sql.execute(query)}
    for plan, mission in kept.missions():
        wrong = mission.outcome is not None and mission.outcome.is_wrong_reply
        outcome = "silent" if wrong else mission.outcome
        assert stored.pop(plan.index) == (
            mission.stratum, outcome, mission.excluded, mission.problem, mission.correct,
            mission.masked,
        )  # fmt: skip
    assert not stored


def test_rows_of_format_2_say_what_they_cannot_tell(tmp_path: Path) -> None:
    """They hold the message of the first wrong reply only."""
    old = "GET /kv/a: a wrong reply: b'HTTP/1.1 500 Error'"
    with Store.create(tmp_path / "c", SMALL, 1) as made:
        plans = [plan for plan in made.plan.in_order() if plan.design == "nv" and plan.k][:2]
        for plan, more in zip(plans, (0, 1), strict=True):
            first, later = RequestResult(code="wrong", problem=old), RequestResult(code="wrong")
            made.add(msgspec.structs.replace(row_of(plan), requests=(first, *[later] * more)))
        made._sql.execute("UPDATE campaign SET format = 2")
    with Store.open(tmp_path / "c", write=False) as found:
        read = {mission.index: mission for _, mission in found.missions()}
    outcomes = [(read[plan.index].outcome, read[plan.index].believed) for plan in plans]
    assert outcomes == [(Outcome.DECLARED, 0), (Outcome.UNCLEAR, None)]
    with raises("TV0527", match="can only be read"):
        Store.open(tmp_path / "c")


def test_a_campaign_of_format_1_can_only_be_read(kept: Store) -> None:
    with raises("TV0527", match="can only be read"):
        Store.open(kept.directory)


# ------------------------------------------------------------------ exports


def json_of(value: object) -> object:
    """Return the value after a round trip through JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))


def test_export_csv_writes_all_rows(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert store.export_csv(tmp_path / "rows.csv") == store.total
    with (tmp_path / "rows.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert list(records[0]) == list(EXPORTED)
    assert [int(record["mission"]) for record in records] == [
        mission.index for mission in store.plan.in_order()
    ]
    planned = store.plan.mission(int(records[0]["mission"]))
    assert msgspec.json.decode(records[0]["plan_hits"]) == json_of(planned.injections)


def test_export_holds_every_wrong_reply(store: Store, kept: Store, tmp_path: Path) -> None:
    mission = next(plan for plan in store.plan.in_order() if plan.design == "nv" and plan.k)
    replies = [f"HTTP/1.1 {status} x" for status in (500, 200, 404)]
    wrong = tuple(RequestResult(code="wrong", reply=reply) for reply in replies)
    store.add(msgspec.structs.replace(row_of(mission), requests=wrong))
    for found in (store, kept):
        found.export_csv(tmp_path / "rows.csv")
        with (tmp_path / "rows.csv").open(newline="") as file:
            records = list(csv.DictReader(file))
        if found is store:
            [record] = records
            exported = msgspec.json.decode(record["requests"])
            assert [each["reply"] for each in exported] == replies
            assert (record["outcome"], record["believed"]) == ("silent-corruption", "2")
        else:
            assert {record["requests"] for record in records} == {""}, "format 1 has none"


def test_export_parquet_writes_all_rows(store: Store, tmp_path: Path) -> None:
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
            f"SELECT seed, alike, excluded, outcome, plan_hits FROM '{path}' WHERE mission = ?",
            [mission.index],
        ).fetchone()
    assert {name: count for name, count, _ in found} == {
        cell.name: cell.missions for cell in store.plan.cells
    }
    assert all(same for _, _, same in found)
    assert one[:4] == (mission.seed, None, "", "detected")
    assert msgspec.json.decode(one[4]) == json_of(mission.injections)
    assert sorted(path.parent.glob("*.csv")) == []


# ------------------------------------------------------------------ speed


@pytest.mark.long
def test_tallies_take_seconds_when_there_are_100_000_rows(tmp_path: Path) -> None:
    text = SMALL.replace("missions = 20", "missions = 100_000")
    with Store.create(tmp_path / "c", text, 1) as store:
        for index in range(100_000):
            store.add(row_of(store.plan.mission(index)))
        began = time.process_time()
        assert store.by_stratum()["f0"].correct == 100_000
        assert time.process_time() - began < 20, "assessing all rows"
        for count in (store.by_stratum, store.by_dose, store.prefix):
            began = time.process_time()
            count()
            assert time.process_time() - began < 2, count.__name__
