"""docs/paper.md is generated from the stored results."""

from __future__ import annotations

from pathlib import Path

from faultinject.claims.evidence import read_results
from faultinject.claims.page import render
from faultinject.claims.section4 import CLAIMS

ROOT = Path(__file__).resolve().parents[2]


def test_paper_page_equals_the_page_generated_from_stored_results() -> None:
    results = read_results(ROOT / "docs" / "results")
    page = render([(claim, claim.answer(results)) for claim in CLAIMS], results)
    kept = (ROOT / "docs" / "paper.md").read_text()
    assert kept == page, "create it again: trivisor paper --out docs/paper.md"


def test_every_stored_campaign_has_its_rows_spec_and_figures() -> None:
    for findings in (ROOT / "docs" / "results").glob("*/findings.json"):
        for name in ("campaign.sqlite.xz", "spec.toml", "figures"):
            assert (findings.parent / name).exists(), f"{name} is missing in {findings.parent.name}"
