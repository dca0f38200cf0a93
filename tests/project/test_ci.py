"""The CI deadline ends all processes that a command started, daemons included, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.project.tree import ROOT
from tests.waiting import wait_until

DEADLINE = [sys.executable, "-I", str(ROOT / ".ci/deadline.py"), "--grace=1"]

# Starts a daemon as libvirt starts a QEMU: two forks, a new session, an empty environment.
# The daemon writes its pid to a file, ignores SIGTERM if it is "stubborn", and sleeps.
DAEMON = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "stubborn" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        name = "qemu-system-fake" if "qemu" in sys.argv else "sleep"
        os.execve("/bin/sleep", [name, "300"], {})
    os._exit(0)
os.wait()
import time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
if "stay" in sys.argv:
    time.sleep(300)
print("command done")
sys.exit(3 if "fail" in sys.argv else 0)
"""


def run(seconds: float, pid_file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon under the deadline."""
    command = [*DEADLINE, str(seconds), sys.executable, "-c", DAEMON, str(pid_file), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def alive(pid_file: Path) -> bool:
    """Return whether the daemon that wrote the file still runs."""
    return Path(f"/proc/{pid_file.read_text()}").exists()


def test_deadline_returns_the_commands_status() -> None:
    for status in (0, 7):
        command = [*DEADLINE, "30", "bash", "-c", f"echo said; exit {status}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (status, "said\n")


def test_deadline_ends_and_reports_a_daemon(tmp_path: Path) -> None:
    done = run(30, tmp_path / "pid")
    assert done.returncode == 0
    assert "command done" in done.stdout
    assert f"{(tmp_path / 'pid').read_text()} sleep 300" in done.stdout
    assert not alive(tmp_path / "pid")


def test_deadline_fails_if_a_qemu_is_left(tmp_path: Path) -> None:
    done = run(30, tmp_path / "pid", "qemu")
    assert done.returncode == 1
    assert f"{(tmp_path / 'pid').read_text()} qemu-system-fake 300" in done.stdout
    assert not alive(tmp_path / "pid")


def test_deadline_returns_a_failed_commands_status(tmp_path: Path) -> None:
    assert run(30, tmp_path / "pid", "fail").returncode == 3
    assert not alive(tmp_path / "pid")


def test_deadline_ends_the_command_and_its_daemon_in_time(tmp_path: Path) -> None:
    done = run(2, tmp_path / "pid", "stay")
    assert done.returncode == 124
    assert "command done" not in done.stdout
    assert not alive(tmp_path / "pid")


def test_deadline_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    assert run(30, tmp_path / "pid", "stubborn", "qemu").returncode == 1
    assert not alive(tmp_path / "pid")


def test_deadline_ends_everything_on_a_signal(tmp_path: Path) -> None:
    command = [*DEADLINE, "60", sys.executable, "-c", DAEMON, str(tmp_path / "pid"), "stay"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until((tmp_path / "pid").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not alive(tmp_path / "pid")


def test_deadline_leaves_other_processes_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"]) as other:
        try:
            run(30, tmp_path / "pid")
            assert other.poll() is None
            os.kill(other.pid, 0)
        finally:
            other.kill()


def test_deadline_ends_everything_when_its_parent_is_killed(tmp_path: Path) -> None:
    inner = [*DEADLINE, "none", sys.executable, "-c", DAEMON, str(tmp_path / "pid"), "stay"]
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", starter, *inner]) as process:
        wait_until((tmp_path / "pid").exists)
        process.kill()
    wait_until(lambda: not alive(tmp_path / "pid"))
    assert not alive(tmp_path / "pid")
