"""tests/conftest.py fails a run that leaves a QEMU behind, and ends fixtures at a signal.

The QEMU is a process that looks like one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


# A test that waits for a signal, and a fixture that must be torn down after it.
WAITS = """
import pathlib, time, pytest
@pytest.fixture
def started():
    yield
    pathlib.Path("ended").touch()
def test_waits(started):
    print("waits", flush=True)
    time.sleep(60)
"""


def write_project(folder: Path, test: str) -> list[str]:
    """Write a test with this project's conftest.py; return the command that runs it."""
    (folder / "test_inner.py").write_text(test)
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = ignore\nmarkers =\n    vm: x\n    long: x\n"
    )
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]


def inner(folder: Path, extra: str) -> subprocess.CompletedProcess[str]:
    """Run that test in another pytest with this project's conftest.py."""
    fake = folder / "fake"
    # Python, because `sleep` would refuse the arguments that make the process look like a QEMU.
    fake.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    fake.chmod(0o755)
    text = LEAVES.replace("FAKE", sys.executable).replace("EXTRA", extra)
    text = text.replace('"60", ', f'"{fake}", ').replace("PID", str(folder / "pid"))
    command = write_project(folder, text)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_run_that_a_signal_ends_tears_its_fixtures_down(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [*write_project(tmp_path, WAITS), "-s"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "waits" not in (line := process.stdout.readline()):
            assert line, "the inner run ended before its test began"
        process.send_signal(number)
        process.communicate(timeout=50)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert (tmp_path / "ended").exists()
