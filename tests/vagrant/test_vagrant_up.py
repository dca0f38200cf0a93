"""`vagrant up` on a private libvirtd: its namespaces here, the whole of it in a long test."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project.tree import ROOT
from tests.vagrant.vagrant_up import VagrantHost, host_settings

__all__: list[str] = []

SECONDS = 2 * 3600  # an emulated machine boots three guests, twice

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def small_host(scratch: Path) -> VagrantHost:
    """Give a host whose box has an empty disk."""
    parts = scratch / "parts"
    parts.mkdir()
    disk = parts / "box.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
    metadata = '{"provider": "libvirt", "format": "qcow2", "virtual_size": 1}'
    (parts / "metadata.json").write_text(metadata)
    (parts / "Vagrantfile").write_text('Vagrant.configure("2") { }')
    with tarfile.open(scratch / "small.box", "w") as box:
        for path in parts.iterdir():
            box.add(path, path.name)
    host = VagrantHost(scratch, scratch / "small.box", {})
    host.prepare()
    return host


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Poll until the condition holds.  Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running(scratch: Path) -> list[str]:
    """Return the command lines of processes that belong to a host below the scratch directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"VAGRANT_HOME={scratch}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended, or it is a kernel thread
            continue
    return found


def test_machine_gets_no_path_of_this_host_as_an_index() -> None:
    settings = host_settings()
    assert b"bookworm" in settings["etc/apt/sources.list.d/debian.sources"]
    assert b"file:" not in settings["etc/environment"]
    assert not any(name.startswith("/") for name in settings)


@as_root
@pytest.mark.vm
def test_command_runs_next_to_a_libvirtd_and_all_of_it_ends(
    small_host: VagrantHost, scratch: Path
) -> None:
    log = scratch / "log.txt"
    command = "virsh -c qemu:///system list --all; vagrant status; pwd; sleep 1000 & exit 3"
    assert small_host.run(command, log, seconds=120) == 3
    text = log.read_text()
    assert "Id   Name   State" in text
    assert "not created (libvirt)" in text
    assert "DIRECTORY/trivisor/vagrant" in text
    assert running(scratch) == []
    with pytest.raises(subprocess.TimeoutExpired):
        small_host.run("sleep 1000", log, seconds=3)
    assert running(scratch) == []


@as_root
@pytest.mark.vm
def test_everything_ends_with_a_killed_runner(small_host: VagrantHost, scratch: Path) -> None:
    del small_host
    script = (
        "import sys; from pathlib import Path; from tests.vagrant.vagrant_up import VagrantHost;"
        "s = Path(sys.argv[1]);"
        "VagrantHost(s, s, {}).run('echo started; sleep 1000', s / 'log.txt', seconds=600)"
    )
    command = [sys.executable, "-c", script, str(scratch)]
    runner = subprocess.Popen(command, cwd=ROOT)
    try:
        log = scratch / "log.txt"
        wait_until(lambda: log.exists() and "started" in log.read_text())
    finally:
        runner.kill()
        runner.wait()
    wait_until(lambda: running(scratch) == [])


@as_root
@pytest.mark.vm
@pytest.mark.long
@pytest.mark.timeout(SECONDS + 1800)
def test_vagrant_up_runs_demo_and_campaign(scratch: Path) -> None:
    box = scratch / "own.box"
    build = ROOT / "vagrant/box/build"
    made = subprocess.run(
        [build, "--output", box], capture_output=True, text=True, timeout=1700
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    directory = scratch / "up"
    directory.mkdir()
    host = VagrantHost(directory, box, {"TRIVISOR_CAMPAIGN": "--workers 1 --first 3"})
    host.prepare()
    log = directory / "log.txt"
    status = host.run("vagrant up && vagrant destroy --force", log, seconds=SECONDS)
    assert status == 0, log.read_text()[-5000:]
    results = host.project / "vagrant/results"
    assert "claims hold" in (results / "demo.txt").read_text()
    assert (results / "campaign/report.html").stat().st_size
