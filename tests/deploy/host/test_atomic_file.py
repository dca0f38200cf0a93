"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from deploy.host.atomic_file import aside_of, write_json, write_whole


def test_the_old_file_gives_way_to_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1}, mode=0o600)
    write_json(path, {"a": 2}, mode=0o600)
    assert json.loads(path.read_text()) == {"a": 2}
    assert path.read_text().endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["record.json"]


def test_what_a_crash_left_aside_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    aside_of(path).write_text("half a pa")
    write_whole(path, b"a page")
    assert path.read_bytes() == b"a page"
    assert not aside_of(path).exists()


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_whole(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["page.html"]
