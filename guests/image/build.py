"""Building the base image: the kernel and the initramfs that all guests start from, cached by their inputs.

Two parts are cached: *packages*, which costs a download and depends on the recipe alone, and *image*, which is
packages plus this repository's `guests`. Each is a directory named by a hash of its inputs, made aside and
renamed when it is whole, so that a build cut short leaves nothing that looks whole; builders that meet wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from guests.image import cpio
from guests.image.bytecode import compile_sources
from guests.image.errors import ImageError
from guests.image.packages import Package, fetch
from guests.image.recipe import COMMAND_LINE, PYTHON

__all__ = ["Image", "Manifest", "build_image", "read_manifest", "sha256_of", "sum_up", "verify"]

_GUESTS = Path(__file__).parent.parent
_INIT = Path(__file__).parent / "init"
_HOME = "opt/trivisor"
_PACKAGE_CODE = ("image/recipe", "image/packages", "image/bytecode", "image/sources")
_TAG = PYTHON.replace("python3.", "cpython-3")


_Record = TypeVar("_Record", bound=msgspec.Struct)


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel and an initramfs to boot with it. `sha256` is over both, as `sum_up` makes it."""

    kernel: Path
    initrd: Path
    sha256: str
    manifest: Path


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image was made of. All hashes are SHA-256 in hex; `files` maps a path in the guest to its hash."""

    inputs: str
    kernel: str
    initrd: str
    command_line: str
    packages: list[Package]
    files: dict[str, str]


class _Tree(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record of the cached packages."""

    kernel: str
    packages: list[Package]
    files: dict[str, str]


def build_image(cache: Path, *, progress: Callable[[str], None]) -> Image:
    """The base image, from `cache` where its inputs have not changed, else built (some 15 s) and put there.

    `progress` is told, in a few words, of each step that takes time. Raises ImageError if it cannot be built,
    or if what lies in the cache was altered.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache):
            packages = cache / f"packages-{_packages_inputs()[:16]}"
            inputs = _image_inputs(packages.name)
            image = cache / f"image-{inputs[:16]}"
            if not image.exists():
                if not packages.exists():
                    with _aside(packages) as work:
                        _build_packages(work, progress)
                with _aside(image) as work:
                    progress("writing the image")
                    _build_image(packages, work, inputs)
    except OSError as error:
        raise ImageError(f"cannot build the guest image in {cache}: {error}") from error
    manifest = read_manifest(image / "manifest.json")
    built = Image(
        kernel=image / "vmlinuz",
        initrd=image / "initrd",
        sha256=sum_up(manifest.kernel, manifest.initrd),
        manifest=image / "manifest.json",
    )
    verify(built)
    return built


def verify(image: Image) -> None:
    """Raises ImageError, naming the file and the remedy, unless `image` is what its manifest says, byte for byte."""
    manifest = read_manifest(image.manifest)
    for path, expected in ((image.kernel, manifest.kernel), (image.initrd, manifest.initrd)):
        _check(path, expected)
    if sum_up(manifest.kernel, manifest.initrd) != image.sha256:
        raise ImageError(
            f"{image.manifest} is of another image than the one asked for: "
            f"remove {image.manifest.parent} and build again"
        )


def sum_up(kernel: str, initrd: str) -> str:
    """One hash of a kernel and an initramfs, from theirs: the kernel's need not be read again for each overlay."""
    return hashlib.sha256(f"{kernel} {initrd}\n".encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`. Raises ImageError if it cannot be read or is none."""
    return _read(path, Manifest)


def _check(path: Path, expected: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read ({error.strerror}): remove {path.parent} and build again"
        ) from error
    if found != expected:
        raise ImageError(
            f"{path} was altered: its SHA-256 is {found}, and {expected} when it was built; "
            f"remove {path.parent} and build again"
        )


def _read(path: Path, kind: type[_Record]) -> _Record:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise ImageError(
            f"{path} cannot be read ({error}): remove {path.parent} and build again"
        ) from error


def _packages_inputs() -> str:
    """A hash of what the packages' part depends on: the recipe, and the code that follows it."""
    return _hash_files([_GUESTS / f"{name}.py" for name in _PACKAGE_CODE])


def _image_inputs(packages: str) -> str:
    """A hash of what the image depends on: the packages, the guests' sources, and the code that packs them."""
    here = [Path(__file__), Path(cpio.__file__), _INIT]
    return hashlib.sha256(f"{packages} {_hash_files([*here, *_guest_sources()])}".encode()).hexdigest()


def _guest_sources() -> list[Path]:
    return sorted([*_GUESTS.glob("*.py"), *(_GUESTS / "services").glob("*.py")])


def _hash_files(paths: list[Path]) -> str:
    lines = [f"{sha256_of(path)} {path.relative_to(_GUESTS)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _build_packages(work: Path, progress: Callable[[str], None]) -> None:
    packages = fetch(work, progress=progress)
    tree = work / "tree"
    files = {
        str(path.relative_to(tree)): sha256_of(path) for path in sorted(tree.rglob("*")) if path.is_file()
    }
    record = _Tree(kernel=sha256_of(work / "vmlinuz"), packages=packages, files=files)
    (work / "packages.json").write_bytes(_format(record))


def _build_image(packages: Path, work: Path, inputs: str) -> None:
    """Puts kernel, initramfs and manifest into `work`."""
    record = _read(packages / "packages.json", _Tree)
    tree = packages / "tree"
    _check(packages / "vmlinuz", record.kernel)
    entries = []
    for name, expected in record.files.items():
        path = tree / name
        body = path.read_bytes()
        if hashlib.sha256(body).hexdigest() != expected:
            raise ImageError(f"{path} was altered: remove {packages} and build again")
        entries.append(cpio.file(name, body, executable=bool(path.stat().st_mode & stat.S_IXUSR)))
    sources = {f"{_HOME}/guests/{path.relative_to(_GUESTS)}": path.read_bytes() for path in _guest_sources()}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        compiled = compile_sources(tree, sources, Path(scratch))
    for name, source in sources.items():
        folder, _, stem = name.removesuffix(".py").rpartition("/")
        entries.append(cpio.file(name, source))
        entries.append(cpio.file(f"{folder}/__pycache__/{stem}.{_TAG}.pyc", compiled[name]))
    entries.append(cpio.file("init", _INIT.read_bytes(), executable=True))
    entries += [cpio.directory(name) for name in ("dev", "proc", "sys", "tmp", "etc/trivisor")]
    entries.append(cpio.device("dev/console", 5, 1))

    (work / "initrd").write_bytes(cpio.pack(entries))
    shutil.copyfile(packages / "vmlinuz", work / "vmlinuz")
    manifest = Manifest(
        inputs=inputs,
        kernel=record.kernel,
        initrd=sha256_of(work / "initrd"),
        command_line=COMMAND_LINE,
        packages=record.packages,
        files={entry.name: hashlib.sha256(entry.body).hexdigest() for entry in entries if entry.body},
    )
    (work / "manifest.json").write_bytes(_format(manifest))


def _format(record: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Holds the cache's lock; the kernel lets it go if this process dies."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A directory that becomes `target`, on disk and whole, if the block ends well, and is removed if not."""
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".new", dir=target.parent))
    try:
        work.chmod(0o755)
        yield work
        for path in [*work.rglob("*"), work]:
            _sync(path)
        work.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(work)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
