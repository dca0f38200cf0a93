"""Reading a Debian package."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.remote.package import find_package, read_package
from tests.deploy.remote.fake_package import SETTINGS, build_package
from tests.errors import raises


def test_package_states_version_size_checksum_and_settings(tmp_path: Path) -> None:
    file = build_package(tmp_path / "trivisor_1.2_amd64.deb", version="1.2", weight=3 << 20)
    package = read_package(file)
    assert (package.version, package.settings) == ("1.2", SETTINGS)
    assert package.sha256 == sha256(file.read_bytes()).hexdigest()
    assert 3 << 20 <= package.installed < 4 << 20
    assert package.size == file.stat().st_size


def test_newest_package_of_a_directory_is_found(tmp_path: Path) -> None:
    for age, name in enumerate(("trivisor_0.9_amd64.deb", "trivisor_0.10_amd64.deb", "x.deb")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() + age, time.time() + age))
    assert find_package(tmp_path).name == "trivisor_0.10_amd64.deb"


def test_missing_package_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with raises("TV0763", match=r"\./run package"):
        find_package(tmp_path / "dist")


@pytest.mark.parametrize("keep", [0, 4, 30, 100, 700, -1])
def test_damaged_package_is_an_error_that_names_the_file(keep: int, tmp_path: Path) -> None:
    file = build_package(tmp_path / "trivisor_1_amd64.deb")
    file.write_bytes(file.read_bytes()[:keep])
    with raises("TV0763", match="trivisor_1_amd64"):
        read_package(file)


def test_other_package_is_rejected(tmp_path: Path) -> None:
    file = build_package(tmp_path / "hello.deb", package="hello")
    with pytest.raises(DeployError, match=r"hello\.deb holds hello"):
        read_package(file)
