"""The page: self-contained, complete, and explicit about wrong replies and partial data."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from faultinject import plotting
from faultinject.campaign.store.store import Store
from faultinject.estimate.equivalence import Choice
from faultinject.report import draw_report
from faultinject.report.charts import draw_charts
from faultinject.report.data import ReportData
from faultinject.report.gather import gather
from faultinject.report.page import maths, render
from faultinject.results.findings import Proportion, WrongReplies, WrongReply
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.specs import FACTS, SMALL, fill

__all__: list[str] = []

OUTSIDE = re.compile(r"https?:|//[a-z]|<link|<script|<img|@import|src=|url\((?!#)")
RED = 'class="banner"'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    """A small campaign with strata, doses and common causes, all as the paper assumes."""
    directory = tmp_path_factory.mktemp("campaign") / "c"
    with Store.create(directory, SMALL, 1, versions={"trivisor": "0.1"}) as store:
        store.note_facts("w1", FACTS)
        run = store.begin(1)
        fill(store)
        store.end(run, "complete")
    return gather(directory)


@pytest.fixture(autouse=True)
def _svg_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "FORMATS", ("svg",))  # the other formats are slow


def with_wrong_replies(data: ReportData, *, covered: int, beyond: int) -> ReportData:
    def proportion(count: int, of: int) -> Proportion:
        return Proportion(count=count, of=of, low=0.0, high=0.01)

    event = WrongReply(
        mission=100, stratum="f1", hits="g1 corrupt-reply", event="GET 5", outcome=Outcome.SILENT,
        covered=True,
    )  # fmt: skip
    other = msgspec.structs.replace(event, mission=200, stratum="f2", covered=False)
    found = WrongReplies(
        share=proportion(covered + beyond, 3600), covered=proportion(covered, 3000),
        beyond=proportion(beyond, 600), arranged=beyond,
        listed=(event,) * covered + (other,) * beyond,
    )  # fmt: skip
    return msgspec.structs.replace(data, wrong_replies=found)


def test_page_is_self_contained_and_reproducible(data: ReportData, tmp_path: Path) -> None:
    page = draw_report(data, tmp_path / "a").read_text(encoding="utf-8")
    figures = list((tmp_path / "a" / "figures").iterdir())
    assert not OUTSIDE.search(page), OUTSIDE.search(page)
    assert page.count("<svg") == page.count("</svg>") == len(figures) > 8
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(names)
    assert draw_report(data, tmp_path / "b").read_text(encoding="utf-8") == page


def test_figures_are_written_in_three_formats(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting, "FORMATS", ("svg", "png", "pdf"))
    empty = dict.fromkeys(("curves", "strata", "kinds", "doses", "latencies", "times"), ())
    draw_report(msgspec.structs.replace(data, **empty, at_frequency=()), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "common-causes.svg", "common-causes.png", "common-causes.pdf",
    }  # fmt: skip


def test_page_shows_wrong_replies_that_the_vote_should_have_masked_in_red(data: ReportData) -> None:
    page = render(with_wrong_replies(data, covered=1, beyond=2), {})
    banner = page[page.index(RED) : page.index("</section>", page.index(RED))]
    assert "1 mission released a wrong reply that the vote should have masked" in banner
    assert f"campaign replay {data.run.directory} 100" in banner
    assert "200" not in banner
    assert f"campaign replay {data.run.directory} 200" in page


def test_page_shows_no_red_for_wrong_replies_that_no_vote_can_mask(data: ReportData) -> None:
    for beyond in (0, 34):
        page = render(with_wrong_replies(data, covered=0, beyond=beyond), {})
        assert RED not in page
        assert 'class="red' not in page
        assert (f"The {beyond} missions with a wrong reply" in page) == bool(beyond)


def test_page_is_marked_partial_when_missions_are_missing(data: ReportData) -> None:
    partial = msgspec.structs.replace(data.campaign, planned=14_200, done=9_000)
    page = render(msgspec.structs.replace(data, campaign=partial), {})
    assert "(partial)</title>" in page
    assert "Partial: 9\N{NARROW NO-BREAK SPACE}000 of 14\N{NARROW NO-BREAK SPACE}200" in page
    assert "(partial)</title>" not in render(data, {})


def test_page_states_condition_on_f0_when_precision_is_too_low(data: ReportData) -> None:
    first = data.precision[0]
    rows = tuple(
        msgspec.structs.replace(first, q=0.05, shares=(share, 0.01, 1.0, 1.0))
        for share in (0.06, 1.3)
    )
    page = render(msgspec.structs.replace(data, precision=rows), {})
    precise, imprecise = re.findall(r"<tr><td>0\.95</td><td>0\.05.*?</tr>", page)
    assert "unconditional" in precise
    assert "given <var>f</var><sub>0</sub> = 0" in imprecise


def test_page_marks_a_point_that_contradicts_inequality_4(data: ReportData) -> None:
    assert "the paper: plain better" not in render(data, {})
    wrong = msgspec.structs.replace(data.points[0], choice=Choice.VOTED, paper=Choice.PLAIN)
    changed = msgspec.structs.replace(data, points=(wrong, *data.points[1:]))
    assert "the paper: plain better" in render(changed, {})


def test_campaign_texts_are_escaped(data: ReportData) -> None:
    changed = msgspec.structs.replace(
        data,
        campaign=msgspec.structs.replace(data.campaign, title="<b>x</b> & y"),
        run=msgspec.structs.replace(data.run, spec="<script>1</script>"),
    )
    page = render(changed, {})
    assert "<b>x</b>" not in page
    assert "<script>" not in page


def with_accelerator(data: ReportData, accel: str, *, flips: bool = True) -> ReportData:
    campaign = msgspec.structs.replace(data.campaign, accel=accel, flips=flips)
    return msgspec.structs.replace(data, campaign=campaign)


@pytest.mark.parametrize("accel", ["tcg", "kvm, tcg"])
def test_page_and_captions_state_the_limits_of_tcg(data: ReportData, accel: str) -> None:
    shown = with_accelerator(data, accel)
    with plotting.draw():
        captions = {chart.name: chart.caption for chart in draw_charts(shown)}
    assert "already translated" in captions["measured"]
    assert "already translated" in captions["common-causes"]
    assert "times are not those of hardware" in captions["latency"]
    assert "translated" not in captions["latency"]
    assert "already translated" in render(shown, {})


def test_page_and_captions_state_no_limits_of_kvm(data: ReportData) -> None:
    shown = with_accelerator(data, "kvm")
    with plotting.draw():
        assert not any("translat" in chart.caption for chart in draw_charts(shown))
    assert "translated" not in render(shown, {})


def test_page_without_flips_states_only_the_limits_of_times(data: ReportData) -> None:
    shown = with_accelerator(data, "tcg", flips=False)
    page = render(shown, {})
    assert "times are not those of hardware" in page and "already translated" not in page


def test_page_states_what_the_missions_detect(data: ReportData) -> None:
    page = render(data, {})
    assert "<h3>Power</h3>" in page
    assert data.shares and all(name in page for name, _ in data.shares)
    assert "discriminates" in page


def test_maths_sets_subscripts_superscripts_and_variables() -> None:
    assert maths("R_M^2 < f_0") == (
        "<var>R</var><sub>M</sub><sup>2</sup> &lt; <var>f</var><sub>0</sub>"
    )
    assert maths("q - 1") == "<var>q</var> \N{MINUS SIGN} 1"
    assert maths("QEMU's Seed") == "QEMU&#39;s Seed"


def test_drawing_restores_matplotlib_settings() -> None:
    import matplotlib as mpl

    before = mpl.rcParams["font.family"]
    with plotting.draw():
        assert mpl.rcParams["font.family"] == ["STIXGeneral"]
    assert mpl.rcParams["font.family"] == before
