"""Build of the base image that all guests start from, cached by its inputs.

The cache holds two kinds of directory.  *packages* costs a download and depends on the recipe and
the code that follows it.  *image* is packages plus this repository's ``guests``, compiled modules
included; the access archive (see ``overlay``) is stored with it.  A directory is named by the hash
of its inputs and renamed to that name once it is complete, so an interrupted build leaves nothing
that looks complete.  Builders that share a cache wait for each other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from guests import compiled
from guests.image import cpio
from guests.image.bytecode import compile_sources
from guests.image.host import ImageError, lock, new_directory, prune
from guests.image.kernel import COMMAND_LINE
from guests.image.manifest import (
    Image,
    Manifest,
    check_file,
    combined_hash,
    encode_record,
    read_manifest,
    read_record,
    sha256_of,
    verify,
)
from guests.image.overlay import ACCESS_ARCHIVE, ACCESS_SCRIPT, access_entries
from guests.image.packages import Package, fetch
from guests.image.recipe import MULTIARCH, PYTHON

__all__ = ["build_image"]

_HERE = Path(__file__).parent
_GUEST_PARTS = ("agent", "protocol", "services")
_GUESTS = _HERE.parent
_INIT = _HERE / "init"
_HOME = "opt/trivisor"
_PACKAGE_CODE = ("bytecode", "kernel", "packages", "recipe", "sources")
"""Modules of this package whose code decides what is in *packages*; below, in *image*."""
_IMAGE_CODE = ("build", "cpio", "manifest", "overlay")
_TAG = PYTHON.replace("python3.", "cpython-3")
_SUFFIX = f".{_TAG}-{MULTIARCH}.so"
PREBUILT = Path("/usr/share/trivisor/images")
"""Images that a package has installed; one is used if its inputs are those of the cache's."""
_KEPT = 4
"""Images kept in a cache, so that switching between versions of the sources rebuilds nothing."""


class _Tree(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record of the cached packages."""

    kernel: str
    packages: list[Package]
    files: dict[str, str]
    access: dict[str, str]


def build_image(cache: Path, *, progress: Callable[[str], None]) -> Image:
    """Return the base image, from ``cache`` if its inputs are unchanged; a build takes about 15 s.

    ``progress`` is called with a description of each slow step.  Raises ImageError if the image
    cannot be built, or if the cached one was altered.
    """
    packages, inputs, image = _find(cache)
    if not image.is_dir():
        image = _update_cache(cache, packages, inputs, progress)
    manifest = read_manifest(image / "manifest.json")
    built = Image(
        kernel=image / "vmlinux",
        initrd=image / "initrd",
        sha256=combined_hash(manifest.kernel, manifest.initrd),
        manifest=image / "manifest.json",
    )
    verify(built)
    return built


def packages_at_hand(cache: Path) -> bool:
    """Return whether ``build_image`` fetches none of Debian's packages.

    They are in the cache, or an image is installed.
    """
    packages, _, image = _find(cache)
    return packages.is_dir() or image.is_dir()


def _find(cache: Path) -> tuple[Path, str, Path]:
    """Return the packages' directory, the hash of the image's inputs, and an installed image's."""
    packages = cache / f"packages-{_packages_inputs()[:16]}"
    inputs = _image_inputs(packages.name)
    return packages, inputs, PREBUILT / f"image-{inputs[:16]}"


def _update_cache(
    cache: Path, packages: Path, inputs: str, progress: Callable[[str], None]
) -> Path:
    """Return the cached image with these inputs; build what is missing.  Raises ImageError."""
    image = cache / f"image-{inputs[:16]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache):
            if not image.exists():
                if not packages.exists():
                    with new_directory(packages) as work:
                        _build_packages(work, progress)
                with new_directory(image) as work:
                    progress("writing the image")
                    _build_image(packages, work, inputs)
            os.utime(image)  # used just now
            prune(cache, "image-", keep=_KEPT)
            prune(cache, "packages-", keep=2)
    except OSError as error:
        raise ImageError(
            f"cannot build the guest image in {cache}: {error}", error_code="TV0413"
        ) from error
    return image


def _packages_inputs() -> str:
    """Return the hash of everything that *packages* depends on."""
    return _hash_files([_HERE / f"{name}.py" for name in _PACKAGE_CODE])


def _image_inputs(packages: str) -> str:
    """Return the hash of everything that *image* depends on."""
    code = [_HERE / f"{name}.py" for name in _IMAGE_CODE]
    sources = _hash_files([*code, _INIT, ACCESS_SCRIPT, *_guest_sources(), *_compiled_modules()])
    return hashlib.sha256(f"{packages} {sources}".encode()).hexdigest()


def _guest_sources() -> list[Path]:
    return sorted(
        [
            *_GUESTS.glob("*.py"),
            *(path for part in _GUEST_PARTS for path in (_GUESTS / part).glob("*.py")),
        ]
    )


def _compiled_modules() -> list[Path]:
    """Return the compiled modules that a guest can load: those of its Python, unless forbidden."""
    build = Path(compiled.directory(str(_GUESTS)))
    found = [] if compiled.pure() else sorted(build.glob(f"*{_SUFFIX}"))
    return [*found, build / compiled.SUMS] if found else []


def _hash_files(paths: list[Path]) -> str:
    lines = [f"{sha256_of(path)} {path.relative_to(_GUESTS)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _build_packages(work: Path, progress: Callable[[str], None]) -> None:
    packages = fetch(work, progress=progress)
    record = _Tree(
        kernel=sha256_of(work / "vmlinux"),
        packages=packages,
        files=_hash_tree(work / "tree"),
        access=_hash_tree(work / "access"),
    )
    (work / "packages.json").write_bytes(encode_record(record))


def _hash_tree(tree: Path) -> dict[str, str]:
    """Return the hash of each file below ``tree``."""
    return {
        str(path.relative_to(tree)): sha256_of(path)
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }


def _entries(tree: Path, files: dict[str, str]) -> list[cpio.ArchiveEntry]:
    """Return ``files`` below ``tree`` as entries.  Raises ImageError if one was altered."""
    entries = []
    for name, expected in files.items():
        path = tree / name
        body = path.read_bytes()
        if hashlib.sha256(body).hexdigest() != expected:
            raise ImageError(
                f"{path} was altered: remove {tree.parent} and build again", error_code="TV0414"
            )
        entries.append(cpio.file(name, body, executable=bool(path.stat().st_mode & stat.S_IXUSR)))
    return entries


def _build_image(packages: Path, work: Path, inputs: str) -> None:
    """Write kernel, initramfs, access archive and manifest into ``work``."""
    record = read_record(packages / "packages.json", _Tree)
    tree = packages / "tree"
    check_file(packages / "vmlinux", record.kernel)
    entries = _entries(tree, record.files)
    sources = {
        f"{_HOME}/guests/{path.relative_to(_GUESTS)}": path.read_bytes()
        for path in _guest_sources()
    }
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        bytecode = compile_sources(tree, sources, Path(scratch))
    for name, source in sources.items():
        folder, _, stem = name.removesuffix(".py").rpartition("/")
        entries.append(cpio.file(name, source))
        entries.append(cpio.file(f"{folder}/__pycache__/{stem}.{_TAG}.pyc", bytecode[name]))
    entries += [
        cpio.file(f"{_HOME}/guests/{path.relative_to(_GUESTS)}", path.read_bytes())
        for path in _compiled_modules()
    ]
    entries.append(cpio.file("init", _INIT.read_bytes(), executable=True))
    entries += [cpio.directory(name) for name in ("dev", "proc", "sys", "tmp", "etc/trivisor")]
    entries.append(cpio.device("dev/console", 5, 1))

    access = [*_entries(packages / "access", record.access), *access_entries()]

    (work / "initrd").write_bytes(cpio.pack(entries))
    (work / ACCESS_ARCHIVE).write_bytes(cpio.pack(access))
    shutil.copyfile(packages / "vmlinux", work / "vmlinux")
    manifest = Manifest(
        inputs=inputs,
        kernel=record.kernel,
        initrd=sha256_of(work / "initrd"),
        command_line=COMMAND_LINE,
        packages=record.packages,
        files=_hash_entries(entries),
        access=sha256_of(work / ACCESS_ARCHIVE),
        access_files=_hash_entries(access),
    )
    (work / "manifest.json").write_bytes(encode_record(manifest))


def _hash_entries(entries: list[cpio.ArchiveEntry]) -> dict[str, str]:
    return {entry.name: hashlib.sha256(entry.body).hexdigest() for entry in entries if entry.body}
