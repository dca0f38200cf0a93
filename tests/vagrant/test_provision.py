"""vagrant/provision.sh in a pristine Debian 12 root, as `vagrant up` runs it.

The default test only prints the demo's usage, after everything it needs was installed.  The long
tests run the demo itself, with its three guests.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.project.tree import ROOT, tracked
from tests.vagrant.pristine import PristineRoot, make_root

__all__: list[str] = []

INSIDE = "home/vagrant/trivisor"
SETUP_SECONDS = 900  # mmdebstrap, then apt and pip, on two busy cores and a slow mirror
DEMO_SECONDS = 900

pytestmark = [
    pytest.mark.timeout(2 * SETUP_SECONDS + DEMO_SECONDS),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]


@pytest.fixture
def machine(scratch: Path) -> PristineRoot:
    """Give a pristine root with this project's files where vagrant puts them."""
    root = make_root(scratch / "root", scratch / "mmdebstrap.log", seconds=SETUP_SECONDS)
    for path in tracked():
        target = root.path / INSIDE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return root


def provision(
    machine: PristineRoot, *arguments: str, seconds: float, become: tuple[str, ...] = ()
) -> tuple[int, str, dict[str, str]]:
    """Run the script; return its exit status, its output, and its results by file name."""
    script = f"/{INSIDE}/vagrant/provision.sh"
    done = machine.run(*become, "bash", script, *arguments, seconds=seconds)
    folder = machine.path / INSIDE / "vagrant/results"
    return done.returncode, done.stdout, {path.name: path.read_text() for path in folder.iterdir()}


def set_up_from_nothing(output: str) -> None:
    """Assert that packages and a virtual environment were installed."""
    for text in ("installing", "qemu-system-x86", "making .venv", "set up in"):
        assert text in output, output


@pytest.mark.vm
def test_pristine_machine_is_set_up_by_the_readmes_steps(machine: PristineRoot) -> None:
    status, output, results = provision(machine, "--help", seconds=SETUP_SECONDS)
    assert status == 0, output
    set_up_from_nothing(output)
    assert "Usage:" in output
    assert results["demo.txt"] in output
    assert results["status.txt"] == "0\n"
    assert "Debian GNU/Linux 12" in results["host.txt"]
    policy = machine.path / "usr/sbin/policy-rc.d"
    assert not policy.exists(), "./run must remove what kept apt from starting services"

    again, output, _ = provision(machine, "--no-such-option", seconds=SETUP_SECONDS)
    assert again != 0, "a demo that fails must fail the provisioning"
    assert "installing" not in output.partition("==> ./run demo")[2], "nothing is installed twice"


@pytest.mark.vm
@pytest.mark.long
def test_demo_runs_on_a_pristine_machine(machine: PristineRoot) -> None:
    status, output, results = provision(machine, seconds=SETUP_SECONDS + DEMO_SECONDS)
    assert status == 0, output
    set_up_from_nothing(output)
    assert results["status.txt"] == "0\n"
    assert "demo" in results["demo.txt"]


@pytest.mark.vm
@pytest.mark.long
def test_demo_runs_for_a_user_with_sudo(machine: PristineRoot) -> None:
    prepare = (
        "apt-get -q update && apt-get -q install -y --no-install-recommends sudo &&"
        " useradd vagrant && chown -R vagrant: /home/vagrant &&"
        " echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/vagrant"
    )
    prepared = machine.run("bash", "-c", prepare, seconds=SETUP_SECONDS)
    assert prepared.returncode == 0, prepared.stdout
    user = ("setpriv", "--reuid=vagrant", "--regid=vagrant", "--init-groups")
    become = (*user, "env", "HOME=/home/vagrant")
    status, output, _ = provision(machine, seconds=SETUP_SECONDS + DEMO_SECONDS, become=become)
    assert status == 0, output
    set_up_from_nothing(output)
    assert "sudo is needed" in output
