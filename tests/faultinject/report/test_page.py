"""The page: needs nothing outside itself, says what must be said, hides nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from faultinject import plotting as style
from faultinject.report import write_findings
from faultinject.report.page import maths, render
from faultinject.results.findings import Findings, Silence
from tests.faultinject.report.synthetic import (
    commoncause,
    exact,
    inequality4,
    softerrors,
)

__all__: list[str] = []

OUTSIDE = re.compile(r"https?:|//[a-z]|<link|<script|<img|@import|src=|url\((?!#)")
RED = 'class="banner"'


@pytest.fixture(autouse=True)
def _one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "FORMATS", ("svg",))  # the others take long, and are the same


@pytest.mark.parametrize("make", [inequality4, softerrors, commoncause])
def test_a_page_needs_nothing_outside_itself(tmp_path: Path, make: Callable[[], Findings]) -> None:
    findings = make()
    page = write_findings(findings, tmp_path).read_text(encoding="utf-8")
    assert not OUTSIDE.search(page), OUTSIDE.search(page)
    assert page.count("<svg") == page.count("</svg>") == len(list((tmp_path / "figures").iterdir()))
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    for name in re.findall(r'href="#([^"]+)"', page):
        assert name in names


def test_two_drawings_of_the_same_findings_are_the_same(tmp_path: Path) -> None:
    first = write_findings(softerrors(), tmp_path / "a").read_bytes()
    assert write_findings(softerrors(), tmp_path / "b").read_bytes() == first


def test_all_three_formats_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "FORMATS", ("svg", "png", "pdf"))
    findings = msgspec.structs.replace(commoncause(), doses=(), shots=commoncause().shots[:1])
    write_findings(findings, tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "shots.svg", "shots.png", "shots.pdf",
    }  # fmt: skip


# ------------------------------------------------------------------ what must be said


def test_a_wrong_reply_is_in_red_and_can_be_run_again() -> None:
    page = render(inequality4(silent=1), {})
    assert RED in page
    assert "1 mission released a wrong reply" in page
    assert "campaign replay results 100" in page
    assert 'class="red' in page


def test_without_a_wrong_reply_nothing_is_red() -> None:
    page = render(inequality4(), {})
    assert RED not in page
    assert 'class="red' not in page


def test_a_wrong_reply_that_the_vote_promises_to_bear_is_told_from_liars_that_lie_alike() -> None:
    silence = Silence(share=exact(3, 100), alike=2, promised=1, listed=())
    page = render(msgspec.structs.replace(inequality4(), silence=silence), {})
    assert "In 1 of them no more guests were hit than the vote promises to bear" in page
    assert "In 2 of them guests enough for a majority were made to err" in page


def test_partial_data_is_marked_partial() -> None:
    page = render(inequality4(done=9_000), {})
    assert "(partial)</title>" in page
    assert "Partial: 9\N{NARROW NO-BREAK SPACE}000 of 14\N{NARROW NO-BREAK SPACE}200" in page
    assert "partial" not in render(inequality4(), {}).split("<style>")[0]


def test_the_page_says_what_tests_the_voter_and_what_the_model() -> None:
    page = render(inequality4(), {})
    assert "It tests the voter." in page
    assert "It does not test the model." in page
    assert "no evidence" in page
    for model in (softerrors(), commoncause()):
        assert "It tests the model." in render(model, {})


def test_where_the_data_do_not_reach_results_are_given_f0() -> None:
    page = render(inequality4(), {})
    rows = re.findall(r"<tr><td>0\.9[59]</td>.*?</tr>", page[page.index("How far the data") :])
    assert "measured in full" in rows[0]
    assert "given <var>f</var><sub>0</sub> = 0" in rows[1]


def test_a_departure_from_inequality_4_is_named() -> None:
    findings = inequality4()
    wrong = msgspec.structs.replace(findings.points[0], verdict="voted better")
    assert "the paper: plain better" not in render(findings, {})
    changed = msgspec.structs.replace(findings, points=(wrong, *findings.points[1:]))
    assert "the paper: plain better" in render(changed, {})


def test_the_campaigns_own_words_cannot_become_markup() -> None:
    findings = inequality4()
    head = msgspec.structs.replace(findings.head, title="<b>x</b> & y", spec="<script>1</script>")
    page = render(msgspec.structs.replace(findings, head=head), {})
    assert "<b>x</b>" not in page
    assert "<script>" not in page


def test_formulas_are_set_as_formulas() -> None:
    assert maths("R_M^2 < f_0") == (
        "<var>R</var><sub>M</sub><sup>2</sup> &lt; <var>f</var><sub>0</sub>"
    )
    assert maths("q - 1") == "<var>q</var> \N{MINUS SIGN} 1"
    assert maths("QEMU's Seed") == "QEMU&#39;s Seed"


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib as mpl

    before = mpl.rcParams["font.family"]
    with style.draw():
        assert mpl.rcParams["font.family"] == ["STIXGeneral"]
    assert mpl.rcParams["font.family"] == before
