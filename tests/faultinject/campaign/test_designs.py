"""Strata with a vote policy of their own: from the file to the page."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.assessment import assign_stratum
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec import SpecError
from faultinject.campaign.planning.spec_file import load, parse
from faultinject.campaign.records import MissionPlan, Outcome
from faultinject.campaign.store.store import Store
from faultinject.report import write_report
from faultinject.report.data import ReportData
from faultinject.report.gather import gather
from faultinject.results.findings import read_findings
from tests.faultinject.campaign.specs import FACTS, results_of, row_of
from voter.core.vote import Policy

__all__: list[str] = []

HEAD = """
title = "Designs"
question = "designs"

[station]
vote = "1/4"
guests = 4

[faults]
hang = 1

[points]
rm = [0.3, 0.9]
rv = [0.9]
"""
DESIGNS = HEAD + "".join(
    f'\n[[strata]]\nvote = "{vote}"\nguests_hit = {k}\nmissions = 40\n'
    for vote in ("1/2", "2/3", "1/4")
    for k in range(Policy.parse(vote).of + 1)
)


def tolerates(mission: MissionPlan) -> bool:
    policy = Policy.parse(mission.vote)
    return mission.k <= policy.of - policy.need


def run(directory: Path, wrong: str = "", end: Outcome = Outcome.DETECTED) -> ReportData:
    """A campaign whose missions end as the paper has it, but for one stratum's, which end so."""
    with Store.create(directory, DESIGNS, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        number = store.begin(1)
        store.add_many(
            row_of(
                mission,
                end if mission.stratum == wrong
                else Outcome.CORRECT if tolerates(mission) else Outcome.DETECTED,
            )
            for mission in store.plan.in_order()
        )  # fmt: skip
        store.end(number, "complete")
    return gather(directory)


def test_a_node_of_n_is_the_first_n_guests() -> None:
    planned = plan(parse(DESIGNS), 1)
    assert [cell.name for cell in planned.cells][:4] == ["1of2-f0", "1of2-f1", "1of2-f2", "2of3-f0"]
    struck: dict[str, set[str]] = {}
    for mission in planned.missions:
        struck.setdefault(mission.vote, set()).update(hit.target for hit in mission.hits)
        assert len(mission.hits) == mission.k
    assert struck == {
        "1/2": {"g1", "g2"}, "2/3": {"g1", "g2", "g3"}, "1/4": {"g1", "g2", "g3", "g4"},
    }  # fmt: skip


def test_the_shipped_one_has_every_stratum_of_one_to_nine_guests() -> None:
    spec, _ = load("oneofn")
    hit = {(s.vote, s.guests_hit) for s in spec.strata if s.design == "voted" and not s.voter_hit}
    assert hit == {(f"1/{n}", k) for n in range(1, 10) for k in range(n + 1)}


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        ('vote = "1/2"\nguests_hit = 0', 'vote = "2/4"\nguests_hit = 0', "could both win"),
        ('vote = "1/2"\nguests_hit = 0', 'vote = "1/5"\nguests_hit = 0', "give it 5"),
        ('vote = "1/2"\nguests_hit = 0', 'vote = "1/2"\ndesign = "nv"\nguests_hit = 0',
         "the plain design does not vote"),
        ('vote = "1/2"\nguests_hit = 2', 'vote = "1/2"\nguests_hit = 3', "give 0 to 2"),
        ('vote = "1/2"\nguests_hit = 2\nmissions = 40\n\n[[strata]]\n', "", "vote 1/2"),
        ('question = "designs"', 'question = "inequality4"', "allows one policy"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(there: str, instead: str, said: str) -> None:
    assert there in DESIGNS
    with pytest.raises(SpecError, match=said):
        parse(DESIGNS.replace(there, instead, 1))


def test_designs_that_do_as_the_paper_has_it(tmp_path: Path) -> None:
    found = run(tmp_path / "c")
    assert [(node.vote, node.paper) for node in found.designs] == [
        ("1/2", (0, 0, 1)), ("1/4", (0, 0, 0, 0, 1)), ("2/3", (0, 0, 1, 1)),
    ]  # fmt: skip
    four = found.designs[1].points[0]
    assert four.paper == pytest.approx(0.9 * (1 - 0.7**4))
    assert four.measured.contains(four.paper)
    assert four.measured.value == pytest.approx(four.paper)
    assert not found.curves, "Figure 7 is the station's own policy's"
    assert (found.verdicts[0].about, found.verdicts[0].tone) == ("designs", "open")
    page = write_report(tmp_path / "c").read_text()
    assert "By design" in page
    assert (tmp_path / "c" / "figures" / "nodes-1.svg").exists()
    assert read_findings(tmp_path / "c" / "findings.json").designs == found.designs


def test_a_design_that_does_not_is_named(tmp_path: Path) -> None:
    found = run(tmp_path / "c", wrong="1of4-f2")
    [verdict] = [each for each in found.verdicts if each.answer.startswith("Not every design")]
    assert verdict.tone == "bad"
    assert "1/4 with 2 hit: 40 of 40 failed" in verdict.detail


def test_a_first_reply_that_was_a_lie_is_not_the_voters_fault(tmp_path: Path) -> None:
    found = run(tmp_path / "c", wrong="1of4-f2", end=Outcome.SILENT)
    said = {each.tests: each for each in found.verdicts if each.tone != "alarm"}
    assert (said["voter"].tone, said["model"].tone) == ("open", "bad")
    assert "1/4: 0 of 40 missions failed with 1 hit, 40 of 40" in said["model"].detail
    found = run(tmp_path / "d", wrong="2of3-f1", end=Outcome.SILENT)
    assert any(each.answer.startswith("Not every design") for each in found.verdicts)


def test_half_a_pair_is_a_trial_of_its_own_design() -> None:
    planned = plan(parse(DESIGNS), 1)
    for name in ("1of2", "2of3", "1of4"):
        pair = next(m for m in planned.missions if m.stratum == f"{name}-f2")
        first, second = results_of(pair)
        half = (first, msgspec.structs.replace(second, applied=False, used=False))
        assert assign_stratum(pair, half, (), planned.cells).stratum == f"{name}-f1"


def test_nodes_that_are_repaired_are_held_against_plain_not_against_the_paper(
    tmp_path: Path,
) -> None:
    text = HEAD + "".join(
        f'\n[[strata]]\nvote = "1/1"\nrepair = "on"\nguests_hit = {k}\nmissions = 40\n'
        for k in (0, 1)
    )
    with Store.create(tmp_path / "c", text, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        number = store.begin(1)
        # A guest that is hit comes back in time.
        store.add_many(row_of(mission) for mission in store.plan.in_order())
        store.end(number, "complete")
    found = gather(tmp_path / "c")
    [verdict] = [each for each in found.verdicts if each.answer.startswith("With repair")]
    # R_M = .3 through a voter of .9: better; R_M = .9: it cannot be.
    assert "at 1 of 2 operating points" in verdict.answer
    assert verdict.tone == "open"
    assert "0 of 40 with 1 hit" in verdict.detail


def test_what_a_vote_promises_is_its_own(tmp_path: Path) -> None:
    """1 of n compares nothing, so that a lie it hands on is no fault of the voter; 2 of 3 does."""

    def lies(mission: MissionPlan) -> Outcome:
        return Outcome.SILENT if mission.k == 1 else Outcome.CORRECT

    with Store.create(tmp_path / "c", DESIGNS, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        store.add_many(row_of(mission, lies(mission)) for mission in store.plan.in_order())
    found = gather(tmp_path / "c")
    wrong = found.wrong_replies
    assert (wrong.share.count, wrong.uncompared, wrong.within_tolerance) == (120, 80, 40)


def test_one_mission_that_failed_does_not_speak_against_a_design(tmp_path: Path) -> None:
    with Store.create(tmp_path / "c", DESIGNS, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        unlucky = next(m.index for m in store.plan.in_order() if m.stratum == "1of4-f0")
        store.add_many(
            row_of(mission, Outcome.CORRECT if tolerates(mission) and mission.index != unlucky
                   else Outcome.TIMEOUT)
            for mission in store.plan.in_order()
        )  # fmt: skip
    found = gather(tmp_path / "c")
    assert "bad" not in {each.tone for each in found.verdicts}


def test_of_a_campaign_under_way_what_is_known_is_kept(tmp_path: Path) -> None:
    with Store.create(tmp_path / "c", DESIGNS, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        begun = [m for m in store.plan.in_order() if m.vote == "1/2"][:90]
        ready = [m for m in store.plan.in_order() if m in begun]
        store.add_many(row_of(mission, Outcome.CORRECT) for mission in ready)
    write_report(tmp_path / "c")
    kept = read_findings(tmp_path / "c" / "findings.json")
    assert kept.campaign.partial
    assert [node.vote for node in kept.designs] == ["1/2", "1/4", "2/3"]
    assert not any(node.points for node in kept.designs if node.vote != "1/2")
