"""``trivisor doctor`` for an ordinary user: what mmdebstrap needs to build the guest image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.commands.doctor import check_user_namespace

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


def test_missing_newuidmap_is_named_with_its_package(programs: Path) -> None:
    for names in ((), ("newuidmap",)):
        install(programs, *names)
        found = check_user_namespace()
        assert (found.result, found.package) == ("missing", "uidmap")
        assert found.remedy == "apt-get install uidmap"


def test_missing_ids_are_named_with_the_command_that_adds_a_free_range(programs: Path) -> None:
    install(programs, "newuidmap", "newgidmap")
    found = check_user_namespace()
    assert (found.result, found.package) == ("missing", "")
    command, first, _, second, user = found.remedy.split()[0:1] + found.remedy.split()[2:]
    assert (command, user) == ("usermod", "nobody")
    assert first == second
    low, high = map(int, first.split("-"))
    assert low >= 100_000 and high - low == 65_535


def test_user_without_an_account_is_reported(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    found = check_user_namespace()
    assert found.result == "missing" and "/etc/passwd" in found.detail


def test_lack_is_a_warning_where_the_packages_are_in_the_cache(programs: Path) -> None:
    images = programs.parent / "cache" / "images"
    (images / "packages-0123456789abcdef.x.new").mkdir(parents=True)
    assert check_user_namespace().result == "missing"
    (images / "packages-0123456789abcdef").mkdir()
    assert check_user_namespace().result == "warning"
