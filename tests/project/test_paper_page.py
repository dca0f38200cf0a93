"""docs/paper.md is generated from the stored results."""

from __future__ import annotations

from pathlib import Path

from faultinject.claims.evidence import read_results
from faultinject.claims.page import render
from faultinject.claims.section4 import CLAIMS

ROOT = Path(__file__).resolve().parents[2]


def test_paper_page_follows_from_the_stored_results() -> None:
    results = read_results(ROOT / "docs" / "results")
    page = render([(claim, claim.answer(results)) for claim in CLAIMS], results)
    kept = (ROOT / "docs" / "paper.md").read_text()
    assert kept == page, "make it again: trivisor paper --out docs/paper.md"


def test_stored_campaign_is_complete() -> None:
    for findings in (ROOT / "docs" / "results").glob("*/findings.json"):
        for name in ("campaign.sqlite.xz", "spec.toml", "figures"):
            assert (findings.parent / name).exists(), f"{findings.parent.name} has no {name}"
