"""What a host lacks is named with the command of its distribution, as this user types it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from deploy.host import install
from deploy.host.install import (
    BINDING,
    DRIVER,
    as_root,
    how_to_bind,
    how_to_install,
    how_to_pip,
    read_distribution,
)

OS_RELEASES = {
    "debian": {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12"},
    "ubuntu": {"ID": "ubuntu", "ID_LIKE": "debian", "PRETTY_NAME": "Ubuntu 24.04"},
    "mint": {"ID": "linuxmint", "ID_LIKE": "ubuntu debian", "PRETTY_NAME": "Linux Mint 22"},
    "fedora": {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 42"},
    "rocky": {"ID": "rocky", "ID_LIKE": "rhel centos fedora", "PRETTY_NAME": "Rocky Linux 9"},
    "arch": {"ID": "arch", "PRETTY_NAME": "Arch Linux"},
    "leap": {"ID": "opensuse-leap", "ID_LIKE": "suse opensuse", "PRETTY_NAME": "openSUSE Leap"},
    "alpine": {"ID": "alpine", "PRETTY_NAME": "Alpine Linux v3.22"},
    "haiku": {"ID": "haiku", "PRETTY_NAME": "Haiku Linux"},
}
DISTRIBUTIONS = [
    ("debian", "apt-get install --no-install-recommends qemu-utils libvirt-daemon-driver-qemu"),
    ("ubuntu", "apt-get install --no-install-recommends qemu-utils libvirt-daemon-driver-qemu"),
    ("mint", "apt-get install --no-install-recommends qemu-utils libvirt-daemon-driver-qemu"),
    ("fedora", "dnf install qemu-img libvirt-daemon-driver-qemu"),
    ("rocky", "dnf install qemu-img libvirt-daemon-driver-qemu"),
    ("arch", "pacman -S qemu-img libvirt"),
    ("leap", "zypper install qemu-img libvirt-daemon-qemu"),
    ("alpine", "apk add qemu-img libvirt-qemu"),
]


def use(monkeypatch: pytest.MonkeyPatch, name: str, *, user: int = 0, sudo: bool = True) -> None:
    """Make this host look like another distribution's, to a user with or without sudo."""
    facts = {"NAME": "Linux"} | OS_RELEASES[name]
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: facts)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if sudo else None)


@pytest.mark.parametrize("name, command", DISTRIBUTIONS)
def test_packages_have_the_distributions_names(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, name)
    assert how_to_install("qemu-img", DRIVER) == command


@pytest.mark.parametrize("name", ["fedora", "haiku"])
def test_program_is_named_where_its_package_is_unknown(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, name)
    text = how_to_install("mmdebstrap")
    assert "mmdebstrap" in text and OS_RELEASES[name]["PRETTY_NAME"] in text
    assert "dnf" not in text


def test_host_without_os_release_is_an_unknown_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> dict[str, str]:
        raise OSError("no os-release")

    monkeypatch.setattr(platform, "freedesktop_os_release", fail)
    assert read_distribution().family == ""
    assert "qemu-img" in how_to_install("qemu-img")


def test_ordinary_user_gets_sudo_for_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "debian", user=1000)
    assert how_to_install("qemu-img").startswith("sudo apt-get install ")
    assert as_root("a && b") == "sudo a && sudo b"


def test_ordinary_user_without_sudo_is_sent_to_root(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "debian", user=1000, sudo=False)
    assert how_to_install("qemu-img").startswith("as root: apt-get install ")


def test_pip_is_the_one_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_pip("scipy") == f"{sys.executable} -m pip install scipy"
    monkeypatch.setattr(sys, "prefix", str(install.PACKAGED))
    assert "virtual environment of your own" in how_to_pip("scipy")


def test_binding_is_linked_for_the_systems_python_and_compiled_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, "debian")
    system = tmp_path / "python3"
    system.write_text("")
    monkeypatch.setattr(install, "SYSTEM_PYTHON", system)
    monkeypatch.setattr(sys, "_base_executable", str(system), raising=False)
    package = how_to_install(BINDING, DRIVER)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert how_to_bind() == package
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert how_to_bind().startswith(f"{package} && ln -sf {install.DEBIAN_MODULES}/libvirt* ")
    monkeypatch.setattr(sys, "_base_executable", "/opt/python3", raising=False)
    for word in ("libvirt-dev", "gcc", "-m pip install libvirt-python"):
        assert word in how_to_bind()
