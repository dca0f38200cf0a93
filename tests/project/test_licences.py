"""Every file has a holder and a licence by the REUSE specification."""

from __future__ import annotations

import subprocess
import sys

from tests.project.tree import ROOT


def test_reuse_finds_a_licence_for_every_file() -> None:
    command = [sys.executable, "-m", "reuse", "--root", str(ROOT), "lint", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "run `reuse lint` for the reasons"
    assert (ROOT / "LICENSES/Apache-2.0.txt").read_text() == (ROOT / "LICENSE").read_text()
