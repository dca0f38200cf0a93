"""From a store to the report's data: every number comes from its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.planning.spec_file import load
from faultinject.campaign.records import GuestResult, MissionPlan, MissionRow
from faultinject.campaign.store.store import Store, StoreError
from faultinject.estimate.doses import Fit, JointTest
from faultinject.estimate.hypothesis_tests import Correlation
from faultinject.estimate.intervals import Interval
from faultinject.estimate.power import PooledPower
from faultinject.report import write_report
from faultinject.report.data import ReportData
from faultinject.report.dose_verdicts import pooled_verdict
from faultinject.report.gather import gather
from faultinject.report.model_findings import find_doses, find_pooled
from faultinject.report.source import Source
from faultinject.results.findings import FILE, PooledFinding, read_findings
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.specs import FACTS, SMALL, fill, row_of
from tests.faultinject.results import as_the_paper_has_it, made

__all__: list[str] = []

ROOT = Path(__file__).resolve().parents[3]
MANY = SMALL.replace("missions = 20", "missions = 400").replace("missions = 40", "missions = 100")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A campaign that has just begun."""
    with Store.create(tmp_path / "c", SMALL, 1, versions={"trivisor": "0.1"}) as made:
        made.note_facts("w1", FACTS)
        yield made


def stored(store: Store, rows: Iterator[MissionRow]) -> ReportData:
    for row in rows:
        store.add(row)
    return gather(store.directory)


def outcome_of(mission: MissionPlan) -> Outcome:
    return Outcome.DETECTED if mission.k > 1 or mission.voter_hit else Outcome.CORRECT


def test_gather_finds_every_kind_of_result(store: Store) -> None:
    run = store.begin(2)
    fill(store)
    store.end(run, "complete")
    found = gather(store.directory)
    kept, ran = found.campaign, found.run
    assert (kept.planned, kept.done, kept.used, kept.partial) == (store.total,) * 3 + (False,)
    assert (kept.seed, ran.workers, ran.service, kept.vote) == (1, 2, "kv", "2/3")
    assert ran.facts == (FACTS,)
    assert ("trivisor", "0.1") in ran.versions
    by_name = {each.name: each for each in found.strata if each.alike is None}
    assert by_name["f2"].failed.count == by_name["f2"].failed.of == 40
    assert by_name["f1-repair"].failed.count == 0
    assert [by_name[name].paper for name in ("f0", "f1", "f2", "f3", "g1", "nv1")] == [
        0, 0, 1, 1, 1, 1,
    ]  # fmt: skip
    assert [each.repair for each in found.curves] == [False, True]
    assert len(found.points) == 2 * len(store.spec.points.grid())
    assert {each.kind for each in found.kinds if each.alone} >= {"crash", "corrupt-reply"}
    assert [each.flips for each in found.doses if not each.shared] == [0, 50]
    assert {each.kind.split()[0] for each in found.common_causes} == {"flip-all", "host-crash"}
    assert found.latencies[0].p50 in (0.001, 0.002)
    assert {each.label for each in found.times} >= {
        "one guest hit, its QEMU not ended",
        "all missions",
    }
    assert found.idle_timeouts is not None
    assert found.idle_timeouts.count == 0
    assert {each.factor for each in found.effects} == {"Order", "Workers"}
    assert {each.tests for each in found.verdicts} == {"voter", "model"}


def test_strata_with_and_without_repair_are_separate(store: Store) -> None:
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
    assert off.relative[middle].value == pytest.approx(1)
    assert on.relative[middle].value > 2


def test_partial_campaign_uses_its_longest_prefix(store: Store) -> None:
    plans = list(store.plan.in_order())
    rows = (row_of(plan, outcome_of(plan)) for plan in (*plans[:60], *plans[70:90]))
    found = stored(store, rows).campaign
    assert found.partial
    assert (found.done, found.used, found.trials) == (80, 60, 60)


def test_wrong_reply_beyond_the_prefix_is_counted(store: Store) -> None:
    plans = list(store.plan.in_order())
    late = next(plan for plan in plans[70:] if plan.stratum == "f1")
    rows = [row_of(plan, outcome_of(plan)) for plan in plans[:60]]
    found = stored(store, iter([*rows, row_of(late, Outcome.SILENT)]))
    wrong = found.wrong_replies
    assert found.campaign.used == 60
    assert wrong.share.count == wrong.covered.count == 1
    assert [each.mission for each in wrong.listed] == [late.index]
    assert found.verdicts[0].tone == "alarm"


def test_wrong_reply_counts_against_the_vote_even_if_the_fault_was_not_confirmed(
    store: Store,
) -> None:
    def row(mission: MissionPlan) -> MissionRow:
        if mission is not unlucky:
            return row_of(mission, outcome_of(mission))
        made = row_of(mission, Outcome.SILENT)
        hits = tuple(msgspec.structs.replace(hit, applied=False) for hit in made.injections)
        return msgspec.structs.replace(made, injections=hits)

    plans = list(store.plan.in_order())
    unlucky = next(plan for plan in plans if plan.stratum == "f1")
    found = stored(store, (row(plan) for plan in plans))
    assert found.wrong_replies.covered.count == found.wrong_replies.share.count == 1
    assert [each.mission for each in found.wrong_replies.listed] == [unlucky.index]
    assert found.verdicts[0].tone == "alarm"


def test_equal_lies_count_as_arranged_not_as_a_defect(store: Store) -> None:
    plans = list(store.plan.in_order())
    found = stored(
        store,
        (row_of(plan, Outcome.SILENT if plan.alike else outcome_of(plan)) for plan in plans),
    )
    alike = sum(bool(plan.alike) for plan in plans)
    assert alike > 0
    wrong = found.wrong_replies
    assert (wrong.beyond.count, wrong.arranged, wrong.covered.count) == (alike, alike, 0)
    assert "alarm" not in {each.tone for each in found.verdicts}
    parts = {(each.name, each.alike): each for each in found.strata}
    assert parts["f2", True].silent.count == parts["f2", True].failed.of > 0
    assert parts["f2", False].silent.count == 0


def test_faults_not_met_and_slow_missions_are_counted_apart(store: Store) -> None:
    def row(mission: MissionPlan) -> MissionRow:
        made = row_of(mission, outcome_of(mission))
        if mission.stratum != "f1" or mission.index % 3:
            return made
        unmet = tuple(msgspec.structs.replace(hit, used=False) for hit in made.injections)
        return msgspec.structs.replace(made, injections=unmet, latencies=(0.1, 1.2))

    found = stored(store, (row(plan) for plan in store.plan.in_order()))
    [f1] = [each for each in found.strata if each.name == "f1" and each.alike is None]
    unmet = sum(plan.stratum == "f1" and not plan.index % 3 for plan in store.plan.in_order())
    assert 0 < unmet == f1.slow.count == f1.failed.of - f1.met.of
    assert any(f"f1, {unmet} of {f1.failed.of}" in note for note in gather_notes(store))


def gather_notes(store: Store) -> tuple[str, ...]:
    return gather(store.directory).notes


def test_missions_are_excluded_when_the_fault_was_not_applied(store: Store) -> None:
    def row(mission: MissionPlan) -> MissionRow:
        made = row_of(mission, outcome_of(mission))
        if mission.stratum != "f1":
            return made
        missed = tuple(msgspec.structs.replace(hit, applied=False) for hit in made.injections)
        return msgspec.structs.replace(made, injections=missed)

    found = stored(store, map(row, store.plan.in_order()))
    (f1,) = (each for each in found.strata if each.name == "f1")
    assert (f1.failed.of, f1.excluded) == (0, 30)
    assert any("f1: 30 of 30" in note for note in found.notes)
    assert sum(each.not_applied for each in found.kinds if each.alone and not each.repair) == 30


def test_kinds_of_faults_are_counted_in_every_design(tmp_path: Path) -> None:
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


def test_f0_is_assumed_zero_only_when_no_failure_was_seen(tmp_path: Path) -> None:
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
        assert found.precision[0].shares[0] > found.precision[0].target  # 400 missions are too few


def test_kept_soft_errors_show_what_all_doses_together_show() -> None:
    """The rows of docs/results/softerrors, recomputed."""
    with Store.open(ROOT / "docs" / "results" / "softerrors", write=False) as store:
        source = Source(store=store, prefix=None, alpha=0.05, m=2, n=3)
        doses = find_doses(source)
        [pooled] = find_pooled(source, doses)
    [(found, _)] = doses.values()
    assert [d.flips for d in found if d.power and d.power.discriminates] == [300, 700]
    agreeing = [dose.flips for dose in found if dose.verdict is Fit.AGREES]
    assert agreeing == [100, 300, 12_000], "of which one dose could have shown a departure"
    assert pooled.counted == (300, 700, 1300, 2000, 3000, 6000)
    assert round(pooled.joint.ratio, 1) == 4.6
    assert pooled.power.correlation is not None and pooled.power.correlation < 0.06
    verdict = pooled_verdict(pooled)
    assert verdict.tone == "good" and "-0.002 (-0.025 to +0.021)" in verdict.detail
    assert "not whether faults occur independently" in verdict.detail


def test_pooled_verdict_follows_from_the_joint_test_the_mean_and_the_correlation() -> None:
    wide, off = Interval(value=0, low=-0.2, high=0.2), Interval(value=-0.1, low=-0.12, high=-0.08)
    fine = PooledFinding(
        kind="flip-ram", doses=2, confidence=0.95,
        joint=JointTest(ratio=1.0, freedom=2, p_value=0.6),
        departure=Interval(value=0, low=-0.02, high=0.02), correlation=None, counted=(),
        power=PooledPower(departure=0.03, correlation=None, joint_correlation=None),
    )  # fmt: skip
    rejected = JointTest(ratio=30.0, freedom=2, p_value=1e-6)
    coupled = Correlation(rho=Interval(value=0.2, low=0.1, high=0.3), p_value=1e-5)
    for changes, tone in (
        ({}, "good"), ({"departure": wide}, "open"), ({"departure": off}, "bad"),
        ({"joint": rejected}, "bad"), ({"correlation": coupled}, "bad"),
    ):  # fmt: skip
        assert pooled_verdict(msgspec.structs.replace(fine, **changes)).tone == tone


def test_effect_of_the_order_is_detected(store: Store) -> None:
    late = store.total // 2
    found = stored(
        store,
        (
            row_of(plan, Outcome.TIMEOUT if plan.order >= late and plan.k == 1 else Outcome.CORRECT)
            for plan in store.plan.in_order()
        ),
    )
    order = next(each for each in found.effects if each.factor == "Order")
    assert order.p_value is not None and order.p_value < 0.01


def test_effect_that_was_not_detected_states_what_would_have_been(store: Store) -> None:
    found = stored(
        store,
        (
            row_of(plan, Outcome.TIMEOUT if plan.index % 2 and plan.k == 1 else Outcome.CORRECT)
            for plan in store.plan.in_order()
        ),
    )
    order = next(each for each in found.effects if each.factor == "Order")
    assert order.p_value is not None and order.p_value > 0.05
    assert re.search(r"at least \d.* % .*80% probability; smaller ones are not", order.conclusion)


def test_report_raises_without_a_campaign(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no campaign"):
        write_report(tmp_path)


def test_report_is_written_before_the_first_mission(store: Store) -> None:
    page = write_report(store.directory).read_text(encoding="utf-8")
    assert "Partial: 0 of" in page


def test_improvement_by_repair_is_no_defect_of_the_voter(tmp_path: Path) -> None:
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
    better = "With repair on, the voted node fails less often than Inequality (4) predicts."
    assert tones[better] == "open"
    assert "bad" not in tones.values()


POISON = """
title = "Common causes"
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


def test_guests_with_equal_wrong_replies_count_as_failed(tmp_path: Path) -> None:
    """Equal wrong replies outvote the correct one: the voter expels nobody, or the wrong guest."""

    def row(mission: MissionPlan) -> MissionRow:
        poisoned = mission.stratum.startswith("shot-poison")
        failed_names = () if poisoned or mission.index % 2 else ("g2",)
        fates = tuple(
            GuestResult(name=name, state="active", reason="", failed=name in failed_names)
            for name in ("g1", "g2", "g3")
        )
        return msgspec.structs.replace(row_of(mission, Outcome.SILENT), guests=fates)

    with Store.create(tmp_path / "c", POISON, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        found = stored(store, (row(mission) for mission in store.plan.in_order()))
    counts = {
        shot.kind.split()[0]: [each.count for each in shot.failed] for shot in found.common_causes
    }
    assert counts == {"poison": [0, 0, 0, 100], "flip-all": [0, 0, 5, 5]}
    [poison] = [each for each in found.at_frequency if each.cause == "poison"]
    assert poison.at.value == pytest.approx(0.95 * poison.at_independent, abs=0.06)
    assert poison.at.value < 0.95
    tests = {each.kind.split()[0]: each.test for each in found.common_causes}
    assert tests["flip-all"].observed == (0, 0, 10), "two or more are one class, as for doses"
    wrong = found.wrong_replies
    assert (wrong.arranged, wrong.common_cause) == (100, 10)
    assert not any(each.arranged for each in wrong.listed[:10])


def test_idle_timeouts_include_doses_of_zero_flips(store: Store) -> None:
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
def test_function_that_admits_wrongly_counts_as_lying(
    name: str, lying: float, tmp_path: Path
) -> None:
    made(tmp_path, name, as_the_paper_has_it)
    assert read_findings(tmp_path / name / FILE).campaign.lying == lying
