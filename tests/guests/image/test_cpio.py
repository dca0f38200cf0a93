"""The archive writer: what it writes, in which order, and what it refuses."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.image import ImageError, cpio
from tests.errors import raises
from tests.guests.image.archive import read_archives

ENTRIES = [
    cpio.file("init", b"#!/bin/sh\n", executable=True),
    cpio.file("etc/a", b"12345"),
    cpio.symlink("bin/sh", "busybox"),
    cpio.directory("proc"),
    cpio.device("dev/console", 5, 1),
]


def test_entries_round_trip() -> None:
    read = {entry.name: entry for entry in read_archives(cpio.pack(ENTRIES))}
    assert read["init"].body == b"#!/bin/sh\n"
    assert read["init"].mode == stat.S_IFREG | 0o755
    assert read["etc/a"].mode == stat.S_IFREG | 0o644
    assert read["bin/sh"].body == b"busybox"
    assert stat.S_ISLNK(read["bin/sh"].mode)
    assert stat.S_ISDIR(read["proc"].mode)
    assert stat.S_ISCHR(read["dev/console"].mode)
    assert read["dev/console"].device == (5, 1)


def test_owner_and_time_are_zero() -> None:
    for entry in read_archives(cpio.pack(ENTRIES)):
        assert entry.owner == (0, 0)
        assert entry.time == 0


def test_order_of_entries_does_not_matter() -> None:
    assert cpio.pack(ENTRIES) == cpio.pack(list(reversed(ENTRIES)))


def test_directory_precedes_its_files() -> None:
    # By plain string order "a.b" would come between "a" and "a/c".
    names = [
        e.name for e in read_archives(cpio.pack([cpio.file("a/c", b""), cpio.file("a.b", b"")]))
    ]
    assert names == ["a", "a/c", "a.b"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/"])
def test_unsafe_name_is_refused(name: str) -> None:
    with raises("TV0416", match="plain relative path"):
        cpio.pack([cpio.file(name, b"")])


def test_different_files_of_one_name_are_refused() -> None:
    with raises("TV0416", match="'a' is twice"):
        cpio.pack([cpio.file("a", b"x"), cpio.file("a", b"y")])


def test_file_below_a_file_is_refused() -> None:
    with pytest.raises(ImageError, match="'a', which is not a directory"):
        cpio.pack([cpio.file("a", b"x"), cpio.file("a/b", b"y")])


names = st.lists(st.text("abc.", min_size=1, max_size=3), min_size=1, max_size=3).filter(
    lambda parts: not {".", ".."} & set(parts)
)


@given(st.dictionaries(names.map("/".join), st.binary(max_size=9), max_size=6))
def test_any_tree_round_trips_or_is_refused(files: dict[str, bytes]) -> None:
    try:
        archive = cpio.pack([cpio.file(name, body) for name, body in files.items()])
    except ImageError:
        assert any(a.startswith(f"{b}/") for a in files for b in files)
        return
    assert len(archive) % cpio.ALIGNMENT == 0
    read = {e.name: e.body for e in read_archives(archive) if stat.S_ISREG(e.mode)}
    assert read == files


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    plain = [entry for entry in ENTRIES if not stat.S_ISCHR(entry.mode)]
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories", "--no-preserve-owner"],
        input=io.BytesIO(cpio.pack(plain)).getvalue(),
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "etc/a").read_bytes() == b"12345"
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")
