"""Shots with their own policy: one cause over 1 to 9 guests, from the file to the page."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from deploy.strict_toml import SpecError
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import load, parse
from faultinject.campaign.records import GuestResult, MissionPlan, MissionRow
from faultinject.report import write_report
from faultinject.report.gather import gather
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.specs import campaign_of, row_of
from voter.core.vote import Policy

__all__: list[str] = []


def all_fail(mission: MissionPlan) -> MissionRow:
    """Return a row in which every guest of the node failed."""
    n = 1 if mission.design == "nv" else Policy.parse(mission.vote).of
    guests = tuple(
        GuestResult(name=f"g{number + 1}", state="down", reason="", failed=True)
        for number in range(n)
    )
    return msgspec.structs.replace(row_of(mission, Outcome.DETECTED), guests=guests)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped campaign, with a poison that always works."""
    folder = tmp_path_factory.mktemp("poison")
    campaign_of(folder / "p", load("poison")[1], all_fail).close()
    return folder / "p"


def test_poison_has_nodes_of_one_to_nine_guests() -> None:
    cells = [cell for cell in plan(load("poison")[0], 1).cells if cell.design == "voted"]
    assert [(cell.vote, cell.k, cell.name) for cell in cells] == [
        (f"1/{n}", n, f"shot-poison-crash-1of{n}") for n in range(1, 10)
    ]


def test_report_counts_common_causes_that_failed_all_guests_by_node(directory: Path) -> None:
    found = gather(directory)
    assert [len(shot.failed) - 1 for shot in found.common_causes] == list(range(1, 10))
    for shot in found.common_causes:
        assert shot.failed[-1].count == shot.failed[-1].of == 60
        assert shot.plain is not None and shot.plain.count == 60


def test_report_compares_common_causes_with_independent_ones(directory: Path) -> None:
    breaks = sorted(gather(directory).at_frequency, key=lambda each: each.n)
    assert {each.cause for each in breaks} == {"poison-crash"}
    assert all(each.at.value <= 1 - each.frequency + 1e-9 for each in breaks)
    assert breaks[-1].at_independent > 1 - 1e-8
    assert breaks[-1].at.high < breaks[2].at_independent


def test_report_page_has_a_figure_over_n_and_a_row_for_each_node(directory: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page = write_report(directory).read_text()
    assert (directory / "figures" / "breaks-n.svg").exists()
    assert not (directory / "figures" / "common-causes.svg").exists()
    for n in range(1, 10):
        assert f"poison-crash, 1 of {n}" in page


def test_report_concludes_that_more_guests_do_not_help(directory: Path) -> None:
    found = gather(directory)
    assert (
        found.verdicts[0].answer
        == "Poison-crash (planted) fails all guests, whatever their number."
    )
    assert "In 540 of 540 trials all guests failed" in found.verdicts[0].detail
    assert not found.doses, "a point of R_sys over R_M would be of one n"


SHOT = """
title = "A shot"
question = "commoncause"
[station]
service = "poisoned"
guests = 3
[[shots]]
kind = "poison"
{}
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('missions = 5\nvote = "1/4"', "the node has 3 guests, give it 4"),
        ('missions = 5\nvote = "4/3"', "vote"),
        ('missions = 0\nnv = 5\nvote = "1/2"', "the plain design does not vote"),
        (
            'missions = 5\nvote = "1/2"\n[[shots]]\nkind = "poison"\nmissions = 5\nvote = "1/2"',
            "is there already",
        ),
    ],
)
def test_parse_reports_a_problem_with_a_shot(lines: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(SHOT.format(lines))
    parse(SHOT.format('missions = 5\nvote = "1/2"\n[[shots]]\nkind = "poison"\nmissions = 5'))
