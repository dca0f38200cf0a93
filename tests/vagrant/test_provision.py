"""vagrant/provision.sh in a pristine Debian 12 root, as `vagrant up` runs it.

The default test only prints the usage of demo and campaign, after what they need was installed.
The long tests run both, with three guests.
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
    pytest.mark.timeout(3 * SETUP_SECONDS + DEMO_SECONDS),
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
    machine: PristineRoot,
    *,
    seconds: float,
    demo: str = "",
    campaign: str = "",
    become: tuple[str, ...] = (),
) -> tuple[int, str, dict[str, str]]:
    """Run the script; return its exit status, its output, and its results by file name."""
    arguments = (f"TRIVISOR_DEMO={demo}", f"TRIVISOR_CAMPAIGN={campaign}")
    script = f"/{INSIDE}/vagrant/provision.sh"
    done = machine.run(*become, "env", *arguments, "bash", script, seconds=seconds)
    folder = machine.path / INSIDE / "vagrant/results"
    results = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    return done.returncode, done.stdout, results


def statuses(results: dict[str, str]) -> dict[str, int]:
    """Return each step's exit status, by the step's name."""
    rows = [line.split() for line in results["status.txt"].splitlines()]
    return {name: int(status) for name, status, _seconds in rows}


def set_up_from_nothing(output: str) -> None:
    """Assert that packages and a virtual environment were installed."""
    for text in ("installing", "qemu-system-x86", "making .venv", "set up in"):
        assert text in output, output


@pytest.mark.long
@pytest.mark.vm
def test_pristine_machine_is_set_up_by_the_readmes_steps(machine: PristineRoot) -> None:
    usage = "--help"
    status, output, results = provision(
        machine, demo=usage, campaign=usage, seconds=2 * SETUP_SECONDS
    )
    assert status == 0, output
    set_up_from_nothing(output)
    assert "Usage: trivisor demo" in results["demo.txt"]
    assert "Usage: trivisor campaign run" in results["campaign.txt"]
    assert results["demo.txt"] in output
    assert statuses(results) == {"packages": 0, "host": 0, "demo": 0, "campaign": 0}
    assert "Debian GNU/Linux 12" in results["host.txt"]
    policy = machine.path / "usr/sbin/policy-rc.d"
    assert not policy.exists(), "./run must remove what kept apt from starting services"

    status, output, results = provision(
        machine, demo="--no-such-option", campaign=usage, seconds=SETUP_SECONDS
    )
    assert status != 0, "a demo that fails must fail the provisioning"
    assert statuses(results) == {"packages": 0, "host": 0, "demo": 2, "campaign": 0}
    assert "installing" not in output, "nothing is installed twice"


@pytest.mark.vm
@pytest.mark.long
def test_demo_and_campaign_run_on_a_pristine_machine(machine: PristineRoot) -> None:
    status, output, results = provision(
        machine, campaign="--first 10", seconds=2 * SETUP_SECONDS + DEMO_SECONDS
    )
    assert status == 0, output
    set_up_from_nothing(output)
    assert set(statuses(results).values()) == {0}
    assert "claims hold" in results["demo.txt"]
    assert (machine.path / INSIDE / "vagrant/results/campaign/report.html").stat().st_size


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
    status, output, _ = provision(
        machine, campaign="--help", seconds=2 * SETUP_SECONDS + DEMO_SECONDS, become=become
    )
    assert status == 0, output
    set_up_from_nothing(output)
    assert "sudo is needed" in output
