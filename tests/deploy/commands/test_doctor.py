"""``trivisor doctor`` names what a host lacks, with the command that installs it."""

from __future__ import annotations

import grp
import importlib.metadata
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.commands import doctor
from deploy.commands.doctor import CAMPAIGN_LIBRARIES, HostCheck, host_checks
from deploy.host.install import BINDING, COMPILER, DRIVER
from deploy.host.spawn import python_environment
from deploy.machine.accel import AcceleratorFacts
from tests.project.tree import ROOT

NOBODY = 65534


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the only directory of programs; the user is `nobody`, who has no subordinate ids."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setenv("TRIVISOR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def check(name: str) -> HostCheck:
    """Return the result of one check."""
    return host_checks(None)[name]()


@pytest.mark.parametrize(
    "name, package",
    [("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils"),
     ("mmdebstrap", "mmdebstrap"), ("apt-config", "apt")],
)  # fmt: skip
def test_missing_program_is_named_with_its_package(name: str, package: str, programs: Path) -> None:
    found = check(name)
    assert (found.result, found.installs) == ("missing", (name,))
    assert found.remedy == f"as root: apt-get install --no-install-recommends {package}"
    install(programs, "sudo")
    assert check(name).remedy == f"sudo apt-get install --no-install-recommends {package}"
    install(programs, name)
    assert check(name).result == "ok"


def test_missing_newuidmap_is_named_with_its_package(programs: Path) -> None:
    for names in ((), ("newuidmap",)):
        install(programs, "sudo", *names)
        found = check("user namespace")
        assert found.result == "missing"
        assert found.remedy == "sudo apt-get install --no-install-recommends uidmap"


def test_missing_ids_are_named_with_the_command_that_adds_a_free_range(programs: Path) -> None:
    install(programs, "newuidmap", "newgidmap", "sudo")
    found = check("user namespace")
    assert (found.result, found.installs) == ("missing", ())
    words = found.remedy.split()
    assert words[:2] + words[-1:] == ["sudo", "usermod", "nobody"]
    assert (words[2], words[4]) == ("--add-subuids", "--add-subgids")
    assert words[3] == words[5]
    low, high = map(int, words[3].split("-"))
    assert low >= 100_000 and high - low == 65_535


def test_user_without_an_account_is_reported(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    found = check("user namespace")
    assert found.result == "missing" and "/etc/passwd" in found.detail


@pytest.mark.parametrize("at_hand, result", [(True, "warning"), (False, "missing")])
def test_image_build_is_a_warning_where_its_packages_are_at_hand(
    at_hand: bool, result: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "packages_at_hand", lambda cache: at_hand)
    for name in ("user namespace", "mmdebstrap"):
        assert check(name).result == result


def test_user_without_a_home_is_told_to_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "TRIVISOR_CACHE", "TRIVISOR_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(fail))
    found = check("home directory")
    assert found.result == "missing" and "HOME" in found.remedy


@pytest.mark.parametrize("systems", [True, False])
def test_missing_binding_is_named_with_debians_package_or_pip(
    systems: bool, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deploy.machine.hypervisor", None)
    monkeypatch.setattr("deploy.host.install.runs_systems_python", lambda: systems)
    monkeypatch.setattr(doctor, "runs_systems_python", lambda: systems)
    found = check("libvirt")
    assert (found.result, found.installs) == ("missing", (BINDING if systems else COMPILER, DRIVER))
    assert ("python3-libvirt" in found.remedy) == systems
    assert ("pip install libvirt-python" in found.remedy) != systems


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Make these libraries look missing."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    needs = ["aiohttp<3.15,>=3.14", "libvirt-python>=9.0", "scipy>=1.11", 'grpcio; extra == "b"']
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    monkeypatch.setattr(doctor, "version", version)


def test_missing_library_is_named_with_pips_command(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "grpcio", "libvirt-python")
    assert check("libraries").result == "ok"
    hide(monkeypatch, "scipy")
    found = check("libraries")
    assert (found.result, found.remedy) == (
        "warning", f"{sys.executable} -m pip install scipy",
    )  # fmt: skip
    hide(monkeypatch, "scipy", "aiohttp")
    found = check("libraries")
    assert found.result == "missing" and "pip install aiohttp scipy" in found.remedy


def test_libraries_of_campaigns_are_those_that_a_node_does_without() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {text.partition(">")[0] for text in project["dependencies"]}
    node = {line for line in (ROOT / "locks/run.in").read_text().splitlines() if line[0] != "#"}
    assert names - node - {"libvirt-python"} == CAMPAIGN_LIBRARIES


@pytest.mark.parametrize(
    "shown, result, text",
    [("ActiveState=active\nListen=127.0.0.1:8080 (Stream)", "ok", "trivisor.service"),
     ("ActiveState=active\nListen=127.0.0.1:80 (Stream)", "warning", "--http"),
     ("ActiveState=inactive\nListen=127.0.0.1:8080 (Stream)", "warning", "--http")],
)  # fmt: skip
def test_port_of_the_packaged_node_is_no_warning(
    shown: str, result: str, text: str, programs: Path
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 8080))
            other.listen()
        except OSError:
            pass  # another program has it
        assert check("port").result == "warning"
        (programs / "systemctl").write_text(f"#!/bin/sh\necho '{shown}'\n")
        (programs / "systemctl").chmod(0o755)
        found = check("port")
        assert found.result == result
        assert text in found.detail + found.remedy


def accelerator(
    monkeypatch: pytest.MonkeyPatch, *, virtualization: bool, device: str | None
) -> HostCheck:
    """Return the check of KVM on a host with these facts."""
    facts = AcceleratorFacts(
        cpu="cpu", virtualization=virtualization, kernel="6", module="", qemu="7", device=device
    )

    async def read_facts() -> AcceleratorFacts:
        return facts

    monkeypatch.setattr("deploy.machine.accel.read_facts", read_facts)
    return check("KVM")


def test_missing_kvm_is_named_with_the_module_to_load(
    monkeypatch: pytest.MonkeyPatch, programs: Path
) -> None:
    found = accelerator(monkeypatch, virtualization=True, device=None)
    assert found.result == "warning" and "modprobe kvm_" in found.remedy


@pytest.mark.parametrize(
    "cpuinfo, text",
    [("vendor_id: GenuineIntel\nflags: fpu hypervisor", "kvm_intel nested=1"),
     ("vendor_id: AuthenticAMD\nflags: fpu hypervisor", "kvm_amd nested=1"),
     ("vendor_id: GenuineIntel\nflags: fpu", "firmware")],
)  # fmt: skip
def test_cpu_without_virtualization_is_explained(
    cpuinfo: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(doctor, "CPUINFO", tmp_path / "cpuinfo")
    found = accelerator(monkeypatch, virtualization=False, device=None)
    assert found.result == "warning" and text in found.remedy


def test_forbidden_kvm_is_named_with_its_group(
    monkeypatch: pytest.MonkeyPatch, programs: Path, tmp_path: Path
) -> None:
    install(programs, "sudo")
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o600)
    monkeypatch.setattr(doctor, "KVM", device)
    denied = "10:232 crw------- 0:0 denied"
    found = accelerator(monkeypatch, virtualization=True, device=denied)
    assert found.result == "warning"
    assert f"sudo chgrp kvm {device} && sudo chmod 660 {device}" in found.remedy
    group = 1 if os.getuid() == 0 else os.getgid()
    os.chown(device, -1, group)
    device.chmod(0o660)
    found = accelerator(monkeypatch, virtualization=True, device=denied)
    assert found.remedy.startswith(f"sudo usermod -aG {grp.getgrgid(group).gr_name} nobody")


def test_remedy_lists_all_packages_in_one_command(scratch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trivisor", "doctor", "--dir", scratch], cwd=ROOT,
        env=python_environment() | {"PATH": str(scratch), "TRIVISOR_CACHE": str(scratch)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert "apt-get install --no-install-recommends qemu-system-x86 qemu-utils mmdebstrap" in last
