"""docs/paper.md says what the kept results say: it is made, not typed."""

from __future__ import annotations

from pathlib import Path

from faultinject.claims import CLAIMS
from faultinject.claims.claim import read_results
from faultinject.claims.page import render

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_kept_results_make_of_it() -> None:
    results = read_results(ROOT / "docs" / "results")
    page = render([(claim, claim.answer(results)) for claim in CLAIMS], results)
    kept = (ROOT / "docs" / "paper.md").read_text()
    assert kept == page, "make it anew: trivisor paper --out docs/paper.md"


def test_every_kept_campaign_has_its_rows_its_spec_and_its_report() -> None:
    for findings in (ROOT / "docs" / "results").glob("*/findings.json"):
        for name in ("campaign.sqlite.xz", "spec.toml", "report.html", "figures"):
            assert (findings.parent / name).exists(), f"{findings.parent.name} lacks {name}"
