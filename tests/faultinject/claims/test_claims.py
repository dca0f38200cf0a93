"""The paper's claims: which findings lead to which verdict.  No number here was measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from faultinject.campaign.records import MissionPlan
from faultinject.claims.commands import paper
from faultinject.claims.evidence import CAPACITY, RELOCATION, Results, read_results
from faultinject.claims.page import render
from faultinject.claims.section4 import CLAIMS
from faultinject.commands.campaign import campaign
from faultinject.estimate.doses import Fit
from faultinject.estimate.hypothesis_tests import Correlation
from faultinject.estimate.intervals import Interval
from faultinject.results.findings import FILE, Findings, read_findings
from faultinject.results.outcome import Outcome
from faultinject.results.relocation import FILE as RELOCATION_FILE
from tests.errors import raises
from tests.faultinject.campaign.planning.test_relocation_specs import GUEST, HOST, store_of
from tests.faultinject.results import as_the_paper_has_it, made, never_fails

__all__: list[str] = []

FORMULA = "R_sys = R_H R_V [R_M^3 + 3 R_M^2 (1 - R_M)], if the VMs fail independently."


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Campaigns in which everything is as the paper assumes."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("inequality4", "oneofn", "liars", "mofn"):
        made(folder, name, as_the_paper_has_it)
    return folder


def verdicts(folder: Path) -> dict[str, str]:
    found = read_results(folder)
    return {claim.text: claim.answer(found).verdict for claim in CLAIMS}


def test_only_computed_claims_have_a_verdict_without_results(tmp_path: Path) -> None:
    found = verdicts(tmp_path)
    for claim in CLAIMS:
        assert (found[claim.text] == "not measured yet") == bool(claim.needs)
    computed = {claim.text: found[claim.text] for claim in CLAIMS if not claim.needs}
    upper = "If they are not, these values are upper bounds."
    assert computed.pop(upper) == "does not hold", "at R_M = .6 a common cause helps"
    assert set(computed.values()) == {"follows from the formulas"}
    assert "R_M' = R_f = .75: R_F above .9932 (n = 6), .9994 (n = 9)." in computed


def test_no_measured_claim_is_refuted_when_results_are_as_the_paper_assumes(results: Path) -> None:
    found = verdicts(results)
    against = [text for text, verdict in found.items() if verdict == "does not hold"]
    assert against == ["If they are not, these values are upper bounds."]
    formula = found["R_sys = R_H R_V [1 - (1 - R_M)^n]."]
    assert formula == "holds where decided", "some intervals are too wide"
    fewer = found["The fewer VMs, the more reliable the hypervisor must be."]
    assert fewer == "holds where decided"
    assert found["R_V = .98 accommodates a larger range of R_M than R_V = .9."] == "holds"
    assert found["(Not in the paper:) 1 of n releases the reply of a lying VM."] == "holds"
    assert found["It tolerates the arbitrary failure of one VM."] == "holds"
    hopeless = found["With R_M of .5 or less no R_V helps."]
    assert hopeless == "holds where decided", "undecided at R_M = .499"
    assert found["R_M = .1, R_V = .3: fewer than 4 VMs only lower the reliability."] in (
        "holds", "holds where decided",
    )  # fmt: skip


def test_claims_are_refuted_when_no_mission_fails(tmp_path: Path) -> None:
    made(tmp_path, "oneofn", never_fails)
    found = verdicts(tmp_path)
    for text in (
        "R_sys = R_H R_V [1 - (1 - R_M)^n].",
        "With n = 1 the hypervisor only lowers the reliability.",
        "R_V = R_M is never enough.",
        "R_M = .1, R_V = .3: fewer than 4 VMs only lower the reliability.",
    ):
        assert found[text] == "does not hold", text


def test_tolerance_is_refuted_when_one_hit_fails_the_node(tmp_path: Path) -> None:
    def one_is_enough(mission: MissionPlan) -> Outcome:
        return Outcome.DETECTED if mission.k else Outcome.CORRECT

    for name in ("inequality4", "liars"):
        made(tmp_path, name, one_is_enough)
    found = verdicts(tmp_path)
    for text in (
        "It tolerates the arbitrary failure of one VM.",
        "The node tolerates one failed VM of three, and no more.",
        "2-of-3 is better where R_V is above 1 / (3 R_M - 2 R_M^2).",
    ):
        assert found[text] == "does not hold", text


def test_claim_is_undecided_after_few_missions(tmp_path: Path) -> None:
    made(tmp_path, "oneofn", as_the_paper_has_it, first=40)
    texts = {claim.text: claim.answer(read_results(tmp_path)) for claim in CLAIMS}
    example = texts["R_M = .1, R_V = .3: fewer than 4 VMs only lower the reliability."]
    assert example.verdict == "undecided"
    assert "(after 40 of 9,650 missions)" in example.evidence


def test_separate_faults_never_show_that_failures_are_independent(tmp_path: Path) -> None:
    """Guests whose consequences are not coupled: the formula holds, independence is undecided."""
    kept = Path("docs/results/softerrors") / FILE
    (tmp_path / "softerrors").mkdir()
    (tmp_path / "softerrors" / FILE).write_bytes(kept.read_bytes())
    found = {claim.text: claim.answer(read_results(tmp_path)) for claim in CLAIMS}
    independent = found["VM failures are independent."]
    assert independent.verdict == "undecided"
    assert "in nature was not tested" in independent.evidence
    formula = found[FORMULA]
    assert formula.verdict == "holds where decided"
    assert "p = 0.8" in formula.evidence and "2 can discriminate" in formula.evidence


def test_dose_that_cannot_discriminate_supports_nothing(tmp_path: Path) -> None:
    kept = read_findings(Path("docs/results/softerrors") / FILE)
    blind = tuple(dose for dose in kept.doses if dose.flips in (100, 12_000))
    results = Results({"softerrors": msgspec.structs.replace(kept, doses=blind, pooled=())})
    [claim] = [claim for claim in CLAIMS if claim.text == FORMULA]
    assert {dose.verdict for dose in blind} == {Fit.AGREES}
    assert claim.answer(results).verdict == "undecided"


def test_coupled_consequences_refute_independence(tmp_path: Path) -> None:
    kept = read_findings(Path("docs/results/softerrors") / FILE)
    [pooled] = kept.pooled
    coupled = Correlation(rho=Interval(value=0.2, low=0.1, high=0.3), p_value=1e-6)
    results = Results({"softerrors": msgspec.structs.replace(
        kept, pooled=(msgspec.structs.replace(pooled, correlation=coupled),)
    )})  # fmt: skip
    found = {claim.text: claim.answer(results).verdict for claim in CLAIMS}
    assert found["VM failures are independent."] == "does not hold"


def test_claims_from_bit_flips_under_tcg_state_its_limits() -> None:
    kept = read_findings(Path("docs/results/softerrors") / FILE)
    assert kept.campaign.accel == "tcg"
    [claim] = [claim for claim in CLAIMS if claim.text == FORMULA]
    for accel, stated in (("tcg", True), ("kvm", False)):
        campaign = msgspec.structs.replace(kept.campaign, accel=accel)
        results = Results({"softerrors": msgspec.structs.replace(kept, campaign=campaign)})
        answer = claim.answer(results)
        assert ("already translated" in answer.limits) is stated
        assert ("## Validity" in render([(claim, answer)], results)) is stated
    printed = CliRunner().invoke(paper, ["--results", "docs/results"])
    assert "limits: " in printed.output and "already translated" in printed.output


def test_capacity_claim_uses_the_stored_bench_results(tmp_path: Path) -> None:
    [claim] = [claim for claim in CLAIMS if claim.needs == CAPACITY]
    assert claim.answer(read_results(tmp_path)).verdict == "not measured yet"
    kept = Path("docs/results/guests.json").read_bytes()
    (tmp_path / "guests.json").write_bytes(kept)
    answer = claim.answer(read_results(tmp_path))
    assert answer.verdict == "holds where decided", "the limit itself was not reached"
    assert "9 guests of 128 MiB" in answer.evidence and "not reached" in answer.evidence
    assert answer.basis == ("measured", "computed")
    found = read_results(tmp_path)
    assert found.capacity is not None
    crowds = found.capacity.crowds
    shrunk = msgspec.structs.replace(crowds[-1], memory=crowds[0].memory)
    capacity = msgspec.structs.replace(found.capacity, crowds=(*crowds[:-1], shrunk))
    assert claim.answer(Results({}, capacity=capacity)).verdict == "does not hold"
    full = msgspec.structs.replace(found.capacity, fit=9)
    assert claim.answer(Results({}, capacity=full)).verdict == "holds"
    (tmp_path / "guests.json").write_bytes(kept[:-40])
    with raises("TV0539", match=r"trivisor bench guests --out .*guests\.json"):
        read_results(tmp_path)


def test_relocation_claim_uses_the_comparison_of_c1_and_c2(tmp_path: Path) -> None:
    store_of(tmp_path / "guest", GUEST).close()
    store_of(tmp_path / "host", HOST).close()
    kept = tmp_path / "results" / "moved" / RELOCATION_FILE
    kept.parent.mkdir(parents=True)
    command = ["moved", str(tmp_path / "guest"), str(tmp_path / "host"), "--out", str(kept)]
    assert CliRunner().invoke(campaign, command).exit_code == 0
    results = read_results(kept.parents[1])
    [claim] = [claim for claim in CLAIMS if claim.needs == RELOCATION]
    answer = claim.answer(results)
    assert answer.verdict == "holds where decided"  # 20 missions a stratum
    assert "4 of 4 points (n = 2)" in answer.evidence
    assert "guest compared with host" in render([(claim, answer)], results)


def test_planted_causes_show_a_mechanism_and_never_the_real_world() -> None:
    kept = read_results(Path("docs/results"))
    answers = {claim.text: claim.answer(kept) for claim in CLAIMS}
    world = answers["In the real world they may not be."]
    assert world.verdict == "mechanism shown" and "by construction" in world.basis
    assert "significant (p below alpha / 3, Bonferroni) in 2 of 3" in world.evidence
    for p in ("p = 0.0012", "p = 0.0032", "p = 0.031"):
        assert p in world.evidence
    [bug] = [answer for text, answer in answers.items() if "diverse" in text]
    assert (bug.verdict, bug.basis) == ("mechanism shown", ("by construction",))


def test_every_answer_says_how_its_numbers_came_about() -> None:
    kept = read_results(Path("docs/results"))
    for claim in CLAIMS:
        answer = claim.answer(kept)
        assert answer.basis, claim.text
        if "operating points" in answer.evidence or "break-even" in answer.evidence:
            assert "recombined" in answer.basis, claim.text
        if answer.basis[0] == "computed":
            assert answer.verdict in ("follows from the formulas", "does not hold"), claim.text
    points = next(claim for claim in CLAIMS if claim.text.startswith("2-of-3 is better where"))
    assert (
        "48 of 48 operating points, all recombined from the same 6 strata"
        in points.answer(kept).evidence
    )


def test_no_verdict_is_a_literal() -> None:
    """Every claim that rests on data has another verdict where the data are turned around."""
    kept = read_results(Path("docs/results"))
    mirrored = Results({name: _mirror(found) for name, found in kept.items()})
    same = [
        claim.text for claim in CLAIMS
        if claim.needs and claim.needs in mirrored
        and claim.answer(mirrored).verdict == claim.answer(kept).verdict
    ]  # fmt: skip
    # Monotony: no node has a smaller range of R_M with a larger R_V.
    assert same == ["R_V = .98 accommodates a larger range of R_M than R_V = .9."]


def _mirror(found: Findings) -> Findings:
    """Turn every count, interval and choice of a campaign around: what failed, succeeded."""

    def flip(data: object) -> object:
        if isinstance(data, list | tuple):
            return [flip(each) for each in data]
        if not isinstance(data, dict):
            return data
        if {"count", "of", "low", "high"} <= data.keys():
            return data | {"count": data["of"] - data["count"], "low": 1 - data["high"],
                           "high": 1 - data["low"]}  # fmt: skip
        if data.keys() == {"value", "low", "high"}:
            return {"value": 1 - data["value"], "low": 1 - data["high"], "high": 1 - data["low"]}
        changed = {name: flip(value) for name, value in data.items()}
        swap = {"voted better": "plain better", "plain better": "voted better", "good": "bad"}
        for name in ("choice", "tone"):
            if name in changed:
                changed[name] = swap.get(str(changed[name]), changed[name])
        if "verdict" in changed:
            changed["verdict"] = "departs"
        if "failed" in changed and "independent" in changed:  # a common cause
            changed |= {"together": False}
            changed["test"] = {"observed": [1, 1, 1], "expected": [1.0, 1.0, 1.0], "p_value": 0.9}
        return changed

    return msgspec.convert(flip(msgspec.to_builtins(found)), Findings)


def test_page_has_a_row_per_claim_and_lists_its_sources(results: Path) -> None:
    kept = read_results(results)
    page = render([(claim, claim.answer(kept)) for claim in CLAIMS], kept)
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(CLAIMS) + 1
    assert "(results/oneofn)" in page
    nothing = Results({})
    assert "no campaign yet" in render(
        [(claim, claim.answer(nothing)) for claim in CLAIMS], nothing
    )


def test_paper_command_prints_and_writes(results: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    printed = runner.invoke(paper, ["--results", str(results)])
    assert printed.exit_code == 0, printed.output
    assert "Inequality (1)" in printed.output
    assert '"verdict"' in runner.invoke(paper, ["--results", str(results), "--json"]).output
    page = tmp_path / "paper.md"
    assert runner.invoke(paper, ["--results", str(results), "--out", str(page)]).exit_code == 0
    assert page.read_text().startswith("# The paper's sections 3 and 4")
    assert list(tmp_path.iterdir()) == [page]


def test_unreadable_findings_raise_with_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / FILE).write_text('{"title": 1}')
    with raises("TV0539", match=r"trivisor campaign report .*c$"):
        read_findings(tmp_path / "c" / FILE)
