"""vagrant/box/build: what it says about bad input; the box itself in a long test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.project.tree import ROOT

__all__: list[str] = []

BUILD = ROOT / "vagrant/box/build"
BUILD_SECONDS = 1500  # half a gigabyte of packages, on two busy cores and a slow mirror


def build(
    *arguments: str | Path, seconds: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    return subprocess.run(
        [BUILD, *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_help_says_what_it_needs() -> None:
    done = build("--help")
    assert done.returncode == 0
    for text in ("mmdebstrap", "uidmap", "--add", "debian/bookworm64"):
        assert text in done.stdout


@pytest.mark.parametrize("arguments", [["--nothing"], ["--output"], ["--output", ""], ["x.box"]])
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    done = build(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--help" in done.stderr


def test_missing_programs_are_named_with_the_command_to_type(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "readlink", "dirname", "uname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    done = build(PATH=str(programs))
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install --no-install-recommends mmdebstrap" in done.stderr


@pytest.mark.parametrize("place", ["missing/a.box", "."])
def test_unusable_output_is_an_error_before_anything_is_made(tmp_path: Path, place: str) -> None:
    output = tmp_path / place
    done = build("--output", output, TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert str(output) in done.stderr or str(output.parent) in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directory", ["missing", "with a space", "."])
def test_unusable_tmpdir_is_an_error(tmp_path: Path, directory: str) -> None:
    (tmp_path / "with a space").mkdir()
    place = directory if directory == "." else str(tmp_path / directory)
    done = build("--output", tmp_path / "a.box", TMPDIR=place)
    assert done.returncode == 1
    assert "TMPDIR" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_too_little_space_is_an_error_before_anything_is_fetched(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=100m tmpfs {small} && TMPDIR={small} "$@"; ls {small}'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "limited", BUILD, "--output", tmp_path / "a"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "set TMPDIR" in done.stderr
    assert done.stdout == ""


@pytest.mark.vm
@pytest.mark.long
@pytest.mark.timeout(BUILD_SECONDS + 60)
def test_box_contains_a_disk_and_its_size(tmp_path: Path) -> None:
    output = tmp_path / "own name.box"
    done = build("--output", output, seconds=BUILD_SECONDS, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [output]
    with tarfile.open(output) as box:
        assert box.getnames() == ["box.img", "metadata.json", "Vagrantfile"]
        file = box.extractfile("metadata.json")
        assert file is not None
        metadata = json.load(file)
        box.extract("box.img", tmp_path, filter="data")
    information = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", tmp_path / "box.img"])
    )
    assert metadata["provider"] == "libvirt"
    assert metadata["format"] == information["format"] == "qcow2"
    assert metadata["virtual_size"] << 30 == information["virtual-size"]
