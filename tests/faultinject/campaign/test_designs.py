"""Strata with their own vote policy: from the file to the page."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from deploy.strict_toml import SpecError
from faultinject.campaign.assessment import assign_stratum
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import load, parse
from faultinject.campaign.records import MissionPlan
from faultinject.report import write_report
from faultinject.report.data import ReportData
from faultinject.report.gather import gather
from faultinject.results.findings import read_findings
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.specs import campaign_of, results_of
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
    """Run missions that end as the paper predicts, except one stratum's, which end as ``end``."""

    def outcome(mission: MissionPlan) -> Outcome:
        if mission.stratum == wrong:
            return end
        return Outcome.CORRECT if tolerates(mission) else Outcome.DETECTED

    campaign_of(directory, DESIGNS, outcome).close()
    return gather(directory)


def test_missions_of_a_policy_hit_its_first_guests() -> None:
    planned = plan(parse(DESIGNS), 1)
    assert [cell.name for cell in planned.cells][:4] == ["1of2-f0", "1of2-f1", "1of2-f2", "2of3-f0"]
    struck: dict[str, set[str]] = {}
    for mission in planned.missions:
        struck.setdefault(mission.vote, set()).update(hit.target for hit in mission.injections)
        assert len(mission.injections) == mission.k
    assert struck == {
        "1/2": {"g1", "g2"}, "2/3": {"g1", "g2", "g3"}, "1/4": {"g1", "g2", "g3", "g4"},
    }  # fmt: skip


def test_oneofn_has_every_stratum_of_one_to_nine_guests() -> None:
    spec, _ = load("oneofn")
    hit = {(s.vote, s.guests_hit) for s in spec.strata if s.design == "voted" and not s.voter_hit}
    assert hit == {(f"1/{n}", k) for n in range(1, 10) for k in range(n + 1)}


@pytest.mark.parametrize(
    ("there", "replacement", "message"),
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
def test_parse_reports_a_problem_with_a_policy(there: str, replacement: str, message: str) -> None:
    assert there in DESIGNS
    with pytest.raises(SpecError, match=message):
        parse(DESIGNS.replace(there, replacement, 1))


def test_report_confirms_designs_that_end_as_the_paper_predicts(tmp_path: Path) -> None:
    found = run(tmp_path / "c")
    assert [(node.vote, node.paper) for node in found.designs] == [
        ("1/2", (0, 0, 1)), ("1/4", (0, 0, 0, 0, 1)), ("2/3", (0, 0, 1, 1)),
    ]  # fmt: skip
    four = found.designs[1].points[0]
    assert four.paper == pytest.approx(0.9 * (1 - 0.7**4))
    assert four.recombined.contains(four.paper)
    assert four.recombined.value == pytest.approx(four.paper)
    assert not found.curves, "Figure 7 is the node's own policy's"
    assert (found.verdicts[0].about, found.verdicts[0].tone) == ("designs", "open")
    page = write_report(tmp_path / "c").read_text()
    assert "By design" in page
    assert (tmp_path / "c" / "figures" / "nodes-1.svg").exists()
    assert read_findings(tmp_path / "c" / "findings.json").designs == found.designs


def test_report_names_a_design_that_contradicts_the_paper(tmp_path: Path) -> None:
    found = run(tmp_path / "c", wrong="1of4-f2")
    [verdict] = [each for each in found.verdicts if each.answer.startswith("Not every design")]
    assert verdict.tone == "bad"
    assert "1/4 with 2 hit: 40 of 40 failed" in verdict.detail


def test_report_does_not_blame_the_voter_when_1_of_n_releases_a_lie(tmp_path: Path) -> None:
    found = run(tmp_path / "c", wrong="1of4-f2", end=Outcome.SILENT)
    message = {each.tests: each for each in found.verdicts if each.about == "designs"}
    assert (message["voter"].tone, message["model"].tone) == ("open", "bad")
    assert "1/4: 0 of 40 missions failed with 1 hit, 40 of 40" in message["model"].detail
    found = run(tmp_path / "d", wrong="2of3-f1", end=Outcome.SILENT)
    assert any(each.answer.startswith("Not every design") for each in found.verdicts)


def test_assign_stratum_stays_within_the_policy() -> None:
    planned = plan(parse(DESIGNS), 1)
    for name in ("1of2", "2of3", "1of4"):
        pair = next(m for m in planned.missions if m.stratum == f"{name}-f2")
        first, second = results_of(pair)
        half = (first, msgspec.structs.replace(second, applied=False, used=False))
        assert assign_stratum(pair, half, (), planned.cells).stratum == f"{name}-f1"


def test_report_compares_repaired_nodes_with_plain_ones(
    tmp_path: Path,
) -> None:
    text = HEAD + "".join(
        f'\n[[strata]]\nvote = "1/1"\nrepair = "on"\nguests_hit = {k}\nmissions = 40\n'
        for k in (0, 1)
    )
    # A guest that is hit comes back in time.
    campaign_of(tmp_path / "c", text, lambda _: Outcome.CORRECT).close()
    found = gather(tmp_path / "c")
    [verdict] = [each for each in found.verdicts if each.answer.startswith("With repair")]
    # R_M = .3 through a voter of .9: better; R_M = .9: it cannot be.
    assert "at 1 of 2 operating points" in verdict.answer
    assert verdict.tone == "open"
    assert "0 of 40 with 1 hit" in verdict.detail


def test_report_counts_wrong_replies_by_what_the_policy_promises(tmp_path: Path) -> None:
    """1 of n compares nothing, so a lie that it releases is no fault of the voter."""

    def lies(mission: MissionPlan) -> Outcome:
        return Outcome.SILENT if mission.k == 1 else Outcome.CORRECT

    campaign_of(tmp_path / "c", DESIGNS, lies).close()
    found = gather(tmp_path / "c")
    wrong = found.wrong_replies
    assert (wrong.share.count, wrong.uncompared, wrong.covered.count) == (120, 80, 40)


def test_report_confirms_a_design_after_one_failed_mission(tmp_path: Path) -> None:
    unlucky = next(m.index for m in plan(parse(DESIGNS), 1).in_order() if m.stratum == "1of4-f0")

    def outcome(mission: MissionPlan) -> Outcome:
        correct = tolerates(mission) and mission.index != unlucky
        return Outcome.CORRECT if correct else Outcome.TIMEOUT

    campaign_of(tmp_path / "c", DESIGNS, outcome).close()
    found = gather(tmp_path / "c")
    assert "bad" not in {each.tone for each in found.verdicts}


def test_report_keeps_the_known_findings_of_a_partial_campaign(tmp_path: Path) -> None:
    campaign_of(
        tmp_path / "c", DESIGNS, lambda _: Outcome.CORRECT, lambda mission: mission.vote == "1/2"
    ).close()
    write_report(tmp_path / "c")
    kept = read_findings(tmp_path / "c" / "findings.json")
    assert kept.campaign.partial
    assert [node.vote for node in kept.designs] == ["1/2", "1/4", "2/3"]
    assert not any(node.points for node in kept.designs if node.vote != "1/2")
