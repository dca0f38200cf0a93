"""tests/conftest.py fails a run that leaves a QEMU behind, here a process that looks like one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.project.tree import ROOT

# A test for an inner pytest: it starts a process that looks like a QEMU of these tests.
LEAVES = """
import subprocess, pathlib
def test_leaves(scratch):
    process = subprocess.Popen(
        ["qemu-system-fake", "60", "-chardev", f"path={scratch}/x"],
        executable=r"FAKE", start_new_session=True,
    )
    pathlib.Path(r"PID").write_text(str(process.pid))
    EXTRA
"""


def inner(folder: Path, extra: str) -> subprocess.CompletedProcess[str]:
    """Run that test in another pytest with this project's conftest.py."""
    fake = folder / "fake"
    # Python, because `sleep` would refuse the arguments that make the process look like a QEMU.
    fake.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    fake.chmod(0o755)
    text = LEAVES.replace("FAKE", sys.executable).replace("EXTRA", extra)
    text = text.replace('"60", ', f'"{fake}", ').replace("PID", str(folder / "pid"))
    (folder / "test_leaves.py").write_text(text)
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = ignore\nmarkers =\n    vm: x\n    long: x\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50)


def test_run_fails_if_a_qemu_is_left(tmp_path: Path) -> None:
    done = inner(tmp_path, "pass")
    pid = (tmp_path / "pid").read_text()
    subprocess.run(["kill", "-KILL", pid], check=True)
    assert done.returncode == 1, done.stdout
    assert "QEMUs left running by these tests" in done.stdout
    assert f"{pid} qemu-system-fake" in done.stdout


def test_run_passes_if_its_qemu_has_ended(tmp_path: Path) -> None:
    done = inner(tmp_path, "process.kill(); process.wait()")
    assert done.returncode == 0, done.stdout
    assert "left running" not in done.stdout
