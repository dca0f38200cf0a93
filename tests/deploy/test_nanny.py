"""The nanny passes signals on, tells how the supervisor ended, and buries what it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Starts a process that outlives it, says both pids, and waits to be killed.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""


def _nanny(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.nanny", sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_supervisors_exit_status_is_told() -> None:
    with _nanny("raise SystemExit(7)") as nanny:
        assert nanny.wait(timeout=20) == 7


def test_sigterm_is_passed_on() -> None:
    with _nanny("import time; print('up', flush=True); time.sleep(60)") as nanny:
        assert nanny.stdout is not None
        assert nanny.stdout.readline() == "up\n"
        nanny.send_signal(signal.SIGTERM)
        assert nanny.wait(timeout=20) == 128 + signal.SIGTERM


def test_what_a_killed_supervisor_leaves_is_buried_when_it_ends() -> None:
    with _nanny(PARENT) as nanny:
        assert nanny.stdout is not None
        orphan = int(nanny.stdout.readline())
        (supervisor,) = _children(nanny.pid)
        os.kill(supervisor, signal.SIGKILL)
        # Its input ends with the supervisor, so the orphan ends as well, and then the nanny.
        assert nanny.wait(timeout=20) == 128 + signal.SIGKILL
        deadline = time.monotonic() + 5
        while Path(f"/proc/{orphan}").exists():
            assert time.monotonic() < deadline, "the orphan is still there, if only as a zombie"


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
