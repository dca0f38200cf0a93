"""Debian packages are added to a guest image: which files are taken, and what is refused."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from guests.image import Image, Overlay, add_overlay, fetch_additions
from guests.image.additions import MOST_BYTES, check_names, choose_files
from guests.image.manifest import read_manifest
from guests.image.packages import FILE_LIST, PACKAGE_LIST
from tests.errors import raises
from tests.guests.image.archive import read_archives

BASE = frozenset({"lib/x86_64-linux-gnu/libz.so.1", "usr/bin/python3.11", "bin/busybox"})
DIST = "usr/lib/python3/dist-packages"
LIBS = "usr/lib/x86_64-linux-gnu"


def fetched(
    path: Path, contents: Mapping[str, Mapping[str, bytes]], links: Mapping[str, str] | None = None
) -> Path:
    """Write an archive as `fetch_archive` does: each package's files, links, and the lists."""
    links = links or {}
    with tarfile.open(path, "w") as archive:

        def add(name: str, body: bytes, mode: int = 0o644) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), mode
            archive.addfile(member, io.BytesIO(body))

        listed = []
        for package, files in contents.items():
            names = [f"./{name}" for name in files]
            for name, body in files.items():
                add(f"./{name}", body, 0o755 if "/bin/" in name else 0o644)
                for link, target in links.items():
                    if target == name.rpartition("/")[2]:
                        names.append(f"./{name.rpartition('/')[0]}/{link}")
                        member = tarfile.TarInfo(names[-1])
                        member.type, member.linkname = tarfile.SYMTYPE, target
                        archive.addfile(member)
            add(f"./{FILE_LIST}{package}", "".join(f"{name}\n" for name in names).encode())
            listed.append(f"{'0' * 64}  {package}_1.0-1_amd64.deb\n")
        listed.append(f"{'1' * 64}  needed_2.0_all.deb\n")
        add(f"./{PACKAGE_LIST}", "".join(listed).encode())
    return path


def test_modules_libraries_and_newer_files_are_taken(tmp_path: Path) -> None:
    archive = fetched(
        tmp_path / "a.tar",
        {
            "python3-mod": {
                f"{DIST}/mod/__init__.py": b"x = 1\n",
                f"{DIST}/mod/data.json": b"{}",
                f"{DIST}/mod-1.dist-info/METADATA": b"m",
                "usr/share/doc/python3-mod/copyright": b"c",
                "etc/mod.conf": b"c",
            },
            "zlib1g": {f"{LIBS}/libz.so.1.3": b"new zlib", f"{LIBS}/sub/libx.so": b"plugin"},
            "python3.11-minimal": {"usr/bin/python3.11": b"new python", "usr/bin/other": b"o"},
        },
        {"libz.so.1": "libz.so.1.3"},
    )
    found = choose_files(archive, ["python3-mod", "zlib1g", "python3.11-minimal"], BASE)
    assert found.files == {
        "usr/lib/python3.11/mod/__init__.py": b"x = 1\n",
        "usr/lib/python3.11/mod/data.json": b"{}",
        "lib/x86_64-linux-gnu/libz.so.1": b"new zlib",
        "lib/x86_64-linux-gnu/libz.so.1.3": b"new zlib",
        "usr/bin/python3.11": b"new python",
    }
    assert found.programs == {"usr/bin/python3.11"}
    assert [p.name for p in found.packages] == ["python3-mod", "python3.11-minimal", "zlib1g"]


def test_package_without_a_file_for_a_guest_is_refused(tmp_path: Path) -> None:
    archive = fetched(tmp_path / "a.tar", {"doc": {"usr/share/doc/doc/README": b"r"}})
    with raises("TV0417", match="the package doc has no file that a guest can use"):
        choose_files(archive, ["doc"], BASE)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    archive = fetched(tmp_path / "a.tar", {"big": {f"{LIBS}/big.so": bytes(MOST_BYTES + 1)}})
    with raises("TV0417", match="at most 64 MiB"):
        choose_files(archive, ["big"], BASE)


@pytest.mark.parametrize("name", ["", "A", "-x", "a/b", "a b", "a;b", "$(a)", "x" * 101])
def test_name_that_no_package_has_is_refused_before_anything_is_fetched(
    name: str, no_progress: Callable[[str], None]
) -> None:
    with raises("TV0417", match="no name of a Debian package"):
        fetch_additions([name], BASE, progress=no_progress)


def test_too_many_packages_are_refused() -> None:
    with raises("TV0417", match="21 packages are too many"):
        check_names([f"package{number}" for number in range(21)])


def test_manifest_and_initrd_of_the_patched_image_have_the_files(
    small_image: Image, tmp_path: Path
) -> None:
    archive = fetched(
        tmp_path / "a.tar", {"libc6": {f"{LIBS}/libc.so.6": b"newer", "usr/bin/tool": b"t"}}
    )
    found = choose_files(archive, ["libc6"], frozenset({"usr/bin/tool"}))
    overlay = Overlay(
        service="kv", files=found.files, programs=found.programs, packages=found.packages
    )
    image = add_overlay(small_image, tmp_path / "out", overlay)
    manifest = read_manifest(image.manifest)
    assert [(p.name, p.version) for p in manifest.packages] == [("libc6", "1.0-1")]
    assert "lib/x86_64-linux-gnu/libc.so.6" in manifest.files
    added = image.initrd.read_bytes()[16:]
    entries = {entry.name: entry for entry in read_archives(added)}
    assert entries["lib/x86_64-linux-gnu/libc.so.6"].body == b"newer"
    assert entries["usr/bin/tool"].mode & stat.S_IXUSR


@pytest.mark.long
@pytest.mark.vm
def test_real_package_replaces_a_library_of_the_image(real_image: Image) -> None:
    base = read_manifest(real_image.manifest).files
    found = fetch_additions(["libexpat1"], base, progress=print)
    assert "lib/x86_64-linux-gnu/libexpat.so.1" in found.files
    assert [package.name for package in found.packages] == ["libexpat1"]


@pytest.mark.vm
def test_unknown_package_is_an_error_of_the_download(real_image: Image) -> None:
    with raises("TV0411", match="cannot fetch"):
        fetch_additions(["trivisor-no-such-package"], (), progress=print)
