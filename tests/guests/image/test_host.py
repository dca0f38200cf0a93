"""Directories and files of the cache appear whole, and old ones are removed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from guests.image.host import lock, new_directory, prune, replace_file


def test_directory_appears_whole(tmp_path: Path) -> None:
    with new_directory(tmp_path / "x") as work:
        (work / "a").write_text("1")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x/a").read_text() == "1"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with new_directory(tmp_path / "x") as work:
            (work / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []


def test_file_is_replaced(tmp_path: Path) -> None:
    replace_file(tmp_path / "f", b"1")
    replace_file(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_prune_keeps_the_last_used_and_removes_unfinished_ones(tmp_path: Path) -> None:
    for age, name in enumerate(("image-a", "image-b", "image-c", "image-d.x.new", "other")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    prune(tmp_path, "image-", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image-a", "image-b", "other"]


def test_lock_has_one_holder(tmp_path: Path) -> None:
    inside: list[int] = []

    def build() -> None:
        with lock(tmp_path):
            inside.append(1)

    with lock(tmp_path):
        other = threading.Thread(target=build)
        other.start()
        other.join(0.2)
        assert inside == []
    other.join(10)
    assert inside == [1]
