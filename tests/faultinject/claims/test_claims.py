"""The paper's claims: what findings must say for each verdict.  No number here was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from faultinject.campaign.records import MissionPlan, Outcome
from faultinject.claims import CLAIMS
from faultinject.claims.claim import CROWD, MOVED, Results, read_results
from faultinject.claims.commands import paper
from faultinject.claims.page import render
from faultinject.commands.campaign import campaign
from faultinject.results.findings_file import FILE, FindingsFileError, read_kept
from faultinject.results.relocation import FILE as RELOCATION_FILE
from tests.faultinject.campaign.planning.test_relocation_specs import GUEST, HOST, store_of
from tests.faultinject.results import as_the_paper_has_it, made, never_fails

__all__: list[str] = []


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Campaigns in which everything is as the paper has it."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("inequality4", "oneofn", "liars", "mofn"):
        made(folder, name, as_the_paper_has_it)
    return folder


def said(folder: Path) -> dict[str, str]:
    kept = read_results(folder)
    return {claim.text: claim.answer(kept).says for claim in CLAIMS}


def test_without_results_only_arithmetic_is_told(tmp_path: Path) -> None:
    found = said(tmp_path)
    for claim in CLAIMS:
        assert (found[claim.text] == "not measured yet") == bool(claim.needs)
    computed = {claim.text: found[claim.text] for claim in CLAIMS if not claim.needs}
    upper = "If they are not, these values are upper bounds."
    assert computed.pop(upper) == "does not hold", "at R_M = .6 a shared cause helps"
    assert set(computed.values()) == {"is a formula"}
    assert "R_M' = R_f = .75: R_F above .9932 (n = 6), .9994 (n = 9)." in computed


def test_what_is_as_the_paper_has_it_is_not_contradicted(results: Path) -> None:
    found = said(results)
    against = [text for text, says in found.items() if says == "does not hold"]
    assert against == ["If they are not, these values are upper bounds."]
    formula = found["R_sys = R_H R_V [1 - (1 - R_M)^n]."]
    assert formula == "holds as far as the data reach", "not everywhere is the interval so small"
    fewer = found["The fewer VMs, the more reliable the hypervisor must be."]
    assert fewer == "holds as far as the data reach"
    assert found["R_V = .98 accommodates a larger range of R_M than R_V = .9."] == "holds"
    assert found["(Not said:) with 1 of n a VM that lies is released."] == "holds"
    assert found["It tolerates the arbitrary failure of one VM."] == "holds"
    hopeless = found["With R_M of .5 or less no R_V helps."]
    assert hopeless == "holds as far as the data reach", "at R_M = .499 no data would do"
    assert found["R_M = .1, R_V = .3: fewer than 4 VMs only lower the reliability."] in (
        "holds", "holds as far as the data reach",
    )  # fmt: skip


def test_a_node_that_never_fails_contradicts_the_paper(tmp_path: Path) -> None:
    made(tmp_path, "oneofn", never_fails)
    found = said(tmp_path)
    for text in (
        "R_sys = R_H R_V [1 - (1 - R_M)^n].",
        "With n = 1 the hypervisor only lowers the reliability.",
        "R_V = R_M is never enough.",
        "R_M = .1, R_V = .3: fewer than 4 VMs only lower the reliability.",
    ):
        assert found[text] == "does not hold", text


def test_a_majority_that_loses_with_one_guest_hit_tolerates_nothing(tmp_path: Path) -> None:
    def one_is_enough(mission: MissionPlan) -> Outcome:
        return Outcome.DETECTED if mission.k else Outcome.CORRECT

    for name in ("inequality4", "liars"):
        made(tmp_path, name, one_is_enough)
    found = said(tmp_path)
    for text in (
        "It tolerates the arbitrary failure of one VM.",
        "The node bears one failed VM of three, and no more.",
        "2-of-3 is better where R_V is above 1 / (3 R_M - 2 R_M^2).",
    ):
        assert found[text] == "does not hold", text


def test_of_a_few_missions_nothing_is_said(tmp_path: Path) -> None:
    made(tmp_path, "oneofn", as_the_paper_has_it, first=40)
    texts = {claim.text: claim.answer(read_results(tmp_path)) for claim in CLAIMS}
    example = texts["R_M = .1, R_V = .3: fewer than 4 VMs only lower the reliability."]
    assert example.says == "undecided"
    assert "(after 40 of 9,650 missions)" in example.measured


def test_how_many_fit_is_told_of_what_was_measured(tmp_path: Path) -> None:
    [claim] = [claim for claim in CLAIMS if claim.needs == CROWD]
    assert claim.answer(read_results(tmp_path)).says == "not measured yet"
    kept = Path("docs/results/guests.json").read_bytes()
    (tmp_path / "guests.json").write_bytes(kept)
    answer = claim.answer(read_results(tmp_path))
    assert answer.says == "holds" and "9 guests of 128 MiB" in answer.measured
    (tmp_path / "guests.json").write_bytes(kept[:-40])
    with pytest.raises(FindingsFileError, match=r"trivisor bench guests --out .*guests\.json"):
        read_results(tmp_path)


def test_c1_and_c2_put_together_answer_inequality_3(tmp_path: Path) -> None:
    store_of(tmp_path / "guest", GUEST).close()
    store_of(tmp_path / "host", HOST).close()
    kept = tmp_path / "results" / "moved" / RELOCATION_FILE
    kept.parent.mkdir(parents=True)
    command = ["moved", str(tmp_path / "guest"), str(tmp_path / "host"), "--out", str(kept)]
    assert CliRunner().invoke(campaign, command).exit_code == 0
    results = read_results(kept.parents[1])
    [claim] = [claim for claim in CLAIMS if claim.needs == MOVED]
    answer = claim.answer(results)
    assert answer.says == "holds as far as the data reach"  # 20 missions a stratum
    assert "4 of 4 points (n = 2)" in answer.measured
    assert "guest and host put together" in render([(claim, answer)], results)


def test_the_page_has_a_row_a_claim_and_says_what_it_rests_on(results: Path) -> None:
    kept = read_results(results)
    page = render([(claim, claim.answer(kept)) for claim in CLAIMS], kept)
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(CLAIMS) + 1
    assert "(results/oneofn/report.html)" in page
    nothing = Results({})
    assert "nothing yet" in render([(claim, claim.answer(nothing)) for claim in CLAIMS], nothing)


def test_the_command_tells_and_writes(results: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(paper, ["--results", str(results)])
    assert told.exit_code == 0, told.output
    assert "Inequality (1)" in told.output
    assert '"says"' in runner.invoke(paper, ["--results", str(results), "--json"]).output
    page = tmp_path / "paper.md"
    assert runner.invoke(paper, ["--results", str(results), "--out", str(page)]).exit_code == 0
    assert page.read_text().startswith("# The paper's section 4")
    assert list(tmp_path.iterdir()) == [page]


def test_findings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / FILE).write_text('{"title": 1}')
    with pytest.raises(FindingsFileError, match=r"trivisor campaign report .*c$"):
        read_kept(tmp_path / "c" / FILE)
