"""Processes are found by the directory they work in, wherever it was moved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.search import programs_in
from deploy.host.spawn import python_environment

WAIT = "print('up', flush=True); input()"


@pytest.fixture
def home(scratch: Path) -> Path:
    home = scratch / "node"
    home.mkdir()
    return home


@pytest.fixture
def voter(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that works in `home` and is marked as a voter."""
    with subprocess.Popen(
        [sys.executable, "-c", WAIT], env=python_environment("voter"), cwd=home,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_program_is_found_under_every_name_of_its_directory(
    home: Path, voter: subprocess.Popen[bytes], scratch: Path
) -> None:
    found = [(voter.pid, "voter")]
    link = scratch / "link"
    link.symlink_to(home)
    assert list(programs_in(home)) == list(programs_in(link)) == found
    moved = home.rename(scratch / "moved")
    home.mkdir()  # another node's directory, at the old path
    assert list(programs_in(moved)) == found
    assert list(programs_in(home)) == []


def test_program_is_found_by_the_last_path_of_its_deleted_directory(
    home: Path, voter: subprocess.Popen[bytes], scratch: Path
) -> None:
    moved = home.rename(scratch / "moved")
    shutil.rmtree(moved)
    assert list(programs_in(moved)) == [(voter.pid, "voter")]
    assert list(programs_in(home)) == []


def test_program_is_found_by_its_command_line_when_its_file_system_was_unmounted(
    home: Path,
) -> None:
    words = ["mount", "-t", "tmpfs", "trivisor", str(home)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a file system")
    inside = home / "n"
    inside.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WAIT, inside / "voter.toml"], env=python_environment("voter"),
        cwd=inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        subprocess.run(["umount", "--lazy", home], check=True)
        assert list(programs_in(inside)) == [(process.pid, "voter")]
        assert list(programs_in(home / "other")) == []
        process.kill()


def test_programs_of_a_copied_directory_are_not_those_of_the_original(
    home: Path, voter: subprocess.Popen[bytes], scratch: Path
) -> None:
    assert list(programs_in(shutil.copytree(home, scratch / "copy"))) == []


def test_other_programs_in_the_directory_are_not_ours(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAIT], env=python_environment(), cwd=home,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        assert list(programs_in(home)) == []
        process.kill()
