"""The real base image, from Debian's packages: reproducible, cached, checked, and complete."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from guests.image import (
    Image,
    ImageError,
    ProgramMissing,
    build,
    build_image,
    packages_at_hand,
    verify,
)
from guests.image.manifest import read_manifest
from guests.image.packages import fetch
from guests.image.recipe import LOADER, MULTIARCH, PACKAGES, PYTHON
from tests.errors import raises
from tests.guests.image.archive import read_archives

# The modules that the README promises to a user's service.
IMPORTABLE = """
    asyncio base64 bisect calendar cmath collections concurrent.futures configparser contextlib copy
    csv dataclasses datetime decimal difflib email.message enum fractions functools graphlib gzip
    hashlib heapq hmac html.parser http.cookies io ipaddress itertools json logging math mimetypes
    mmap numbers operator os pathlib pickle queue random re secrets select shlex statistics string
    struct subprocess tempfile textwrap threading time tomllib typing unicodedata urllib.parse uuid
    weakref xml.etree.ElementTree zipfile zlib
""".split()  # noqa: SIM905


@pytest.mark.vm
def test_two_builds_give_the_same_bytes(real_image: Image, tmp_path: Path) -> None:
    again = build_image(tmp_path / "other place", progress=print)
    assert again.sha256 == real_image.sha256
    assert again.manifest.read_bytes() == real_image.manifest.read_bytes()


@pytest.mark.vm
def test_second_build_comes_from_the_cache(
    real_image: Image, image_cache: Path, no_progress: Callable[[str], None]
) -> None:
    assert build_image(image_cache, progress=no_progress) == real_image


@pytest.mark.vm
def test_image_that_a_package_has_installed_is_used_and_nothing_is_written(
    real_image: Image,
    tmp_path: Path,
    no_progress: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "PREBUILT", real_image.kernel.parent.parent)
    assert build_image(tmp_path / "cache", progress=no_progress) == real_image
    assert not (tmp_path / "cache").exists()


@pytest.mark.vm
def test_manifest_lists_packages_and_files(real_image: Image) -> None:
    manifest = read_manifest(real_image.manifest)
    packages = {package.name: package for package in manifest.packages}
    assert set(PACKAGES) <= set(packages)
    for package in packages.values():
        assert package.version
        assert package.architecture in ("amd64", "all")
        assert len(package.sha256) == 64
    for name in ("init", "bin/busybox", f"usr/bin/{PYTHON}", "opt/trivisor/guests/agent/main.py"):
        assert len(manifest.files[name]) == 64
    assert "opt/trivisor/guests/agent/__pycache__/main.cpython-311.pyc" in manifest.files
    assert not any("image" in name.split("/") for name in manifest.files)


@pytest.mark.vm
def test_base_image_has_no_login(real_image: Image) -> None:
    files = {entry.name for entry in read_archives(real_image.initrd.read_bytes())}
    assert not {"etc/passwd", "etc/shadow", "bin/sh", "bin/login", "sbin/getty"} & files
    assert not any("ssh" in name for name in files)


@pytest.mark.vm
@pytest.mark.parametrize("name", ["vmlinux", "initrd", "manifest.json"])
def test_altered_image_in_the_cache_is_refused(
    real_image: Image, image_cache: Path, name: str
) -> None:
    path = real_image.kernel.parent / name
    right = path.read_bytes()
    try:
        path.write_bytes(right[:5000] + right[5001:] if path.suffix != ".json" else right[:5000])
        with pytest.raises(ImageError, match=rf"{path} .*remove {path.parent} and build again"):
            build_image(image_cache, progress=print)
    finally:
        path.write_bytes(right)
    verify(real_image)


@pytest.mark.vm
def test_concurrent_builders_build_once(real_image: Image, image_cache: Path) -> None:
    # Only the image proper is built again: the packages are there.
    for path in sorted(real_image.kernel.parent.iterdir()):
        path.unlink()
    real_image.kernel.parent.rmdir()
    steps: list[str] = []
    built: list[Image] = []
    builders = [
        threading.Thread(
            target=lambda: built.append(build_image(image_cache, progress=steps.append))
        )
        for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert built == [real_image] * 3
    assert steps == ["writing the image"]


@pytest.mark.vm
def test_services_can_import_the_promised_modules(real_image: Image, image_cache: Path) -> None:
    tree = next(image_cache.glob("packages-*")) / "tree"
    script = "import sys; [__import__(name) for name in sys.argv[1:]]; import guests.agent.main"
    done = subprocess.run(
        [
            tree / "lib64" / LOADER,
            "--library-path",
            tree / "lib" / MULTIARCH,
            tree / "usr/bin" / PYTHON,
            *("-P", "-S", "-s", "-W", "ignore", "-c", script),
            *IMPORTABLE,
        ],
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.vm
def test_command_prints_the_contents(real_image: Image, image_cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guests.image", "--cache", image_cache, "--files"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert real_image.sha256 in done.stdout
    assert "libpython3.11-stdlib 3.11" in done.stdout
    assert " init\n" in done.stdout


def test_missing_mmdebstrap_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing) as caught:
        fetch(tmp_path, progress=print)
    assert caught.value.program == "mmdebstrap"


def test_failing_mmdebstrap_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mmdebstrap").write_text('#!/bin/sh\necho "E: no such mirror $*" >&2\nexit 25\n')
    (programs / "mmdebstrap").chmod(0o755)
    (programs / "apt-config").write_text("#!/bin/sh\necho 'Acquire::Retries \"3\";'\n")
    (programs / "apt-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    monkeypatch.setattr("guests.image.packages.debian_sources", lambda: "")
    cache = tmp_path / "cache"
    with pytest.raises(
        ImageError, match=r"(?s)^mmdebstrap cannot fetch.*E: no such mirror .*Retries"
    ) as caught:
        build_image(cache, progress=print)
    assert "apt-get update" in caught.value.remedy
    assert caught.value.error_code == "TV0411"
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_impossible_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises("TV0413", match=r"cannot build the guest image in .*file"):
        build_image(tmp_path / "file", progress=print)


@pytest.mark.vm
def test_packages_are_at_hand_where_an_image_was_built(
    real_image: Image, image_cache: Path, tmp_path: Path
) -> None:
    assert packages_at_hand(image_cache)
    assert not packages_at_hand(tmp_path)
