"""The container that tests use as a Debian host."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.host.identity import wait_end
from tests.hosts.container import CGROUPS, Container
from tests.project.tree import ROOT

pytestmark = pytest.mark.vm


def test_container_is_a_host_with_systemd_ssh_and_its_own_network(container: Container) -> None:
    assert container.run("systemctl", "is-system-running").stdout == "running\n"
    assert container.run("cat", "/proc/1/comm").stdout == "systemd\n"
    listening = container.run("ss", "-Hltn").stdout.splitlines()
    assert {line.split()[3] for line in listening} == {"0.0.0.0:22", "[::]:22"}
    known = container.path / "known_hosts"
    port = container.forward(22)
    known.write_text(f"[127.0.0.1]:{port} {container.host_key()}\n")
    ssh = ["ssh", "-i", str(container.key), "-p", str(port), "-o", f"UserKnownHostsFile={known}"]
    for user, command, expected in (
        ("admin", "sudo -n id -u", "0\n"),
        ("operator", "sudo -n true", "sudo: a password is required\n"),
        ("guest", "id -un", "guest\n"),
    ):
        done = subprocess.run(
            [*ssh, f"{user}@127.0.0.1", command], capture_output=True, text=True, timeout=60
        )
        assert done.stdout + done.stderr == expected


def test_container_keeps_its_files_across_a_reboot_and_a_power_cut(container: Container) -> None:
    container.push(Path(__file__), "/var/lib/kept/file", mode="600")
    for restart in (container.reboot, container.cut_power):
        container.run("touch", "/run/gone")
        restart()
        assert container.run("test", "-e", "/run/gone", check=False).returncode == 1
        assert container.run("cat", "/var/lib/kept/file").stdout == Path(__file__).read_text()


def test_run_returns_status_and_output_and_ends_a_command_after_its_time(
    container: Container,
) -> None:
    output = container.run("bash", "-c", "echo no >&2; exit 3", check=False)
    assert (output.returncode, output.stdout) == (3, "no\n")
    assert container.run("sleep", "60", seconds=0.5, check=False).returncode == 124


START = """
import sys
from tests.hosts.container import Container, cached_root
container = Container(cached_root())
print(container.path, container._boot.pid, flush=True)
sys.stdin.read()
"""


def test_killed_test_run_leaves_no_process_and_the_next_container_removes_its_files(
    container_root: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        path, boot = run.stdout.readline().split()
        run.kill()
    assert wait_end(int(boot), 30)
    deadline = time.monotonic() + 30
    groups = list(CGROUPS.glob(f"**/{Path(path).name}/**/cgroup.procs"))
    assert groups
    while any(group.read_text().strip() for group in groups):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    Container(container_root).stop()
    assert not Path(path).exists()
    assert not list(CGROUPS.glob(f"**/{Path(path).name}"))
