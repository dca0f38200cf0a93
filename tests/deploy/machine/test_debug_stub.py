"""Detection of QEMU's debug stub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.machine.debug_stub import why_no_stub


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_debians_qemu_has_a_debug_stub() -> None:
    assert why_no_stub() == ""


def test_qemus_own_error_is_returned_without_a_debug_stub(scratch: Path) -> None:
    fake = scratch / "qemu"
    fake.write_text("#!/bin/sh\necho 'starting' >&2\necho \"-gdb: not compiled in\" >&2\nexit 1\n")
    fake.chmod(0o755)
    assert why_no_stub(str(fake)) == "-gdb: not compiled in"
    assert "No such file" in why_no_stub(str(scratch / "none"))
