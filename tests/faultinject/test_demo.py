"""`trivisor demo` on real guests: all claims hold, nothing is left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import left_qemus


@pytest.mark.readme
@pytest.mark.vm
@pytest.mark.readme
def test_demo_holds_all_its_claims(scratch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trivisor", "demo", "--requests", "60", "--json"],
        check=False, capture_output=True, env=os.environ | {"TMPDIR": str(scratch)},
    )  # fmt: skip
    summary = json.loads(done.stdout)
    assert done.returncode == 0, summary["claims"]
    assert summary["held"] and all(claim["held"] for claim in summary["claims"])
    assert summary["requests"] == summary["correct"] + summary["refused"]
    assert summary["wrong"] == summary["unanswered"] == 0
    assert summary["masked"] > 0 and summary["refused"] == 20
    assert not left_qemus(str(scratch))
