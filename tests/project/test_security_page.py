"""docs/security.md: each threat has a test, and says what is not stopped.

That the tests exist is checked by test_references.py.
"""

from __future__ import annotations

import re

from tests.project.tree import ROOT

PAGE = ROOT / "docs" / "security.md"
TEST = re.compile(r"`tests/[\w/]+\.py::\w+`")


def test_every_threat_names_a_test_and_what_is_not_stopped() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Threats")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header, *threats = rows
    assert header[-2:] == ["shown by", "what does not stop them"]
    assert len(threats) >= 4
    for threat in threats:
        assert len(threat) == len(header), threat
        assert all(cell.strip() for cell in threat), threat
        assert TEST.search(threat[-2]) or threat[-2].startswith("no test: "), threat
