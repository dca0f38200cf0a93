"""From a store to findings: every number comes from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.planning.spec_file import load
from faultinject.campaign.records import GuestFate, MissionPlan, MissionRow, Outcome
from faultinject.campaign.store.store import Store, StoreError
from faultinject.report import write_report
from faultinject.report.gather import gather
from faultinject.report.mission_findings import _union
from faultinject.results.findings import Findings
from faultinject.results.findings_file import FILE, read_kept
from tests.faultinject.campaign.specs import FACTS, SMALL, fill, row_of
from tests.faultinject.results import as_the_paper_has_it, made

__all__: list[str] = []

MANY = SMALL.replace("missions = 20", "missions = 400").replace("missions = 40", "missions = 100")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A campaign that has just begun."""
    with Store.create(tmp_path / "c", SMALL, 1, versions={"trivisor": "0.1"}) as made:
        made.note_facts("w1", FACTS)
        yield made


def stored(store: Store, rows: Iterator[MissionRow]) -> Findings:
    for row in rows:
        store.add(row)
    return gather(store.directory)


def outcome_of(mission: MissionPlan) -> Outcome:
    return Outcome.DETECTED if mission.k > 1 or mission.voter_hit else Outcome.CORRECT


def test_everything_that_the_issue_lists_is_found(store: Store) -> None:
    run = store.begin(2)
    fill(store)
    store.end(run, "complete")
    found = gather(store.directory)
    head = found.head
    assert (head.planned, head.done, head.used, head.partial) == (store.total,) * 3 + (False,)
    assert (head.seed, head.workers, head.service, head.vote) == (1, 2, "kv", "2/3")
    assert head.facts == (FACTS,)
    assert ("trivisor", "0.1") in head.versions
    by_name = {each.name: each for each in found.strata if each.alike is None}
    assert by_name["f2"].failed.count == by_name["f2"].trials == 40
    assert by_name["f1-repair"].failed.count == 0
    assert [by_name[name].paper for name in ("f0", "f1", "f2", "f3", "g1", "nv1")] == [
        0, 0, 1, 1, 1, 1,
    ]  # fmt: skip
    assert [each.repair for each in found.curves] == [False, True]
    assert len(found.points) == 2 * len(store.spec.points.grid())
    assert {each.kind for each in found.kinds if each.alone} >= {"crash", "corrupt-reply"}
    assert [each.flips for each in found.doses if not each.shared] == [0, 50]
    assert {each.kind.split()[0] for each in found.shots} == {"flip-all", "host-crash"}
    assert found.latencies[0].p50 in (0.001, 0.002)
    assert {each.label for each in found.speeds} >= {
        "one guest hit, its QEMU stays",
        "all missions",
    }
    assert found.idle_timeouts is not None
    assert found.idle_timeouts.count == 0
    assert {each.what for each in found.effects} == {"Order", "Workers"}
    assert {each.tests for each in found.verdicts} == {"voter", "model"}


def test_strata_with_repair_on_and_off_are_never_mixed(store: Store) -> None:
    found = stored(
        store,
        (
            row_of(mission, Outcome.TIMEOUT if mission.repair else outcome_of(mission))
            for mission in store.plan.in_order()
        ),
    )
    failed = {each.name: each.failed.count for each in found.strata if each.alike is None}
    assert failed["f1"] == 0
    assert failed["f1-repair"] == 30
    off, on = found.curves
    middle = off.rm.index(min(off.rm, key=lambda rm: abs(rm - 0.75)))
    assert off.relative[middle][1] == pytest.approx(1)
    assert on.relative[middle][1] > 2


def test_a_partial_campaign_uses_its_longest_prefix_and_says_so(store: Store) -> None:
    plans = list(store.plan.in_order())
    rows = (row_of(plan, outcome_of(plan)) for plan in (*plans[:60], *plans[70:90]))
    head = stored(store, rows).head
    assert head.partial
    assert (head.done, head.used, head.trials) == (80, 60, 60)


def test_a_wrong_reply_beyond_the_prefix_is_not_left_out(store: Store) -> None:
    plans = list(store.plan.in_order())
    late = next(plan for plan in plans[70:] if plan.stratum == "f1")
    rows = [row_of(plan, outcome_of(plan)) for plan in plans[:60]]
    found = stored(store, iter([*rows, row_of(late, Outcome.SILENT)]))
    assert found.head.used == 60
    assert found.silence.share.count == found.silence.promised == 1
    assert [each.mission for each in found.silence.listed] == [late.index]
    assert found.verdicts[0].tone == "alarm"


def test_liars_that_lie_alike_are_told_from_a_broken_vote(store: Store) -> None:
    plans = list(store.plan.in_order())
    found = stored(
        store,
        (row_of(plan, Outcome.SILENT if plan.alike else outcome_of(plan)) for plan in plans),
    )
    alike = sum(bool(plan.alike) for plan in plans)
    assert alike > 0
    silence = found.silence
    assert (silence.share.count, silence.alike, silence.promised) == (alike, alike, 0)
    parts = {(each.name, each.alike): each for each in found.strata}
    assert parts["f2", True].silent.count == parts["f2", True].trials > 0
    assert parts["f2", False].silent.count == 0


def test_faults_that_were_not_applied_are_no_trials_and_are_told(store: Store) -> None:
    def row(mission: MissionPlan) -> MissionRow:
        made = row_of(mission, outcome_of(mission))
        if mission.stratum != "f1":
            return made
        missed = tuple(msgspec.structs.replace(hit, applied=False) for hit in made.hits)
        return msgspec.structs.replace(made, hits=missed)

    found = stored(store, map(row, store.plan.in_order()))
    (f1,) = (each for each in found.strata if each.name == "f1")
    assert (f1.trials, f1.void) == (0, 30)
    assert any("f1: 30 of 30" in note for note in found.notes)
    assert sum(each.not_applied for each in found.kinds if each.alone and not each.repair) == 30


def test_kinds_of_faults_are_told_of_every_design(tmp_path: Path) -> None:
    """Strata of designs have names of their own: 2of3-f1."""
    names = ("2of3-f1", "3of5-f2")
    with Store.create(tmp_path / "c", load("liars")[1], 1, versions={"trivisor": "0.1"}) as store:
        plans = list(store.plan.in_order())
        found = stored(
            store,
            (row_of(plan, masked=3 * (plan.stratum in names)) for plan in plans),
        )
    outvoted = sum(plan.stratum in names for plan in plans)
    assert sum(each.masked for each in found.kinds) == outvoted, "once, with two liars too"


def test_f0_is_taken_for_granted_only_where_it_was_never_seen(tmp_path: Path) -> None:
    for failures, granted in ((0, True), (1, False)):
        with Store.create(tmp_path / str(failures), MANY, 1) as store:
            idle = [p.index for p in store.plan.in_order() if p.stratum == "f0"][:failures]
            found = stored(
                store,
                (
                    row_of(p, Outcome.TIMEOUT if p.index in idle else outcome_of(p))
                    for p in store.plan.in_order()
                ),
            )
        assert bool(found.curves[0].relative_given) is granted
        assert found.idle_timeouts is not None
        assert found.idle_timeouts.count == failures
        assert found.reach[0].shares[0] > found.reach[0].target  # 400 clean missions reach not far


def test_an_effect_of_the_order_is_found(store: Store) -> None:
    late = store.total // 2
    found = stored(
        store,
        (
            row_of(plan, Outcome.TIMEOUT if plan.order >= late and plan.k == 1 else Outcome.CORRECT)
            for plan in store.plan.in_order()
        ),
    )
    order = next(each for each in found.effects if each.what == "Order")
    assert order.p is not None
    assert order.p < 0.01
    assert "should not be" in order.words


def test_a_directory_without_a_campaign_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no campaign"):
        write_report(tmp_path)


def test_a_report_of_nothing_yet_can_be_written(store: Store) -> None:
    page = write_report(store.directory).read_text(encoding="utf-8")
    assert "Partial: 0 of" in page


def test_time_with_a_mission_under_way_is_counted_once() -> None:
    assert _union([(0, 2), (1, 3), (5, 6), (5.2, 5.4)]) == pytest.approx(4)


def test_a_node_that_repair_makes_better_is_not_called_a_voter_that_fails(tmp_path: Path) -> None:
    text = SMALL
    for small in (5, 10, 20, 30, 40):
        text = text.replace(f"missions = {small}\n", "missions = 300\n")
    with Store.create(tmp_path / "c", text, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        found = stored(
            store,
            (
                row_of(mission, Outcome.CORRECT if mission.repair else outcome_of(mission))
                for mission in store.plan.in_order()
            ),
        )
    tones = {each.answer: each.tone for each in found.verdicts if each.tests == "voter"}
    better = "With repair on the voted node fails less than Inequality (4), which knows no repair, "
    assert tones[f"{better}has it."] == "open"
    assert "bad" not in tones.values()


CHORUS = """
title = "Causes that strike all"
question = "commoncause"
[station]
service = "poisoned"
[[shots]]
kind = "poison"
missions = 100
[[shots]]
kind = "flip-all"
flips = 7
missions = 10
"""


def test_guests_that_say_the_same_wrong_thing_have_all_failed(tmp_path: Path) -> None:
    """A chorus expels nobody, and of two against one it is the right one that is expelled."""

    def row(mission: MissionPlan) -> MissionRow:
        chorus = mission.stratum.startswith("shot-poison")
        fallen = () if chorus or mission.index % 2 else ("g2",)
        fates = tuple(
            GuestFate(name=name, state="active", reason="", failed=name in fallen)
            for name in ("g1", "g2", "g3")
        )
        return msgspec.structs.replace(row_of(mission, Outcome.SILENT), guests=fates)

    with Store.create(tmp_path / "c", CHORUS, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        found = stored(store, (row(mission) for mission in store.plan.in_order()))
    counts = {shot.kind.split()[0]: [each.count for each in shot.fell] for shot in found.shots}
    assert counts == {"poison": [0, 0, 0, 100], "flip-all": [0, 0, 5, 5]}
    [poison] = [each for each in found.breaks if each.cause == "poison"]
    assert poison.at[1] == pytest.approx(0.95 * found.breaks[0].at_independent, abs=0.06)
    assert poison.at[1] < 0.95
    assert (found.silence.alike, found.silence.struck) == (100, 10)
    assert not any(each.arranged for each in found.silence.listed[:10])
    [words] = [each.words for each in found.verdicts if each.tone == "alarm"]
    assert "In 10 of them one cause struck all guests" in words


def test_with_no_flips_nothing_is_hit(store: Store) -> None:
    found = stored(
        store,
        (
            row_of(mission, Outcome.TIMEOUT if "-0" in mission.stratum else outcome_of(mission))
            for mission in store.plan.in_order()
        ),
    )
    # 20 of f0, 5 with repair on, and of the dose of no flips two voted and two plain ones.
    assert found.idle_timeouts is not None
    assert (found.idle_timeouts.count, found.idle_timeouts.of) == (4, 29)


@pytest.mark.parametrize(("name", "lying"), [("moved-lies", 1.0), ("moved-guest", 0.0)])
def test_an_f_that_admits_what_it_should_not_is_a_lie(
    name: str, lying: float, tmp_path: Path
) -> None:
    made(tmp_path, name, as_the_paper_has_it)
    assert read_kept(tmp_path / name / FILE).lying == lying
