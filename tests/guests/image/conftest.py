"""A small image that needs no packages, and the real one, built once for all tests that ask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from guests.image import Image, build_image
from guests.image.manifest import Manifest, combined_hash, encode_record
from guests.image.packages import Package


@pytest.fixture
def small_image(tmp_path: Path) -> Image:
    """An image as `build_image` leaves it, but for what is in it."""
    directory = tmp_path / "image"
    directory.mkdir()
    (directory / "vmlinux").write_bytes(b"\x7fELF kernel")
    (directory / "initrd").write_bytes(b"base archive.")  # 13 bytes: an overlay must be aligned
    kernel, initrd = (
        hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in ("vmlinux", "initrd")
    )
    manifest = Manifest(
        inputs="5" * 64,
        kernel=kernel,
        initrd=initrd,
        command_line="console=ttyS0",
        packages=[Package(name="libc6", version="2.36-9", architecture="amd64", sha256="0" * 64)],
        files={"init": "1" * 64},
    )
    (directory / "manifest.json").write_bytes(encode_record(manifest))
    return Image(
        kernel=directory / "vmlinux",
        initrd=directory / "initrd",
        sha256=combined_hash(kernel, initrd),
        manifest=directory / "manifest.json",
    )


@pytest.fixture(scope="session")
def image_cache(shared_scratch: Path) -> Path:
    """The cache that the real image is built in."""
    return shared_scratch / "images"


@pytest.fixture(scope="session")
def real_image(image_cache: Path) -> Image:
    """The real base image, from packages fetched for this test run."""
    return build_image(image_cache, progress=print)


@pytest.fixture
def no_progress() -> Callable[[str], None]:
    """A `progress` that fails the test: nothing may need building."""

    def refuse(step: str) -> None:
        pytest.fail(f"built again: {step}")

    return refuse
