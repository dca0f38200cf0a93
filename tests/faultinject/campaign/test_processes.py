"""Processes that tests start end with the test, and with the test run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.host.identity import wait_end
from tests.faultinject.campaign.processes import ROOT, following

# A small test run: it starts a process, and prints its process id.
TEST_RUN = """
import os, sys
from pathlib import Path
from tests.faultinject.campaign.processes import Processes
processes = Processes(Path(sys.argv[1]))
process = processes.start("sleep", "600", log=Path(sys.argv[1], "log"), environment=os.environ)
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_process_ends_with_a_test_run_that_is_cut_short(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        following(sys.executable, "-c", TEST_RUN, str(tmp_path)),
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        run.send_signal(number)
        assert wait_end(pid, 10)
    assert run.returncode == -number


def test_following_starts_nothing_when_the_parent_has_ended(tmp_path: Path) -> None:
    command = following("touch", str(tmp_path / "started"))
    command[command.index(str(os.getpid()))] = "1"  # as if this process were a child of another
    assert subprocess.run(command).returncode == 1
    assert not (tmp_path / "started").exists()
