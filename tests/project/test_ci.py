"""The CI deadline: what a command started is ended with it, daemons included, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.project.tree import ROOT

__all__: list[str] = []

DEADLINE = [sys.executable, "-I", str(ROOT / ".ci/deadline.py"), "--grace=1"]

# Starts a daemon as libvirt starts a QEMU: two forks, a session of its own, an empty environment.
# It writes its pid into the file named, ignores SIGTERM where told so, and sleeps.
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
    """Run the daemon's starter under the deadline."""
    command = [*DEADLINE, str(seconds), sys.executable, "-c", DAEMON, str(pid_file), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def alive(pid_file: Path) -> bool:
    """Whether the daemon that wrote the file is still there."""
    return Path(f"/proc/{pid_file.read_text()}").exists()


def test_a_command_that_leaves_nothing_keeps_its_status() -> None:
    for status in (0, 7):
        command = [*DEADLINE, "30", "bash", "-c", f"echo said; exit {status}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (status, "said\n")


def test_a_daemon_left_behind_is_ended_and_told(tmp_path: Path) -> None:
    done = run(30, tmp_path / "pid")
    assert done.returncode == 0
    assert "command done" in done.stdout
    assert f"{(tmp_path / 'pid').read_text()} sleep 300" in done.stdout
    assert not alive(tmp_path / "pid")


def test_a_qemu_left_behind_is_ended_and_a_failure(tmp_path: Path) -> None:
    done = run(30, tmp_path / "pid", "qemu")
    assert done.returncode == 1
    assert f"{(tmp_path / 'pid').read_text()} qemu-system-fake 300" in done.stdout
    assert not alive(tmp_path / "pid")


def test_a_failed_command_keeps_its_status(tmp_path: Path) -> None:
    assert run(30, tmp_path / "pid", "fail").returncode == 3
    assert not alive(tmp_path / "pid")


def test_the_deadline_ends_the_command_and_its_daemon(tmp_path: Path) -> None:
    done = run(2, tmp_path / "pid", "stay")
    assert done.returncode == 124
    assert "command done" not in done.stdout
    assert not alive(tmp_path / "pid")


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    assert run(30, tmp_path / "pid", "stubborn", "qemu").returncode == 1
    assert not alive(tmp_path / "pid")


def test_a_signal_ends_the_command_and_its_daemon(tmp_path: Path) -> None:
    command = [*DEADLINE, "60", sys.executable, "-c", DAEMON, str(tmp_path / "pid"), "stay"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not alive(tmp_path / "pid")


def test_processes_of_others_are_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"]) as other:
        try:
            run(30, tmp_path / "pid")
            assert other.poll() is None
            os.kill(other.pid, 0)
        finally:
            other.kill()


def test_the_command_is_ended_when_the_parent_of_the_deadline_is_killed(tmp_path: Path) -> None:
    inner = [*DEADLINE, "none", sys.executable, "-c", DAEMON, str(tmp_path / "pid"), "stay"]
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", starter, *inner]) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    deadline = time.monotonic() + 20
    while alive(tmp_path / "pid") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(tmp_path / "pid")
