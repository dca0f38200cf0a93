"""vagrant validates the Vagrantfile, without a daemon and a box."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project.tree import ROOT

__all__: list[str] = []


def vagrant(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a vagrant command in a folder; vagrant's own files stay inside that folder."""
    assert shutil.which("vagrant"), (
        "apt-get install --no-install-recommends vagrant vagrant-libvirt"
    )
    settings = {
        "VAGRANT_HOME": str(folder / "home"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        **environment,
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=50,
    )


def validate(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `vagrant validate`."""
    return vagrant("vagrant", "validate", folder=folder, **environment)


def put(folder: Path, text: str) -> Path:
    """Write a Vagrantfile into a directory `vagrant`, as in the project."""
    (folder / "vagrant").mkdir()
    (folder / "vagrant/Vagrantfile").write_text(text)
    return folder / "vagrant"


@pytest.mark.parametrize("driver", ["kvm", "qemu"])
def test_vagrantfile_is_valid_with_and_without_kvm(tmp_path: Path, driver: str) -> None:
    folder = put(tmp_path, (ROOT / "vagrant/Vagrantfile").read_text())
    done = validate(folder, TRIVISOR_VAGRANT_DRIVER=driver)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_unknown_setting_is_invalid(tmp_path: Path) -> None:
    text = (ROOT / "vagrant/Vagrantfile").read_text()
    folder = put(tmp_path, text.replace("libvirt.cpus =", "libvirt.cpuz ="))
    assert validate(folder).returncode != 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("DRIVER", "xen"), ("DRIVER", ""), ("CPUS", "0"), ("CPUS", "two"), ("CPUS", "2\n3")],
)
def test_wrong_setting_is_named(tmp_path: Path, name: str, value: str) -> None:
    folder = put(tmp_path, (ROOT / "vagrant/Vagrantfile").read_text())
    done = validate(folder, **{f"TRIVISOR_VAGRANT_{name}": value})
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"TRIVISOR_VAGRANT_{name} is ")


def test_missing_plugin_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path, (ROOT / "vagrant/Vagrantfile").read_text())
    done = validate(folder, VAGRANT_NO_PLUGINS="1")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "apt-get install vagrant-libvirt" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_up_without_a_libvirtd_says_what_to_start(tmp_path: Path) -> None:
    folder = put(tmp_path, (ROOT / "vagrant/Vagrantfile").read_text())
    hidden = (
        "unshare",
        "--mount",
        "bash",
        "-c",
        'mount -t tmpfs tmpfs /run && exec "$@"',
        "hidden",
    )
    done = vagrant(*hidden, "vagrant", "up", folder=folder)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "systemctl start libvirtd" in line
