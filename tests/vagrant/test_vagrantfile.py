"""vagrant validates the Vagrantfile, without a daemon and a box."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project.tree import ROOT

__all__: list[str] = []


def validate(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `vagrant validate` in a folder; vagrant's own files stay inside that folder."""
    assert shutil.which("vagrant"), (
        "apt-get install --no-install-recommends vagrant vagrant-libvirt"
    )
    settings = {
        "VAGRANT_HOME": str(folder / "home"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        **environment,
    }
    return subprocess.run(
        ["vagrant", "validate"],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=50,
    )


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
