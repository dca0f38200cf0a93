"""Whether this host's QEMU has a debug stub, asked before anything needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.machine.debug_stub import why_no_stub


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_debians_qemu_has_one() -> None:
    assert why_no_stub() == ""


def test_one_that_was_built_without_says_so_itself(scratch: Path) -> None:
    fake = scratch / "qemu"
    fake.write_text("#!/bin/sh\necho 'starting' >&2\necho \"-gdb: not compiled in\" >&2\nexit 1\n")
    fake.chmod(0o755)
    assert why_no_stub(str(fake)) == "-gdb: not compiled in"
    assert "No such file" in why_no_stub(str(scratch / "none"))
