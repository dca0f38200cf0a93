"""Processes that tests start end with the test, and with the test run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.host.identity import wait_end
from tests.faultinject.campaign.fake_station import GUEST, fake_guests
from tests.faultinject.campaign.processes import ROOT, Processes, following
from tests.faultinject.campaign.workers.test_worker_process import wait_until

# A shell that reports that it has started, and writes its name when it is asked to end.
POLITE = """
trap 'echo "$0" >>ended; exit 0' TERM
: >"$0"
while :; do sleep 0.05; done
"""
STUBBORN = """
trap '' TERM
: >"$0"
while :; do sleep 0.05; done
"""

# A test run in little: it starts a process, and prints its number.
TEST_RUN = """
import os, sys
from pathlib import Path
from tests.faultinject.campaign.processes import Processes
processes = Processes(Path(sys.argv[1]))
process = processes.start("sleep", "600", log=Path(sys.argv[1], "log"), environment=os.environ)
print(process.pid, flush=True)
sys.stdin.read()
"""


def start(processes: Processes, script: str, name: str) -> subprocess.Popen[bytes]:
    """Start a shell script, and wait until it has set its trap."""
    home = processes.home
    process = processes.start(
        "sh", "-c", f"cd {home}; {script}", name, log=home / "log", environment=os.environ
    )
    wait_until((home / name).exists)
    return process


def test_processes_are_ended_in_reverse_order_each_after_the_other(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        started = [start(processes, POLITE, name) for name in ("first", "second", "third")]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert (tmp_path / "ended").read_text().split() == ["third", "second", "first"]


def test_a_process_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    with Processes(tmp_path, patience=0.3) as processes:
        polite = start(processes, POLITE, "polite")
        stubborn = start(processes, STUBBORN, "stubborn")
    assert stubborn.returncode == -signal.SIGKILL
    assert polite.returncode == 0


def test_all_processes_end_when_ctrl_c_interrupts_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    processes = Processes(tmp_path)
    started = [start(processes, STUBBORN, name) for name in ("first", "second")]
    monkeypatch.setattr(processes, "_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        processes.end()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_guests_that_a_killed_worker_left_are_ended(tmp_path: Path) -> None:
    sleep = [GUEST, "-c", "import time; time.sleep(600)", f"file={tmp_path}/g1.qcow2"]
    with subprocess.Popen(sleep, executable=sys.executable) as guest, Processes(tmp_path):
        wait_until(lambda: fake_guests(tmp_path) == [guest.pid])
    assert guest.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_ends_with_a_test_run_that_is_cut_short(
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


def test_nothing_is_started_for_a_parent_that_has_ended(tmp_path: Path) -> None:
    command = following("touch", str(tmp_path / "started"))
    command[command.index(str(os.getpid()))] = "1"  # as if this process were a child of another
    assert subprocess.run(command).returncode == 1
    assert not (tmp_path / "started").exists()
