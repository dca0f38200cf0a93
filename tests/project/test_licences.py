"""Every file has a holder and a licence by the REUSE specification."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.project.tree import ROOT


def test_reuse_finds_a_licence_for_every_file() -> None:
    command = [sys.executable, "-m", "reuse", "--root", str(ROOT), "lint", "--quiet"]
    # The library that guesses encodings is a locked one, not libmagic, which a host may lack.
    environment = os.environ | {"REUSE_ENCODING_MODULE": "charset_normalizer"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment
    )  # fmt: skip
    assert done.returncode == 0, "run `reuse lint` for the reasons"
    assert (ROOT / "LICENSES/Apache-2.0.txt").read_text() == (ROOT / "LICENSE").read_text()
