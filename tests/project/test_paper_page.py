"""What documents say about campaigns follows from the stored results; docs/paper.md as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from faultinject.claims.evidence import Results, read_results
from faultinject.claims.page import render
from faultinject.claims.section3 import SECTION3
from faultinject.claims.section4 import CLAIMS
from faultinject.estimate.counts import Counts
from faultinject.estimate.strata import Strata, band
from faultinject.results.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
COUNTED = re.compile(r"(\d[\d,]*) of (\d[\d,]*\d)")
"""A count of missions, as in "36 of 5,999"."""
SMALLEST = 20
"""Fewer than this are no missions but, for example, guests or claims."""


@pytest.fixture(scope="module")
def results() -> Results:
    return read_results(ROOT / "docs" / "results")


def text_of(name: str, begin: str = "") -> str:
    """Return a document with single spaces, from ``begin`` on."""
    text = " ".join((ROOT / name).read_text().split())
    return text[text.index(begin) :]


def stored_counts(results: Results) -> Iterator[tuple[int, int]]:
    """Yield every (count, of) that follows from the stored results."""
    for found in results.values():
        yield from _proportions(msgspec.to_builtins(found))
        for each in (found.wrong_replies.voted, found.wrong_replies.plain):
            yield each.silent, each.missions
            yield each.unclear, each.missions
            yield each.silent + each.unclear, each.missions
            yield each.silent + each.unclear + each.declared, each.missions
        unclear = found.wrong_replies.voted.unclear + found.wrong_replies.plain.unclear
        yield unclear, found.campaign.trials
        outcomes = [each.outcomes for each in found.strata]
        outcomes += [each.outcomes for each in found.doses]
        outcomes += [each.plain_outcomes for each in found.doses]
        for counts in outcomes:
            wrong = sum(count for outcome, count in counts.items() if outcome.is_wrong_reply)
            yield wrong, sum(counts.values())
            yield sum(counts.values()) - wrong, sum(counts.values())
        for design in found.designs:
            for group in (design.failed[: design.n - design.m + 1], filter(None, design.voter)):
                parts = list(group)
                yield sum(each.count for each in parts), sum(each.of for each in parts)
        tested = [each for each in found.common_causes if each.test.p_value is not None]
        wrongs = [each.wrong for each in tested]
        yield (
            sum(each.silent + each.unclear + each.declared for each in wrongs),
            sum(each.missions for each in wrongs),
        )
    agreed = json.loads((ROOT / "docs/results/softerrors/agree.json").read_text())
    yield agreed["other_success"], agreed["trials"]
    for claim in CLAIMS:  # shares of operating points
        yield from _counts_in(claim.answer(results).evidence)


def _proportions(data: object) -> Iterator[tuple[int, int]]:
    if isinstance(data, dict):
        if {"count", "of"} <= data.keys():
            yield data["count"], data["of"]
            yield data["of"] - data["count"], data["of"]
        if "observed" in data:
            yield from ((each, sum(data["observed"])) for each in data["observed"])
        for value in data.values():
            yield from _proportions(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _proportions(value)


def _counts_in(text: str) -> list[tuple[int, int]]:
    found = [(int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in COUNTED.findall(text)]
    return [(count, of) for count, of in found if of >= SMALLEST]


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("docs/campaigns.md", ""),
        ("docs/statistics.md", ""),
        ("docs/results/README.md", "## Campaigns"),
        ("README.md", "### Measure reliability"),
    ],
)
def test_every_count_of_missions_in_a_document_is_a_stored_one(
    results: Results, name: str, begin: str
) -> None:
    known = set(stored_counts(results))
    written = _counts_in(text_of(name, begin))
    assert [each for each in written if each not in known] == []
    if name == "docs/campaigns.md":
        assert len(written) > 80, "the pattern still finds them"


def test_campaigns_page_has_the_rows_of_inequality4(results: Results) -> None:
    rows = {
        "f0": "nothing", "f1": "one guest", "f2": "two guests", "f3": "three guests",
        "g0": "the voter", "g1": "the voter and one guest", "nv0": "plain node, nothing",
        "nv1": "plain node, its guest",
    }  # fmt: skip
    page = text_of("docs/campaigns.md")
    strata = {each.name: each for each in results["inequality4"].strata if each.alike is None}
    for name, title in rows.items():
        each = strata[name]
        parts = [each.outcomes[o] for o in (Outcome.SILENT, Outcome.UNCLEAR, Outcome.DECLARED)]
        wrong = f"{sum(parts)} ({', '.join(map(str, parts))})" if sum(parts) else "0"
        unmet = "" if name in ("f0", "nv0") else f"{each.failed.of - each.met.of} "
        paper = "all" if each.paper else "0"
        failed = f"{each.failed.count:,} of {each.failed.of:,}"
        row = f"| {title} | {paper} | {failed} | {wrong} | {unmet}|"
        assert row in page, row


def test_campaigns_page_has_the_silent_corruption_of_softerrors(results: Results) -> None:
    page = text_of("docs/campaigns.md")
    for dose in results["softerrors"].doses:
        voted, plain = (
            (each[Outcome.SILENT], each[Outcome.SILENT] + each[Outcome.UNCLEAR])
            for each in (dose.outcomes, dose.plain_outcomes)
        )
        assert voted == (0, 0)
        shown = f"{plain[0]} to {plain[1]}" if plain[1] > plain[0] else f"{plain[0]}"
        row = rf"\| {dose.flips:,} \|[^|]*\|[^|]*\|[^|]*\| 0, {shown} \|"
        assert re.search(row, page), row
        assert f"| {dose.flips:,} | {dose.plain.value:.3f} (" in page


def test_campaigns_page_has_the_common_causes_with_their_tests(results: Results) -> None:
    page = text_of("docs/campaigns.md")
    for each in results["commoncause"].common_causes:
        counts = " | ".join(str(share.count) for share in each.failed)
        if each.test.p_value is None:
            tested = "all | "
        else:
            tested = f"{each.test.expected[-1]:.1f} | {f'{each.test.p_value:.2g}'.lstrip('0')} "
        row = f"| {each.kind} | {each.failed[0].of} | {counts} | {tested}|"
        assert row in page, row


def test_the_interval_of_u_is_stated_not_half_of_it(results: Results) -> None:
    strata = {each.name: each for each in results["inequality4"].strata if each.alike is None}
    guests = tuple(
        Counts(trials=each.of, failures=each.count)
        for each in (strata[f"f{k}"].failed for k in range(4))
    )
    found = band(Strata(guests=guests), 0.05).failure(0.05)
    low, high = (100 * (end / found.value - 1) for end in (found.low, found.high))
    stated = f"\N{MINUS SIGN}{f'{-low:.1f}'.lstrip('0')} % to +{high:.1f} %"
    assert stated in text_of("docs/campaigns.md"), stated


def test_paper_page_follows_from_the_stored_results() -> None:
    results = read_results(ROOT / "docs" / "results")
    page = render([(claim, claim.answer(results)) for claim in SECTION3 + CLAIMS], results)
    kept = (ROOT / "docs" / "paper.md").read_text()
    assert kept == page, "make it again: trivisor paper --out docs/paper.md"


def test_stored_campaign_is_complete() -> None:
    for findings in (ROOT / "docs" / "results").glob("*/findings.json"):
        for name in ("campaign.sqlite.xz", "spec.toml", "figures"):
            assert (findings.parent / name).exists(), f"{findings.parent.name} has no {name}"


def _short(value: float, digits: int) -> str:
    """Format as the documents do: no leading zero, a real minus sign."""
    text = f"{abs(value):.{digits}f}".removeprefix("0")
    return f"\N{MINUS SIGN}{text}" if value < 0 else text


def test_campaigns_page_states_the_pooled_evidence_of_the_stored_doses(results: Results) -> None:
    [found] = results["softerrors"].pooled
    page, power = text_of("docs/campaigns.md", "All doses together show more"), found.power
    assert found.correlation and power.correlation and power.departure and power.joint_correlation
    assert (
        f"{found.joint.freedom} degrees of freedom | χ² = {found.joint.ratio:.1f}, "
        f"p = {_short(found.joint.p_value, 2)} | an intraclass correlation of "
        f"{_short(power.joint_correlation, 2)} |"
    ) in page
    for what, each, least in (
        ("R_sys minus the formula", found.departure, power.departure),
        ("doses", found.correlation.rho, power.correlation),
    ):
        assert (
            f"{what} | {_short(each.value, 3)} ({_short(each.low, 3)} to +{_short(each.high, 3)}) "
            f"| {_short(least, 3)} |"
        ) in page
    able = [d.flips for d in results["softerrors"].doses if d.power and d.power.discriminates]
    assert f"Two doses discriminate: {able[0]} flips (agrees) and {able[1]} flips" in text_of(
        "docs/campaigns.md"
    )
